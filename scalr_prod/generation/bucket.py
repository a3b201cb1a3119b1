# SPDX-License-Identifier: Apache-2.0
"""Queries for a run's contexts: users of the window, as known by its ``as_of``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.generation import contexts as encoding
from scalr_prod.hashing import fold_of, user_bucket_sql
from scalr_prod.holdout import not_held_out_sql
from scalr_prod.instants import micros_of
from scalr_prod.translator.contexts import EVERYBODY, NEWCOMERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings
    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.versions import Vocabulary

__all__ = [
    "CHOSEN",
    "SOURCE_TIMESTAMP",
    "ask",
    "choose_users",
    "consumed_of",
    "context_text",
    "contexts_of",
    "events_of",
    "in_scoring_order",
    "read_bucket",
]

#: When the translated source event happened; its context is translated as of ``event_timestamp``, the same time or later.
SOURCE_TIMESTAMP: Final = "source_event_timestamp"
_LATEST: Final = f"{SOURCE_TIMESTAMP} DESC, {ITEM_ID}"

#: The table of users to translate, and SQL conditions on what is read for them.
CHOSEN: Final = "chosen_users"
_OF_CHOSEN: Final = f"{USER_ID} IN (SELECT {USER_ID} FROM {CHOSEN})"
_IN_WINDOW: Final = f"{EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of"

#: Share of the maximum request size that a batch may take.
_REQUEST_SHARE: Final = 0.5


def read_bucket(
    connection: Any, settings: Settings, spec: RunSpec, bucket: int, buckets: int
) -> tuple[pa.Table, pa.Table | None]:
    """Return the distinct contexts of some of the run's users, and what these users consumed in the target domain.

    Args:
        connection: A DuckDB connection.
        settings: The project's settings.
        spec: The run.
        bucket: Users whose id hashes to this bucket, see `hashing.bucket_of`.
        buckets: Number of buckets.

    Returns:
        Contexts sorted by user, time and item (``user_id``, ``item_id``, ``event_timestamp``: the time to predict for,
        ``source_event_timestamp``, ``noise_key`` uint64, ``newcomer`` bool: no target event of the user can be in the training data);
        and the first time of each (user, target item), sorted by user and time, or None if a run may propose consumed items.
    """
    choose_users(connection, settings, spec, f"{user_bucket_sql(USER_ID, buckets)} = {int(bucket)}" if buckets > 1 else "true")
    rows = contexts_of(connection, spec).to_arrow_table()
    consumed = consumed_of(connection, spec)
    return rows, None if consumed is None else consumed.to_arrow_table()


def choose_users(connection: Any, settings: Settings, spec: RunSpec, among: str = "true") -> None:
    """Create the table `CHOSEN` of the users whose contexts the run translates.

    Its columns are ``user_id``, ``contexts`` and ``events`` (both upper bounds of distinct contexts), ``newcomer``.

    Args:
        connection: A DuckDB connection; afterwards it has views of both domains' events at the run's versions.
        settings: The project's settings.
        spec: The run.
        among: An SQL condition on ``user_id``.

    Raises:
        LakeError: A table cannot be read.
    """
    _open_events(connection, settings, spec)
    contexts = "1" if _of_users(spec) else "count(*)"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE users AS SELECT {USER_ID}, {contexts} AS contexts, count(*) AS events
            FROM {Table.SOURCE_EVENTS} WHERE {_IN_WINDOW} GROUP BY {USER_ID}""",
        _used(spec, _IN_WINDOW),
    )
    # A causal run must not know who joins the target domain within its window.
    before = "$start" if spec.mode == "causal" else "'infinity'::TIMESTAMPTZ"
    learned = f"{EVENT_TIMESTAMP} < {before} AND {CREATED_TIMESTAMP} <= $as_of"
    # Hashing dominates the cost per row: hash each user once, which a condition in the query above would not.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {CHOSEN} AS
            SELECT *, {USER_ID} NOT IN (SELECT {USER_ID} FROM {Table.TARGET_EVENTS} WHERE {learned}) AS newcomer
            FROM users WHERE {among} AND {not_held_out_sql(spec.settings, USER_ID)}""",
        _used(spec, learned),
    )


def events_of(connection: Any, spec: RunSpec, column: str) -> Any:
    """Return the window's source events of `CHOSEN` users, unordered, each with a column of `CHOSEN`: a DuckDB relation.

    Args:
        connection: The DuckDB connection of `choose_users`.
        spec: The run.
        column: A column of `CHOSEN`.
    """
    query = f"""SELECT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}, {column}
        FROM {Table.SOURCE_EVENTS} JOIN {CHOSEN} USING ({USER_ID}) WHERE {_IN_WINDOW}"""
    return connection.sql(query, params=_used(spec, query))


def contexts_of(connection: Any, spec: RunSpec, *columns: str, events: str | None = None) -> Any:
    """Return the distinct contexts of `CHOSEN` users, as `read_bucket` returns them: a DuckDB relation.

    Args:
        connection: The DuckDB connection of `choose_users`.
        spec: The run.
        columns: Further columns of `CHOSEN`.
        events: A table with `events_of` some users; default: all users.
    """
    source = events or f"{Table.SOURCE_EVENTS} WHERE {_IN_WINDOW} AND {_OF_CHOSEN}"
    # Each source event at its own time, or each user's latest one as of the window's last instant.
    moment, last = (
        ("$end - INTERVAL 1 MICROSECOND", f"QUALIFY row_number() OVER (PARTITION BY {USER_ID} ORDER BY {_LATEST}) = 1")
        if _of_users(spec)
        else (SOURCE_TIMESTAMP, "")
    )
    wanted = ", ".join((USER_ID, ITEM_ID, EVENT_TIMESTAMP, SOURCE_TIMESTAMP, "noise_key", "newcomer", *columns))
    query = f"""SELECT {wanted}
        FROM (SELECT *, md5_number_lower(concat($seed, ':', {context_text(ITEM_ID)})) AS noise_key
            FROM (SELECT {USER_ID}, {ITEM_ID}, {moment} AS {EVENT_TIMESTAMP}, {SOURCE_TIMESTAMP}
                FROM (SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} AS {SOURCE_TIMESTAMP} FROM {source}) {last}))
        JOIN {CHOSEN} USING ({USER_ID}) ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"""
    return connection.sql(query, params=_used(spec, query))


def consumed_of(connection: Any, spec: RunSpec, *columns: str) -> Any:
    """Return what `CHOSEN` users consumed, as `read_bucket` does, or None: a DuckDB relation; arguments as in `contexts_of`."""
    if not spec.settings["generation"]["exclude_consumed"]:
        return None
    wanted = ", ".join((USER_ID, ITEM_ID, EVENT_TIMESTAMP, *columns))
    query = f"""SELECT {wanted}
        FROM (SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS {EVENT_TIMESTAMP} FROM {Table.TARGET_EVENTS}
            WHERE {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of AND {_OF_CHOSEN} GROUP BY {USER_ID}, {ITEM_ID})
        JOIN {CHOSEN} USING ({USER_ID}) ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"""
    return connection.sql(query, params=_used(spec, query))


def _of_users(spec: RunSpec) -> bool:
    return bool(spec.settings["generation"].get("contexts") == "users")


def _used(spec: RunSpec, query: str) -> dict[str, Any]:
    """Return the run's values that a query refers to; DuckDB rejects unused parameters."""
    known = {"seed": spec.seed, "start": spec.start, "end": spec.end, "as_of": spec.as_of}
    return {name: value for name, value in known.items() if f"${name}" in query}


def _open_events(connection: Any, settings: Settings, spec: RunSpec) -> None:
    """Register the events of both domains as views, at the versions the run was planned on."""
    from scalr_prod.duck import view_of
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        view_of(connection, table.value, lake.open_table(table, version=spec.table_versions[table]))


def in_scoring_order(rows: pa.Table, spec: RunSpec, folds: int) -> pa.Table:
    """Sort rows of `read_bucket` by parameter set, then time, so that the rows of a request share item popularity."""
    return rows.take(np.lexsort((micros_of(rows[EVENT_TIMESTAMP]), _fold(rows, spec, folds))))


def ask(
    settings: Settings,
    spec: RunSpec,
    vocabulary: Vocabulary,
    rows: pa.Table,
    consumed: encoding.Consumed | None,
    *,
    folds: int,
    store: Any = None,
    within: Any = None,
) -> Iterator[Contexts]:
    """Yield the scorer's input for rows of `read_bucket` in batches, with histories as of each event from Feast.

    Items erased since the translator was trained are excluded. ``store`` and ``within`` are an open feature store and DuckDB
    connection, see `point_in_time`.
    """
    from scalr_prod.feast_store import point_in_time

    joined = point_in_time(
        settings,
        rows.select([USER_ID, ITEM_ID, EVENT_TIMESTAMP]),
        ["source_user_history:item_ids", "source_user_history:event_timestamps"],
        known_by=spec.as_of,
        versions=spec.table_versions,
        store=store,
        within=within,
    )
    ends = micros_of(rows[SOURCE_TIMESTAMP])
    return encoding.batches(
        encoding.encode_histories(joined, vocabulary, spec.settings["histories"]["length"], own_time=ends),
        ends=ends,
        times=micros_of(rows[EVENT_TIMESTAMP]),
        folds=_fold(rows, spec, folds),
        noise_keys=rows["noise_key"].to_numpy().view(np.int64),
        consumed=consumed,
        users=rows[USER_ID].combine_chunks(),
        never=_forgotten(settings, vocabulary),
        size=settings.generation.batch_size,
        most_bytes=int(settings.serving.max_request_mb * 2**20 * _REQUEST_SHARE),
    )


def _forgotten(settings: Settings, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Return the target indices of erased items: int32 [F]."""
    from scalr_prod.tombstones import Tombstones

    stones = Tombstones.open(settings)
    held = stones.held(vocabulary.target_ids_all.to_pylist(), "item") if stones.items else []
    return vocabulary.target_index(held) if held else np.empty(0, np.int32)


def _fold(rows: pa.Table, spec: RunSpec, folds: int) -> NDArray[np.int32]:
    """Return the parameter set of each row: int32 [B]. A user whom nothing was learned from has no fold to leave out."""
    own = EVERYBODY if spec.mode == "causal" else fold_of(rows[USER_ID].combine_chunks(), folds)
    return np.where(rows["newcomer"].to_numpy(), NEWCOMERS, own).astype(np.int32)


def context_text(source_item: str) -> str:
    """Return SQL for a context's unique text; lengths separate ids that contain the separator."""
    return (
        f"epoch_us({EVENT_TIMESTAMP}), ':', length(CAST({USER_ID} AS VARCHAR)), ':', {USER_ID}, "
        f"':', length(CAST({source_item} AS VARCHAR)), ':', {source_item}"
    )
