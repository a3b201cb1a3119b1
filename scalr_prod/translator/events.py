# SPDX-License-Identifier: Apache-2.0
"""One domain's events as integer arrays, in order of user and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.hashing import stable_hash
from scalr_prod.instants import micros_of
from scalr_prod.mapped import on_disk, passed
from scalr_prod.numbering import index_in, sorted_unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Events", "events_of", "ids_of"]

#: Events that are read, or put in order, at a time, about; of a log of more than so many times as many, a share of it.
_SORTED, _PASSES = 500_000, 64


@dataclass(frozen=True)
class Events:
    """One domain's events, in order of (user, time, hash of the item).

    Attributes:
        user: int32 [M]. Position in `Log.users`.
        item: int32 [M]. Position in ``ids``.
        time: int64 [M]. Microseconds since the epoch.
        ids: The item ids, sorted.
        weight: float32 [M]. How much each counts, by its type; None: one each.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    ids: pa.Array
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.user)


def ids_of(reader: pa.RecordBatchReader) -> list[pa.Array]:
    """The distinct values of each column, ascending.

    Raises:
        InputError: They are strings of more than 2 GiB in all.
    """
    import pyarrow as pa

    found = [pa.array([], column.type) for column in reader.schema]
    new: list[list[pa.Array]] = [[] for _ in found]
    for some in _gathered(reader):
        for place, column in enumerate(some.columns):
            new[place].append(sorted_unique(column))
            # As many at least as there are, so that each is looked at a few times.
            if sum(len(one) for one in new[place]) >= max(_SORTED, len(found[place])):
                found[place], new[place] = sorted_unique(pa.chunked_array([found[place], *new[place]])), []
    return [sorted_unique(pa.chunked_array([former, *later])) for former, later in zip(found, new, strict=True)]


def events_of(
    batches: Iterable[pa.RecordBatch], users: pa.Array, ids: pa.Array, weights: Mapping[str, float], folder: Path | None
) -> tuple[Events, NDArray[np.int64]]:
    """Events that are read, in their order.

    Args:
        batches: ``user_id``, ``item_id``, ``event_timestamp``, ``created_timestamp`` and, where types weigh, ``event_type``.
        users: Ids of all users, sorted.
        ids: Ids of the domain's items, sorted.
        weights: What events count by their type; empty: one each.
        folder: Where the arrays' files lie, see `mapped`.

    Returns:
        The events; when each became known (µs), int64 [M]. All of them are on disk.
    """
    dtypes = [np.int32, np.int32, np.int64, np.int64, *([np.float32] if weights else [])]

    def read() -> Iterator[list[NDArray[Any]]]:
        for some in _gathered(batches):
            numbers = [index_in(some[USER_ID], users), index_in(some[ITEM_ID], ids)]
            times = [micros_of(some[name]) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)]
            yield [*numbers, *times, *([_weighed(some["event_type"], weights)] if weights else [])]

    as_read = on_disk(read(), dtypes, folder)
    hashed = np.unique(stable_hash(ids), return_inverse=True)[1].astype(np.int32)

    def in_order() -> Iterator[list[NDArray[Any]]]:
        for user, item, time, known, *weight in _of_some_users(as_read, len(users)):
            order = np.lexsort((known, hashed[item], time, user))
            yield [array[order] for array in (user, item, time, known, *weight)]

    user, item, time, known, *weight = on_disk(in_order(), dtypes, folder)
    return Events(user, item, time, ids, weight[0] if weights else None), known


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches of a few thousand rows as tables of many."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(len(one) for one in held) >= _SORTED:
            yield pa.Table.from_batches(held)
            held = []
    if sum(len(one) for one in held):
        yield pa.Table.from_batches(held)


def _of_some_users(arrays: Sequence[NDArray[Any]], users: int) -> Iterator[list[NDArray[Any]]]:
    """Rows by ranges of users, each in the order of the arrays: some `_SORTED` rows, or one user's, at a time.

    Args:
        arrays: [M] each; the first one has the users' numbers, int32.
        users: How many there are.
    """
    user = arrays[0]
    counts = (np.bincount(user[part], minlength=users) for part in passed(len(user), _SORTED))
    ends = np.cumsum(sum(counts, np.zeros(users, np.int64)))
    # Each of them passes over all users' numbers, so that of a long log they are longer.
    most, first = max(_SORTED, len(user) // _PASSES), 0
    while first < users:
        before = ends[first - 1] if first else 0
        stop = max(int(np.searchsorted(ends, before + most, side="right")), first + 1)
        found: list[list[NDArray[Any]]] = [[] for _ in arrays]
        for part in passed(len(user), _SORTED):
            inside = np.flatnonzero((user[part] >= first) & (user[part] < stop))
            for pieces, array in zip(found, arrays, strict=True):
                pieces.append(array[part][inside])
        yield [np.concatenate(pieces) for pieces in found]
        first = stop


def _weighed(types: pa.ChunkedArray, weights: Mapping[str, float]) -> NDArray[np.float32]:
    """What each event counts; one where the log did not say what it is: float32 [M]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array(list(weights.values()), pa.float32())
    found = known.take(pc.index_in(types.combine_chunks().cast(pa.string()), pa.array(list(weights), pa.string())))
    weighed: NDArray[np.float32] = pc.fill_null(found, 1.0).to_numpy(zero_copy_only=False)
    return weighed
