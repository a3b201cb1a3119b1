# SPDX-License-Identifier: Apache-2.0
"""One user of a run: the known source history, and the events that the run samples, by the same code as runs and explanations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.config import GenerationSettings
from scalr_prod.core.hashing import hash_bucket
from scalr_prod.core.timestamps import column_to_micros, to_micros
from scalr_prod.errors import InputError
from scalr_prod.generation import SOURCE_TIMESTAMP, ConsumptionIndex, read_contexts, sample_events, sort_for_scoring
from scalr_prod.lake import Lake
from scalr_prod.operations import explain_rows
from scalr_prod.schemas import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    id_type_of,
    source_domain_sql,
    source_item_id_sql,
)
from scalr_prod.workspace import has_consent_sql, not_held_out_sql, open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings
    from scalr_prod.generation import WorkerSession
    from scalr_prod.ledger import RunSpec
    from scalr_prod.operations import Explanation


#: Users to pick from, source events shown of a history, and contexts translated at once.
_MAX_USERS: Final = 24
_MAX_HISTORY: Final = 50
_MAX_CONTEXTS: Final = 10
_HASH_BUCKETS: Final = 2**20


@dataclass(frozen=True)
class SourceEvent:
    """A source event known to the run.

    Attributes:
        domain: Its source domain.
        item: Its title, or its id without one.
        time: When it happened (UTC).
        inside: Whether it is in the run's window.
    """

    domain: str
    item: str
    time: datetime
    inside: bool


@dataclass(frozen=True)
class UserHistory:
    """The source history of a user as known to a run.

    Attributes:
        user: The id, in the lake's type.
        events: The latest source events before the window's end, latest first; empty for a user unknown to the run.
        count: Total number of source events.
        held_out: Whether ``[experiment]`` excludes the user from synthetic events.
    """

    user: int | str
    events: Sequence[SourceEvent]
    count: int
    held_out: bool


@dataclass(frozen=True)
class TranslatedContext:
    """A source event and the synthetic events sampled for it.

    Attributes:
        source: The source event.
        at: Time of the context (UTC).
        drawn: The synthetic events, most probable first; empty if every draw fell below ``min_lift`` or had already been
            sampled for another context.
    """

    source: SourceEvent
    at: datetime
    drawn: Sequence[Explanation]


def with_other_settings(spec: RunSpec, changed: Mapping[str, str]) -> RunSpec:
    """Return a run with other settings of ``[generation]``, to draw what it would then sample; its id stays.

    Args:
        spec: The run.
        changed: Setting → value as text.

    Raises:
        InputError: A value is not allowed.
    """
    from pydantic import ValidationError

    generation = spec.settings["generation"]
    try:
        chosen = GenerationSettings.model_validate(dict(changed))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['input']!r}: {first['msg']}",
            where=str(first["loc"][0]),
            next_step="enter another value, or none for the run's",
        ) from error
    return replace(
        spec, settings={**spec.settings, "generation": {**generation, **{name: getattr(chosen, name) for name in changed}}}
    )


def pick_users(settings: Settings, spec: RunSpec) -> list[tuple[str, int]]:
    """Pick users with source events in the run's window by a hash of their ids; return each with the number of these events."""
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        db.register("events", _source_events(settings, spec))
        rows = db.execute(
            f"""SELECT {USER_ID}::VARCHAR, count(*) FROM events
                WHERE {EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of
                  AND {not_held_out_sql(spec.settings, USER_ID)}
                  AND {has_consent_sql(settings.home, spec.settings, USER_ID)}
                GROUP BY {USER_ID} ORDER BY md5({USER_ID}::VARCHAR) LIMIT {_MAX_USERS}""",
            {"start": spec.start, "end": spec.end, "as_of": spec.as_of},
        ).fetchall()
    return [(str(user), int(count)) for user, count in rows]


def read_user_history(settings: Settings, spec: RunSpec, user: str) -> UserHistory:
    """Read the source history of a user as known to a run.

    Args:
        settings: The project's settings.
        spec: The run.
        user: The id as text.

    Raises:
        InputError: The lake's ids are integers and this is not one.
        LakeError: The table version that the run read is gone.
    """
    events = _source_events(settings, spec)
    user_id = _parse_user_id(events.schema, user)
    names = settings.domains.source_names
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        db.register("events", events)
        register_titles(db, Lake.open(settings), Table.SOURCE_ITEMS, "titles")
        rows = db.execute(
            f"""SELECT {source_domain_sql(f"e.{ITEM_ID}", names)}, coalesce(i.title, {_source_item_text_sql(f"e.{ITEM_ID}", names)}),
                       e.{EVENT_TIMESTAMP}, e.{EVENT_TIMESTAMP} >= $start, count(*) OVER ()
                FROM (SELECT DISTINCT {ITEM_ID}, {EVENT_TIMESTAMP} FROM events WHERE {USER_ID} = $user
                      AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of) e
                LEFT JOIN titles i USING ({ITEM_ID})
                ORDER BY e.{EVENT_TIMESTAMP} DESC, e.{ITEM_ID} LIMIT {_MAX_HISTORY}""",
            {"user": user_id, "start": spec.start, "end": spec.end, "as_of": spec.as_of},
        ).fetchall()
        assigned = not_held_out_sql(spec.settings, USER_ID)
        held_out = not db.execute(f"SELECT {assigned} FROM (SELECT $user AS {USER_ID})", {"user": user_id}).fetchall()[0][0]
    return UserHistory(user_id, [SourceEvent(*row[:4]) for row in rows], int(rows[0][4]) if rows else 0, held_out)


