# SPDX-License-Identifier: Apache-2.0
"""Encoding of source events, their histories and consumed items as `Contexts`.

All steps work on whole columns; there is no Python loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US, column_to_micros
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.translator import PADDING, ConsumedItems
from scalr_prod.workspace import has_consent_sql, not_held_out_sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.ledger import RunWindow
    from scalr_prod.translator import Contexts, ItemVocabulary


#: History columns of the point-in-time join.
HISTORY_ITEMS: Final = "source_user_history__item_ids"
HISTORY_TIMES: Final = "source_user_history__event_timestamps"


def count_contexts(
    connection: DuckDBPyConnection, settings: Mapping[str, Any], window: RunWindow, home: Path
) -> tuple[int, int]:
    """Return how many contexts a run translates, and of how many users.

    Args:
        connection: A DuckDB connection in which ``events`` are the source events.
        settings: The settings of the run's specification.
        window: The run's window.
        home: The project's home.
    """
    each = "user_id" if settings["generation"]["contexts"] == "users" else "user_id, item_id, event_timestamp"
    row = connection.execute(
        f"""SELECT count(*), count(DISTINCT user_id) FROM (SELECT DISTINCT {each} FROM events
           WHERE event_timestamp >= $start AND event_timestamp < $end AND created_timestamp <= $as_of
           AND {not_held_out_sql(settings, "user_id")} AND {has_consent_sql(home, settings, "user_id")})""",
        {"start": window.start, "end": window.end, "as_of": window.as_of},
    ).fetchall()[0]
    return int(row[0]), int(row[1])


def encode_histories(
    joined: pa.Table, vocabulary: ItemVocabulary, length: int, *, source_times: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Encode histories as left-padded index arrays, each with its own translated event last.

    Among events with equal times its position is arbitrary, or it was truncated: it is moved to the end, or added there.

    Args:
        joined: B contexts (``item_id``, ``event_timestamp``) with the list columns of their histories, oldest event first.
        vocabulary: The translator's vocabulary.
        length: History length L.
        source_times: int64 [B]. Time of each translated event, microseconds; default: ``event_timestamp``.

    Returns:
        int32 [B, L] source indices and float32 [B, L] ages in days before the translated event.
    """
    rows = len(joined)
    own_item = _combine_chunks(joined[ITEM_ID])
    source_times = column_to_micros(joined[EVENT_TIMESTAMP]) if source_times is None else source_times
    items, counts = _flatten_lists(joined[HISTORY_ITEMS])
    times = column_to_micros(_flatten_lists(joined[HISTORY_TIMES])[0])
    row = np.repeat(np.arange(rows), counts)
    position = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)

    is_own = _equal_mask(items, own_item.take(_as_arrow(row))) & (times == source_times[row])
    own_position = np.full(rows, -1)
    own_position[row[is_own]] = position[is_own]  # of several matches the last assignment wins: the one closest to the end
    # Events after the moved one, and all events of a history that lacks it, shift left by one.
    steps = np.where(own_position[row] < 0, 1, (position > own_position[row]).astype(np.int64))
    column = length - counts[row] + position - steps
    inside = (column >= 0) & ~((own_position[row] >= 0) & (position == own_position[row]))

    indices = np.full((rows, length), PADDING, dtype=np.int32)
    ages = np.zeros((rows, length), dtype=np.float32)
    indices[row[inside], column[inside]] = vocabulary.source_index(items)[inside]
    ages[row[inside], column[inside]] = (source_times[row] - times)[inside] / DAY_US
    indices[:, -1] = vocabulary.source_index(own_item)
    return indices, ages


@dataclass(frozen=True)
class ConsumptionIndex:
    """Look up which target items each user had consumed by a time; a context must not propose these.

    Attributes:
        users: Distinct users [U].
        starts: int64 [U + 1]. Start of each user's items in the arrays below; the last element is their end.
        times: int64 [N]. First time of consumption, ascending within a user.
        items: int32 [N]. Target indices.
    """

    users: pa.Array
    starts: NDArray[np.int64]
    times: NDArray[np.int64]
    items: NDArray[np.int32]

    @classmethod
    def from_rows(cls, rows: pa.Table, vocabulary: ItemVocabulary) -> ConsumptionIndex:
        """Build it from (user, item, first time) sorted by user and time, dropping items unknown to the translator."""
        index = vocabulary.target_index(_combine_chunks(rows[ITEM_ID]))
        known = index >= 0
        rows = rows.filter(_as_arrow(known))
        encoded = _combine_chunks(rows[USER_ID]).dictionary_encode()  # in order of appearance, which is sorted
        users = encoded.dictionary
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        starts = np.searchsorted(codes, np.arange(len(users) + 1))
        return cls(users, starts.astype(np.int64), column_to_micros(rows[EVENT_TIMESTAMP]), index[known].astype(np.int32))

    def items_before(self, users: pa.Array, times: NDArray[np.int64]) -> ConsumedItems:
        """Return, for each context, the items that its user had consumed strictly before its time."""
        import pyarrow.compute as pc

        code = pc.fill_null(pc.index_in(users, value_set=self.users), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        known = code >= 0
        # One sorted key of (user, rank of time) answers all lookups with a single search.
        distinct = np.unique(self.times)
        width = len(distinct) + 1
        owner = np.repeat(np.arange(len(self.users)), np.diff(self.starts))
        keys = owner * width + np.searchsorted(distinct, self.times)
        positions = np.searchsorted(keys, code * width + np.searchsorted(distinct, times, side="left"), side="left")
        begins = self.starts[np.maximum(code, 0)]
        return ConsumedItems(self.items, begins, np.where(known, positions - begins, 0))


def iter_context_batches(
    contexts: Contexts, *, always_excluded: NDArray[np.int32], batch_size: int, max_bytes: int
) -> Iterator[Contexts]:
    """Yield contexts in order, ``batch_size`` at a time, or fewer where long exclusion lists would make a request too large.

    Args:
        contexts: B contexts, each with the items to exclude for it.
        always_excluded: int32 [F]. Target indices to exclude for all contexts.
        batch_size: Maximum number of contexts in a batch.
        max_bytes: Upper limit of a batch's arrays in bytes.
    """
    fixed_bytes = 8 * contexts.history_items.shape[1] + 28 + 4 * len(always_excluded)
    start = 0
    while start < len(contexts):
        batch = contexts.slice(start, start + batch_size)
        while len(batch) > 1 and len(batch) * (fixed_bytes + 4 * _exclude_width(batch)) > max_bytes:
            batch = batch.slice(0, len(batch) // 2)
        always = np.broadcast_to(always_excluded, (len(batch), len(always_excluded)))
        yield replace(batch, exclude=np.hstack([batch.exclude_matrix(), always]))
        start += len(batch)


def _exclude_width(contexts: Contexts) -> int:
    exclude = contexts.exclude
    return int(exclude.count.max(initial=0)) if isinstance(exclude, ConsumedItems) else exclude.shape[1]


def _combine_chunks(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flatten_lists(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return all elements of a list column, and the number of elements per row (0 for a null)."""
    import pyarrow.compute as pc

    lists = _combine_chunks(column)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten(), counts


def _equal_mask(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    return pc.equal(left, right.cast(left.type)).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _as_arrow(array: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array(array)
