# SPDX-License-Identifier: Apache-2.0
"""What one user bucket asks of the translator: its contexts in the window, as they were known by the run's ``as_of``."""

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

__all__ = ["SOURCE_TIMESTAMP", "ask", "context_text", "in_scoring_order", "read_bucket"]

#: When the translated source event happened; its context is asked about at ``event_timestamp``, the same or later.
SOURCE_TIMESTAMP: Final = "source_event_timestamp"
_LATEST: Final = f"{SOURCE_TIMESTAMP} DESC, {ITEM_ID}"

#: Of what a request may weigh, the share that a batch may take up.
_REQUEST_SHARE: Final = 0.5


def read_bucket(
    connection: Any, settings: Settings, spec: RunSpec, partition: int, partitions: int
) -> tuple[pa.Table, pa.Table | None]:
    """A user bucket's distinct contexts, and what its users consumed in the target domain.

    Returns:
        Contexts sorted by user, time and item (``user_id``, ``item_id``, ``event_timestamp``: the instant that is asked about,
        ``source_event_timestamp``, ``noise_key`` uint64, ``newcomer`` bool: no target event of the user can have been trained on),
        and the first time of each (user, target item) of users with source events, sorted by user and time; None where a run may
        propose consumed items.
    """
    _open_events(connection, settings, spec)
    # A hash costs more than all else that is done for a row, so each user is hashed once.
    connection.execute(f"CREATE OR REPLACE TEMP TABLE users AS SELECT DISTINCT {USER_ID} FROM {Table.SOURCE_EVENTS}")
    connection.execute(f"DELETE FROM users WHERE {user_bucket_sql(USER_ID, partitions)} <> {int(partition)}")
    bucket = f"{USER_ID} IN (FROM users)"
    # Each source event at its own time, or each user's last one as seen from the window's last instant.
    moment, last = (
        ("$end - INTERVAL 1 MICROSECOND", f"QUALIFY row_number() OVER (PARTITION BY {USER_ID} ORDER BY {_LATEST}) = 1")
        if spec.settings["generation"].get("contexts") == "users"
        else (SOURCE_TIMESTAMP, "")
    )
    asked = not_held_out_sql(spec.settings, USER_ID)
    # A causal run may not know who comes to the target domain within its window.
    before = "$start" if spec.mode == "causal" else "'infinity'::TIMESTAMPTZ"
    rows = connection.sql(
        f"""SELECT *, md5_number_lower(concat($seed, ':', {context_text(ITEM_ID)})) AS noise_key,
            {USER_ID} NOT IN (SELECT {USER_ID} FROM {Table.TARGET_EVENTS}
                WHERE {EVENT_TIMESTAMP} < {before} AND {CREATED_TIMESTAMP} <= $as_of AND {bucket}) AS newcomer
            FROM (SELECT {USER_ID}, {ITEM_ID}, {moment} AS {EVENT_TIMESTAMP}, {SOURCE_TIMESTAMP}
            FROM (SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} AS {SOURCE_TIMESTAMP} FROM {Table.SOURCE_EVENTS}
                  WHERE {EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end
                    AND {CREATED_TIMESTAMP} <= $as_of AND {bucket} AND {asked}) {last})
            ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}""",
        params={"seed": spec.seed, "start": spec.start, "end": spec.end, "as_of": spec.as_of},
    ).to_arrow_table()
    if not spec.settings["generation"]["exclude_consumed"]:
        return rows, None
    consumed = connection.sql(
        f"""SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS {EVENT_TIMESTAMP} FROM {Table.TARGET_EVENTS}
            WHERE {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of AND {bucket}
            GROUP BY {USER_ID}, {ITEM_ID} ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}""",
        params={"end": spec.end, "as_of": spec.as_of},
    ).to_arrow_table()
    return rows, consumed


def _open_events(connection: Any, settings: Settings, spec: RunSpec) -> None:
    """Make the events of both domains selectable, as they were when the run was planned."""
    from scalr_prod.growth import local_files
    from scalr_prod.lake import Lake

    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        found = lake.open_table(table, version=spec.table_versions[table])
        files = local_files(found)
        if files:  # read in place, which costs a third of a stream through pyarrow
            listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {table.value} AS FROM read_parquet([{listed}])")
        else:
            connection.register(table.value, found.to_pyarrow_dataset())


def in_scoring_order(rows: pa.Table, spec: RunSpec, folds: int) -> pa.Table:
    """Rows of `read_bucket` by parameter set, then time: neighbours in a request share the popularity of their time."""
    return rows.take(np.lexsort((micros_of(rows[EVENT_TIMESTAMP]), _fold(rows, spec, folds))))


def ask(
    settings: Settings, spec: RunSpec, vocabulary: Vocabulary, rows: pa.Table, consumed: encoding.Consumed | None, *, folds: int
) -> Iterator[Contexts]:
    """What the scorer is asked about rows of `read_bucket`, in batches: histories as of each event, read through Feast.

    Items that were forgotten since the translator was trained are never to be proposed.
    """
    from scalr_prod.feast_store import point_in_time

    joined = point_in_time(
        settings,
        rows.select([USER_ID, ITEM_ID, EVENT_TIMESTAMP]),
        ["source_user_history:item_ids", "source_user_history:event_timestamps"],
        known_by=spec.as_of,
        versions=spec.table_versions,
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
    """Target indices of items that were forgotten: int32 [F]."""
    from scalr_prod.tombstones import Tombstones

    stones = Tombstones.open(settings)
    held = stones.held(vocabulary.target_ids_all.to_pylist(), "item") if stones.items else []
    return vocabulary.target_index(held) if held else np.empty(0, np.int32)


def _fold(rows: pa.Table, spec: RunSpec, folds: int) -> NDArray[np.int32]:
    """The parameter set of each row: int32 [B]. Where nothing was learned from a user there is nothing to leave out."""
    own = EVERYBODY if spec.mode == "causal" else fold_of(rows[USER_ID].combine_chunks(), folds)
    return np.where(rows["newcomer"].to_numpy(), NEWCOMERS, own).astype(np.int32)


def context_text(source_item: str) -> str:
    """SQL: a context as text that no other context has; lengths keep ids that hold the separator apart."""
    return (
        f"epoch_us({EVENT_TIMESTAMP}), ':', length(CAST({USER_ID} AS VARCHAR)), ':', {USER_ID}, "
        f"':', length(CAST({source_item} AS VARCHAR)), ':', {source_item}"
    )
