# SPDX-License-Identifier: Apache-2.0
"""Events of one domain as integer arrays, ordered by user and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.core.hashing import stable_hash
from scalr_prod.core.id_index import IdIndex, sorted_unique
from scalr_prod.core.memmap import iter_row_slices, spill_arrays
from scalr_prod.core.timestamps import column_to_micros
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, RECOMMENDED_BY, USER_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray


#: Approximate number of events read or sorted at a time; in a log of more than `_MAX_PASSES` times as many, a fixed share of it.
_ROWS_AT_ONCE, _MAX_PASSES = 500_000, 64


@dataclass(frozen=True)
class DomainEvents:
    """One domain's events, ordered by (user, time, hash of the item).

    Attributes:
        user: int32 [M]. Position in `EventLog.users`.
        item: int32 [M]. Position in ``ids``.
        time: int64 [M]. Microseconds since the epoch.
        ids: The item ids, sorted.
        weight: float32 [M]. Weight of each event, see `EventWeighting`; None: 1 each.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    ids: pa.Array
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class EventWeighting:
    """How much each event weighs in training.

    Attributes:
        types: Weight of each event type; empty: 1 each.
        drops_recommended: Whether events that a recommendation led to weigh 0.
    """

    types: Mapping[str, float] = field(default_factory=dict)
    drops_recommended: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that decide an event's weight; none: every event weighs 1."""
        return (*(("event_type",) if self.types else ()), *((RECOMMENDED_BY,) if self.drops_recommended else ()))

    def weigh(self, events: pa.Table) -> NDArray[np.float32]:
        """Return the weight of each event of a table with these columns, float32 [M]."""
        weight = _type_weights(events["event_type"], self.types) if self.types else np.ones(len(events), dtype=np.float32)
        if self.drops_recommended:
            weight = np.where(events[RECOMMENDED_BY].is_null().to_numpy(), weight, np.float32(0))
        return weight


def distinct_ids(reader: pa.RecordBatchReader) -> list[pa.Array]:
    """Return the distinct values of each column, ascending.

    Raises:
        InputError: The strings take more than 2 GiB in total.
    """
    import pyarrow as pa

    merged = [pa.array([], column.type) for column in reader.schema]
    new: list[list[pa.Array]] = [[] for _ in merged]
    for table in _as_tables(reader):
        for column_number, column in enumerate(table.columns):
            new[column_number].append(sorted_unique(column))
            # Merge only when the new values are at least as many as those found, so that each value is merged a few times only.
            if sum(len(array) for array in new[column_number]) >= max(_ROWS_AT_ONCE, len(merged[column_number])):
                merged[column_number], new[column_number] = (
                    sorted_unique(pa.chunked_array([merged[column_number], *new[column_number]])),
                    [],
                )
    return [sorted_unique(pa.chunked_array([former, *later])) for former, later in zip(merged, new, strict=True)]


def load_events(
    batches: Iterable[pa.RecordBatch], users: pa.Array, ids: pa.Array, weighting: EventWeighting, folder: Path | None
) -> tuple[DomainEvents, NDArray[np.int64]]:
    """Load events into arrays on disk, ordered by user, time and hash of the item.

    Args:
        batches: ``user_id``, ``item_id``, ``event_timestamp``, ``created_timestamp``, and the columns of the weighting.
        users: Ids of all users, sorted.
        ids: Ids of the domain's items, sorted.
        weighting: Weights of events.
        folder: Folder of the arrays' files, see `core.memmap`.

    Returns:
        The events, and when each became known: int64 [M], microseconds. All arrays are on disk.
    """
    is_weighted = bool(weighting.columns)
    dtypes = [np.int32, np.int32, np.int64, np.int64, *([np.float32] if is_weighted else [])]
    indexes = {USER_ID: IdIndex(users), ITEM_ID: IdIndex(ids)}

    def read() -> Iterator[list[NDArray[Any]]]:
        for table in _as_tables(batches):
            numbers = [index.positions(table[name]) for name, index in indexes.items()]
            times = [column_to_micros(table[name]) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)]
            yield [*numbers, *times, *([weighting.weigh(table)] if is_weighted else [])]

    as_read = spill_arrays(read(), dtypes, folder)
    hashed = np.unique(stable_hash(ids), return_inverse=True)[1].astype(np.int32)

    def in_order() -> Iterator[list[NDArray[Any]]]:
        for user, item, time, known, *weight in _iter_by_users(as_read, len(users)):
            order = np.lexsort((known, hashed[item], time, user))
            yield [array[order] for array in (user, item, time, known, *weight)]

    user, item, time, known, *weight = spill_arrays(in_order(), dtypes, folder)
    return DomainEvents(user, item, time, ids, weight[0] if is_weighted else None), known


def _as_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches of a few thousand rows into larger tables."""
    import pyarrow as pa

    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) >= _ROWS_AT_ONCE:
            yield pa.Table.from_batches(pending)
            pending = []
    if sum(map(len, pending)):
        yield pa.Table.from_batches(pending)


def _iter_by_users(arrays: Sequence[NDArray[Any]], users: int) -> Iterator[list[NDArray[Any]]]:
    """Yield the rows of consecutive users, about `_ROWS_AT_ONCE` rows or one user's at a time, each in the order of the arrays.

    Args:
        arrays: [M] each; the first one holds the users' positions, int32.
        users: Number of users.
    """
    user = arrays[0]
    counts = (np.bincount(user[rows], minlength=users) for rows in iter_row_slices(len(user), _ROWS_AT_ONCE))
    ends = np.cumsum(sum(counts, np.zeros(users, np.int64)))
    # Every batch scans all users' positions, so that a long log is read in fewer, larger batches.
    max_size, first = max(_ROWS_AT_ONCE, len(user) // _MAX_PASSES), 0
    while first < users:
        before = ends[first - 1] if first else 0
        stop = max(int(np.searchsorted(ends, before + max_size, side="right")), first + 1)
        selected: list[list[NDArray[Any]]] = [[] for _ in arrays]
        for rows in iter_row_slices(len(user), _ROWS_AT_ONCE):
            positions = np.flatnonzero((user[rows] >= first) & (user[rows] < stop))
            for chunks, array in zip(selected, arrays, strict=True):
                chunks.append(array[rows][positions])
        yield [np.concatenate(chunks) for chunks in selected]
        first = stop


def _type_weights(types: pa.ChunkedArray, weights: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the weight of each event, 1 where the type is unknown: float32 [M]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array(list(weights.values()), pa.float32())
    matched = known.take(pc.index_in(types.combine_chunks().cast(pa.string()), pa.array(list(weights), pa.string())))
    result: NDArray[np.float32] = pc.fill_null(matched, 1.0).to_numpy(zero_copy_only=False)
    return result


def is_first_interaction(events: DomainEvents) -> NDArray[np.bool_]:
    """Return whether each event is its user's first with the item: bool [M]; of several at the same time, one is."""
    _, positions = np.unique(events.user.astype(np.int64) * len(events.ids) + events.item, return_index=True)
    first = np.zeros(len(events), dtype=bool)
    first[positions] = True
    return first