def translate_user(
    settings: Settings, spec: RunSpec, session: WorkerSession, user: int | str, *, before: datetime | None = None
) -> list[TranslatedContext]:
    """Sample the run's events for a user's latest contexts, latest first; events and ids are those of the run.

    If the run aligns its events with the real distribution, it may have dropped some of them.

    Args:
        settings: The project's settings.
        spec: The run.
        session: Scorer and vocabulary, from `open_session`.
        user: The id, in the lake's type.
        before: Only contexts before this time; default: all in the window.

    Raises:
        ScalrError: From the lake, the feature store, the scorer, or the translator's files.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    bucket = int(hash_bucket([user], _HASH_BUCKETS)[0])
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        rows, real = read_contexts(db, settings, spec, bucket, _HASH_BUCKETS)
        rows = rows.filter(pc.equal(rows[USER_ID], pa.scalar(user, rows[USER_ID].type)))
        latest = _latest_contexts(rows, before)
        if not len(latest):
            return []
        if real is None:  # items may repeat
            rows, consumed = latest, None
        else:  # an event of an earlier context takes the place of a later one of the same item
            rows = rows.filter(pc.less_equal(rows[EVENT_TIMESTAMP], pc.max(latest[EVENT_TIMESTAMP])))
            consumed = ConsumptionIndex.from_rows(real, session.vocabulary)
        _, table = sample_events(settings, db, spec, session, sort_for_scoring(rows, spec, session.folds), consumed)
        table = table.filter(pc.greater_equal(table[EVENT_TIMESTAMP], pc.min(latest[EVENT_TIMESTAMP])))
        sources = _context_sources(settings, db, spec, latest)
    explained: dict[tuple[str, str, str], list[Explanation]] = {}
    for event in explain_rows(settings, spec, table) if len(table) else ():
        explained.setdefault((event.source["domain"], str(event.source["item"]), event.source["time"]), []).append(event)
    return [
        TranslatedContext(source, at, sorted(explained.get(key, ()), key=lambda event: -event.probability["published"]))
        for key, source, at in sources
    ]


def _latest_contexts(rows: pa.Table, before: datetime | None) -> pa.Table:
    """Return the latest contexts, and all others at the same time: contexts of one time never share an item."""
    import pyarrow as pa

    times = column_to_micros(rows[EVENT_TIMESTAMP])
    wanted = np.ones(len(times), bool) if before is None else times < to_micros(before)
    if wanted.sum() > _MAX_CONTEXTS:
        wanted &= times >= np.sort(times[wanted])[-_MAX_CONTEXTS]
    return rows.filter(pa.array(wanted))


def _context_sources(
    settings: Settings, db: DuckDBPyConnection, spec: RunSpec, rows: pa.Table
) -> list[tuple[tuple[str, str, str], SourceEvent, datetime]]:
    """Return each context's source event and time, latest first, with the key of explanations: domain, item, time."""
    names = settings.domains.source_names
    db.register("contexts", rows)
    register_titles(db, Lake.open(settings), Table.SOURCE_ITEMS, "titles")
    selected = db.execute(
        f"""SELECT {source_domain_sql(f"e.{ITEM_ID}", names)} AS domain, {_source_item_text_sql(f"e.{ITEM_ID}", names)} AS item,
                   i.title, e.{SOURCE_TIMESTAMP}, e.{EVENT_TIMESTAMP}
            FROM contexts e LEFT JOIN titles i USING ({ITEM_ID})
            ORDER BY e.{EVENT_TIMESTAMP} DESC, e.{SOURCE_TIMESTAMP} DESC, e.{ITEM_ID}"""
    ).fetchall()
    return [
        ((domain, item, time.isoformat()), SourceEvent(domain, title or item, time, time >= spec.start), at)
        for domain, item, title, time, at in selected
    ]


def _source_item_text_sql(key: str, names: tuple[str, ...]) -> str:
    """SQL expression for a source item's id as text, as in its event log."""
    return f"CAST({source_item_id_sql(key, names, 'string')} AS VARCHAR)"


def register_titles(db: DuckDBPyConnection, lake: Lake, table: Table, name: str) -> None:
    """Create a temporary view ``name`` with the id and the title of each item of a table of items."""
    db.register(f"{name}_rows", lake.dataset(table))
    db.execute(f"CREATE TEMP VIEW {name} AS SELECT {ITEM_ID}, any_value(title) AS title FROM {name}_rows GROUP BY {ITEM_ID}")


def _source_events(settings: Settings, spec: RunSpec) -> Any:
    return Lake.open(settings).dataset(Table.SOURCE_EVENTS, version=spec.table_versions[Table.SOURCE_EVENTS])


def _parse_user_id(schema: pa.Schema, user: str) -> int | str:
    if id_type_of(schema, USER_ID) == "string":
        return user
    if not re.fullmatch(r"[+-]?\d{1,19}", user, re.ASCII) or not -(2**63) <= int(user) < 2**63:
        raise InputError(
            f"{user[:80]!r} is not a 64-bit integer, as the lake's user ids are",
            where="user",
            next_step="enter the user id as in the event log",
        )
    return int(user)
