# SPDX-License-Identifier: Apache-2.0
"""What each view of the online store was filled from, and whether the store still is the one that was filled.

The record is a file beside the repository. A fill that was cut off may have written rows: until one has ended, all states since the last
one that did are kept. A fill of a whole view that was cut off left it empty or partial: until one has ended, every fill of it is whole. The
store itself bears the number of the last fill: one that was emptied, or brought back from an older copy, bears another, and is filled anew.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from scalr_prod.feast_store.changes import changed_entities
from scalr_prod.feast_store.departed import empty_view, forget_departed, redis_of, sqlite_of
from scalr_prod.jsonable import Jsonable
from scalr_prod.whole import whole

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from feast import FeatureStore, FeatureView

    from scalr_prod.settings import Settings

__all__ = ["Record", "State", "definition_of", "forget_number"]

#: Beside what Feast keeps there.
_REDIS_KEY: Final = "scalr:filled:{}"


@dataclass(frozen=True)
class State(Jsonable):
    """What a view was filled from.

    Attributes:
        version: Version of its table; None: it is no Delta table.
        end: Up to this event time.
        definition: See `definition_of`.
    """

    version: int | None
    end: datetime
    definition: str


def definition_of(view: FeatureView) -> str:
    """A hash of what decides which columns are written of an entity, and of when the view was registered."""
    source = view.batch_source
    content = [
        str(view.created_timestamp),
        [[field.name, str(field.dtype)] for field in [*view.entity_columns, *view.features]],
        [source.timestamp_field, source.created_timestamp_column, dict(source.field_mapping), getattr(source, "path", None)],
        [dict(view.tags), dict(source.tags)],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def was_filled(settings: Settings) -> bool:
    """Whether the project's online store was ever filled from here."""
    return _path(settings).is_file()


def _path(settings: Settings) -> Path:
    return settings.feast_repo / ".materialized.json"


class Record:
    """The record of one project's online store.

    Attributes:
        states: By view, what it may have been filled from.
        filling: Views whose fill under way, or cut off, is whole: nothing is known of what they hold.
    """

    def __init__(self, settings: Settings, store: FeatureStore) -> None:
        self.path: Path = _path(settings)
        self.store = store
        address = json.dumps([store.project, store.config.online_store.model_dump(mode="json")], sort_keys=True)
        # The address may hold a password.
        self.address = hashlib.sha256(address.encode()).hexdigest()
        self.number = 0
        self.states: dict[str, list[State]] = {}
        self.filling: set[str] = set()
        self._read()

    def begin(self, view: FeatureView, now: State) -> tuple[bool, pa.Table | None]:
        """Delete what the view's table no longer gives.

        Returns:
            Whether anything was deleted; and the keys of the entities whose rows may be others than those that are there, None:
            all.
        """
        before, latter = self.states.get(view.name, []), (now.version, now.end)
        entities, departed = None, "all"
        if before and view.name not in self.filling and all(then.definition == now.definition for then in before):
            entities = changed_entities(self.store, view, [(then.version, then.end) for then in before], latter)
        # Before anything is deleted: whatever cuts this off, the next fill writes what is missing then.
        self._note(view, [*before, now], whole=entities is None)
        if entities is not None:
            found = {forget_departed(self.store, view, (then.version, then.end), latter, among=entities) for then in before}
            departed = next(one for one in ("all", "some", "none") if one in found)
        if departed != "all":
            return departed == "some", entities
        # Never filled from here, or the record was lost, or nothing can be told apart: whatever is there goes.
        self._note(view, [now], whole=True)
        return bool(empty_view(self.store, view)) or bool(before), None

    def finish(self, view: FeatureView) -> None:
        """The view holds what its last state gives, and nothing else."""
        self._note(view, self.states[view.name][-1:], whole=False)

    def close(self) -> None:
        """Number the fill, in the store first: a store whose number the record does not know is filled anew."""
        self._renumber()
        self._write()

    def _note(self, view: FeatureView, states: list[State], *, whole: bool) -> None:
        """Write down what a view may hold, and whether its fill is whole."""
        self.states[view.name] = states
        self.filling = self.filling | {view.name} if whole else self.filling - {view.name}
        if not self.number:
            # An unnumbered store cannot be told from one that was emptied.
            self._renumber()
        self._write()

    def _renumber(self) -> None:
        self.number = 1 + secrets.randbelow(2**31 - 1)
        _number(self.store, self.number)

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["store"] != self.address or not found["number"] or found["number"] != _number(self.store):
                return
            states = {
                view: [State(one["version"], datetime.fromisoformat(one["end"]), one["definition"]) for one in states]
                for view, states in found["views"].items()
            }
            self.number, self.states, self.filling = found["number"], states, set(found["filling"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return

    def _write(self) -> None:
        views = {view: [state.to_json() for state in states] for view, states in self.states.items()}
        content = {"store": self.address, "number": self.number, "views": views, "filling": sorted(self.filling)}
        with whole(self.path) as unfinished:
            unfinished.write_text(json.dumps(content), encoding="utf-8")


def forget_number(store: FeatureStore) -> None:
    """Take the number of a project's last fill out of Redis."""
    redis_of(store).delete(_REDIS_KEY.format(store.project))


def _number(store: FeatureStore, new: int | None = None) -> int:
    """The number that an online store bears, 0 where it bears none; a new one is written first."""
    if store.config.online_store.type == "redis":
        redis, key = redis_of(store), _REDIS_KEY.format(store.project)
        if new is not None:
            redis.set(key, new)
        return int(redis.get(key) or 0)
    with closing(sqlite3.connect(sqlite_of(store))) as connection:
        if new is not None:
            connection.execute(f"PRAGMA user_version = {new:d}")
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
