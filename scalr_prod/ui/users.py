# SPDX-License-Identifier: Apache-2.0
"""One user of a run: the known source history, and the events that the run samples, by the same code as runs and explanations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    id_type_of,
    source_domain_sql,
    source_item_sql,
)
from scalr_prod.duck import open_duckdb, staging_folder
from scalr_prod.errors import InputError
from scalr_prod.explain import explain_rows
from scalr_prod.generation import contexts as encoding
from scalr_prod.generation.bucket import SOURCE_TIMESTAMP, in_scoring_order, read_bucket
from scalr_prod.generation.partition import draw
from scalr_prod.hashing import bucket_of
from scalr_prod.holdout import not_held_out_sql
from scalr_prod.instants import micros, micros_of
from scalr_prod.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.explain import Explanation
    from scalr_prod.generation.partition import Tools
    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings

__all__ = ["Past", "Seen", "Translation", "past_of", "some_users", "translate"]

#: Users to pick from, source events shown of a history, and contexts translated at once.
_USERS: Final = 24
_HISTORY: Final = 50
_CONTEXTS: Final = 10
_BUCKETS: Final = 2**20


@dataclass(frozen=True)
class Seen:
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
class Past:
    """The source history of a user as known to a run.

    Attributes:
        user: The id, in the lake's type.
        events: The latest source events before the window's end, latest first; empty for a user unknown to the run.
        count: Total number of source events.
        held_out: Whether ``[experiment]`` excludes the user from synthetic events.
    """

    user: int | str
    events: Sequence[Seen]
    count: int
    held_out: bool


@dataclass(frozen=True)
class Translation:
    """A source event and the synthetic events sampled for it.

    Attributes:
        source: The source event.
        at: Time of the context (UTC).
        drawn: The synthetic events, most probable first; empty if every draw fell below ``min_lift`` or had already been
            sampled for another context.
    """

    source: Seen
    at: datetime
    drawn: Sequence[Explanation]


def some_users(settings: Settings, spec: RunSpec) -> list[tuple[str, int]]:
    """Pick users with source events in the run's window by a hash of their ids; return each with the number of these events."""
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        db.register("events", _source_events(settings, spec))
        rows = db.execute(
            f"""SELECT {USER_ID}::VARCHAR, count(*) FROM events
                WHERE {EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of
                  AND {not_held_out_sql(spec.settings, USER_ID)}
                GROUP BY {USER_ID} ORDER BY md5({USER_ID}::VARCHAR) LIMIT {_USERS}""",
            {"start": spec.start, "end": spec.end, "as_of": spec.as_of},
        ).fetchall()
    return [(str(user), int(count)) for user, count in rows]


def past_of(settings: Settings, spec: RunSpec, user: str) -> Past:
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
    user_id = _typed(events.schema, user)
    names = settings.domains.source_names
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        db.register("events", events)
        _register_titles(db, Lake.open(settings))
        rows = db.execute(
            f"""SELECT {source_domain_sql(f"e.{ITEM_ID}", names)}, coalesce(i.title, {_plain(f"e.{ITEM_ID}", names)}),
                       e.{EVENT_TIMESTAMP}, e.{EVENT_TIMESTAMP} >= $start, count(*) OVER ()
                FROM (SELECT DISTINCT {ITEM_ID}, {EVENT_TIMESTAMP} FROM events WHERE {USER_ID} = $user
                      AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of) e
                LEFT JOIN titles i USING ({ITEM_ID})
                ORDER BY e.{EVENT_TIMESTAMP} DESC, e.{ITEM_ID} LIMIT {_HISTORY}""",
            {"user": user_id, "start": spec.start, "end": spec.end, "as_of": spec.as_of},
        ).fetchall()
        assigned = not_held_out_sql(spec.settings, USER_ID)
        held_out = not db.execute(f"SELECT {assigned} FROM (SELECT $user AS {USER_ID})", {"user": user_id}).fetchone()[0]
    return Past(user_id, [Seen(*row[:4]) for row in rows], int(rows[0][4]) if rows else 0, held_out)


