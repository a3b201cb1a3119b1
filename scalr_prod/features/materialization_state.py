# SPDX-License-Identifier: Apache-2.0
"""Record of what each view of the online store was materialized from.

The record is a file beside the repository. An interrupted fill may have written rows, so all states since the last completed fill are kept.
An interrupted full fill leaves a view empty or partial, so the view is fully filled until one completes. The store itself holds the number
of the last fill: a store that was emptied or restored from a backup has another number, and is fully filled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from feast_delta.columns import source_columns
from feast_delta.queries import join_keys, optional_micros, source_path
from feast_delta.scan import scan_delta
from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.core.delta_log import diff_files, files_in_time_range
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.features.online_deletes import delete_missing_entities, delete_view_rows, redis_client, sqlite_path
from scalr_prod.workspace import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from feast import FeatureStore, FeatureView

    TableState = tuple[int | None, datetime]
    from pathlib import Path


#: Stored next to Feast's own keys.
_REDIS_KEY: Final = "scalr:filled:{}"


logger = logging.getLogger(__name__)


def find_changed_entities(
    store: FeatureStore, view: FeatureView, before: Sequence[TableState], now: TableState
) -> pa.Table | None:
    """Find the entities with a row in a file that was added or removed between two states, or with a row between their end times.

    Args:
        store: Feast's store.
        view: The view.
        before: Delta version and end time of each state that the online store may hold.
        now: Delta version and end time that it should hold.

    Returns:
        Their distinct, non-null keys under the table's column names. None if they cannot be determined: the view has no entity or
        is no Delta table, or a previous version can no longer be read.
    """
    from deltalake import DeltaTable

    columns = source_columns(view.batch_source)
    keys = [columns.column_name(key) for key in join_keys(view)]
    if not keys or now[0] is None or any(version is None for version, _ in before):
        return None
    path, options = source_path(store.config, view.batch_source), store.config.offline_store.storage_options or None

    def queries(connection: DuckDBPyConnection) -> Iterator[str]:
        current = DeltaTable(path, version=now[0], storage_options=options)
        for number, (version, end) in enumerate(before):
            previous = DeltaTable(path, version=version, storage_options=options)
            grown = diff_files(previous, current)
            for alias, table, names in (("added", current, grown.added), ("removed", previous, grown.removed)):
                if names:
                    yield _keys(keys, scan_delta(connection, table, f"{alias}_{number}", keys, file_names=names).relation)
            if end != now[1]:
                low, high = sorted(optional_micros(moment) or 0 for moment in (end, now[1]))
                # One timestamp at a time, so that file statistics can skip most files.
                for clock in columns.timestamp_columns:
                    names = files_in_time_range(current, clock, low + 1, high)
                    some = scan_delta(connection, current, f"between_{number}_{clock}", [*keys, clock], file_names=names)
                    moment = f"CAST({quote_identifier(clock)} AS TIMESTAMPTZ)"
                    between = f"{moment} > make_timestamptz({low}) AND {moment} <= make_timestamptz({high})"
                    yield f"{_keys(keys, some.relation)} AND {between}"

    with store.config.offline_store.open_session() as connection:
        try:
            # Run the queries here: a vacuumed version opens, and fails only when it is read.
            found = list(queries(connection)) or [f"{_keys(keys, _empty(connection, path, options, keys))}"]
            return connection.sql(" UNION ".join(found)).to_arrow_table()
        except Exception as error:
            # deltalake and DuckDB raise many exception types; any of them means a full fill.
            logger.warning(
                "%s: a previous table version cannot be read (%s); materializing the whole view again", view.name, error
            )
            return None


def _keys(keys: list[str], relation: str) -> str:
    present = " AND ".join(f"{quote_identifier(key)} IS NOT NULL" for key in keys)
    return f"SELECT {', '.join(map(quote_identifier, keys))} FROM {relation} WHERE {present}"


def _empty(connection: DuckDBPyConnection, path: str, options: dict[str, str] | None, keys: list[str]) -> str:
    from deltalake import DeltaTable

    return scan_delta(connection, DeltaTable(path, storage_options=options), "nothing", keys, file_names=frozenset()).relation


@dataclass(frozen=True)
class MaterializationState(Jsonable):
    """State of a view's table that the view was filled from.

    Attributes:
        version: Delta version of its table, or None if it is no Delta table.
        end: Latest event time.
        definition: See `definition_digest`.
    """

    version: int | None
    end: datetime
    definition: str


def definition_digest(view: FeatureView) -> str:
    """Hash the parts of a view that decide which columns are written, and its registration time."""
    source = view.batch_source
    content = [
        str(view.created_timestamp),
        [[field.name, str(field.dtype)] for field in [*view.entity_columns, *view.features]],
        [source.timestamp_field, source.created_timestamp_column, dict(source.field_mapping), getattr(source, "path", None)],
        [dict(view.tags), dict(source.tags)],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def has_been_materialized(repo: Path) -> bool:
    """Whether the project of this repository has ever filled its online store."""
    return _path(repo).is_file()


def _path(repo: Path) -> Path:
    return repo / ".materialized.json"


class MaterializationRecord:
    """Materialization record of one project's online store.

    Attributes:
        states: View → states that it may have been filled from.
        incomplete: Views with an unfinished full fill: their content is unknown.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.path: Path = _path(store.repo_path)
        self.store = store
        address = json.dumps([store.project, store.config.online_store.model_dump(mode="json")], sort_keys=True)
        # The address may hold a password.
        self.address = hashlib.sha256(address.encode()).hexdigest()
        self.fill_number = 0
        self.states: dict[str, list[MaterializationState]] = {}
        self.incomplete: set[str] = set()
        self._read()

    def begin(self, view: FeatureView, now: MaterializationState) -> tuple[bool, pa.Table | None]:
        """Delete the rows that the view's table no longer has.

        Returns:
            Whether anything was deleted, and the keys of the entities whose rows may have changed; None: all.
        """
        before, current = self.states.get(view.name, []), (now.version, now.end)
        entities, departed = None, "all"
        if before and view.name not in self.incomplete and all(then.definition == now.definition for then in before):
            entities = find_changed_entities(self.store, view, [(then.version, then.end) for then in before], current)
        # Record before deleting: if this is interrupted, the next fill restores what is missing.
        self._set_states(view, [*before, now], full=entities is None)
        if entities is not None:
            found = {
                delete_missing_entities(self.store, view, (then.version, then.end), current, candidates=entities)
                for then in before
            }
            departed = next(extent for extent in ("all", "some", "none") if extent in found)
        if departed != "all":
            return departed == "some", entities
        # Never filled by this project, the record was lost, or changes are unknown: delete everything.
        self._set_states(view, [now], full=True)
        return bool(delete_view_rows(self.store, view)) or bool(before), None

    def finish(self, view: FeatureView) -> None:
        """Record that the view holds exactly its last state."""
        self._set_states(view, self.states[view.name][-1:], full=False)

    def close(self) -> None:
        """Number the fill, in the store first: a store whose number differs from the record's is fully filled."""
        self._renumber()
        self._write()

    def _set_states(self, view: FeatureView, states: list[MaterializationState], *, full: bool) -> None:
        """Record what a view may hold, and whether a full fill is under way."""
        self.states[view.name] = states
        self.incomplete = self.incomplete | {view.name} if full else self.incomplete - {view.name}
        if not self.fill_number:
            # Without a number, an emptied store would go unnoticed.
            self._renumber()
        self._write()

    def _renumber(self) -> None:
        self.fill_number = 1 + secrets.randbelow(2**31 - 1)
        _number(self.store, self.fill_number)

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["store"] != self.address or not found["number"] or found["number"] != _number(self.store):
                return
            states = {
                view: [
                    MaterializationState(state["version"], datetime.fromisoformat(state["end"]), state["definition"])
                    for state in states
                ]
                for view, states in found["views"].items()
            }
            self.fill_number, self.states, self.incomplete = found["number"], states, set(found["filling"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return

    def _write(self) -> None:
        views = {view: [state.to_json() for state in states] for view, states in self.states.items()}
        content = {"store": self.address, "number": self.fill_number, "views": views, "filling": sorted(self.incomplete)}
        with atomic_path(self.path) as unfinished:
            unfinished.write_text(json.dumps(content), encoding="utf-8")


def delete_fill_number(store: FeatureStore) -> None:
    """Delete the number of a project's last fill from Redis."""
    redis_client(store).delete(_REDIS_KEY.format(store.project))


def _number(store: FeatureStore, new: int | None = None) -> int:
    """Return the fill number of an online store, 0 if it has none; write a new one first if given."""
    if store.config.online_store.type == "redis":
        redis, key = redis_client(store), _REDIS_KEY.format(store.project)
        if new is not None:
            redis.set(key, new)
        return int(redis.get(key) or 0)
    with closing(sqlite3.connect(sqlite_path(store))) as connection:
        if new is not None:
            connection.execute(f"PRAGMA user_version = {new:d}")
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