def translate(
    settings: Settings, spec: RunSpec, tools: Tools, user: int | str, *, before: datetime | None = None
) -> list[Translation]:
    """Sample the run's events for a user's latest contexts, latest first; events and ids are those of the run.

    If the run aligns its events with the real distribution, it may have dropped some of them.

    Args:
        settings: The project's settings.
        spec: The run.
        tools: Scorer and vocabulary, from `open_tools`.
        user: The id, in the lake's type.
        before: Only contexts before this time; default: all in the window.

    Raises:
        ScalrError: From the lake, the feature store, the scorer, or the translator's files.
    """
    bucket = int(bucket_of([user], _BUCKETS)[0])
    with staging_folder(settings, "ui") as folder, open_duckdb(settings, folder) as db:
        rows, real = read_bucket(db, settings, spec, bucket, _BUCKETS)
        rows = _latest(rows, user, before)
        if not len(rows):
            return []
        consumed = None if real is None else encoding.Consumed.of(real, tools.vocabulary)
        _, table = draw(settings, db, spec, tools, in_scoring_order(rows, spec, tools.folds), consumed)
        sources = _sources(settings, db, spec, rows)
    explained: dict[tuple[str, str, str], list[Explanation]] = {}
    for event in explain_rows(settings, spec, table) if len(table) else ():
        explained.setdefault((event.source["domain"], str(event.source["item"]), event.source["time"]), []).append(event)
    return [
        Translation(source, at, sorted(explained.get(key, ()), key=lambda event: -event.probability["published"]))
        for key, source, at in sources
    ]


def _latest(rows: pa.Table, user: int | str, before: datetime | None) -> pa.Table:
    """Return the user's latest contexts, and all others at the same time: contexts of one time never share an item."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.filter(pc.equal(rows[USER_ID], pa.scalar(user, rows[USER_ID].type)))
    times = micros_of(rows[EVENT_TIMESTAMP])
    wanted = np.ones(len(times), bool) if before is None else times < micros(before)
    if wanted.sum() > _CONTEXTS:
        wanted &= times >= np.sort(times[wanted])[-_CONTEXTS]
    return rows.filter(pa.array(wanted))


def _sources(settings: Settings, db: Any, spec: RunSpec, rows: pa.Table) -> list[tuple[tuple[str, str, str], Seen, datetime]]:
    """Return each context's source event and time, latest first, with the key of explanations: domain, item, time."""
    names = settings.domains.source_names
    db.register("contexts", rows)
    _register_titles(db, Lake.open(settings))
    selected = db.execute(
        f"""SELECT {source_domain_sql(f"e.{ITEM_ID}", names)} AS domain, {_plain(f"e.{ITEM_ID}", names)} AS item,
                   i.title, e.{SOURCE_TIMESTAMP}, e.{EVENT_TIMESTAMP}
            FROM contexts e LEFT JOIN titles i USING ({ITEM_ID})
            ORDER BY e.{EVENT_TIMESTAMP} DESC, e.{SOURCE_TIMESTAMP} DESC, e.{ITEM_ID}"""
    ).fetchall()
    return [
        ((domain, item, time.isoformat()), Seen(domain, title or item, time, time >= spec.start), at)
        for domain, item, title, time, at in selected
    ]


def _plain(key: str, names: tuple[str, ...]) -> str:
    """SQL expression for a source item's id as text, as in its event log."""
    return f"CAST({source_item_sql(key, names, 'string')} AS VARCHAR)"


def _register_titles(db: Any, lake: Lake) -> None:
    db.register("items", lake.dataset(Table.SOURCE_ITEMS))
    db.execute(f"CREATE TEMP VIEW titles AS SELECT {ITEM_ID}, any_value(title) AS title FROM items GROUP BY {ITEM_ID}")


def _source_events(settings: Settings, spec: RunSpec) -> Any:
    return Lake.open(settings).dataset(Table.SOURCE_EVENTS, version=spec.table_versions[Table.SOURCE_EVENTS])


def _typed(schema: pa.Schema, user: str) -> int | str:
    if id_type_of(schema, USER_ID) == "string":
        return user
    if not re.fullmatch(r"[+-]?\d{1,19}", user, re.ASCII) or not -(2**63) <= int(user) < 2**63:
        raise InputError(
            f"{user[:80]!r} is not a 64-bit integer, as the lake's user ids are",
            where="user",
            next_step="enter the user id as in the event log",
        )
    return int(user)
