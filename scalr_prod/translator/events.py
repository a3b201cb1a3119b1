# SPDX-License-Identifier: Apache-2.0
"""One domain's events as integer arrays, in order of user and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.hashing import stable_hash
from scalr_prod.instants import micros_of
from scalr_prod.numbering import index_in, sorted_unique
from scalr_prod.resident import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Events", "events_of"]

#: Events that are put in order at a time, about.
_SORTED = 500_000


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


def events_of(table: pa.Table, users: pa.Array, weights: Mapping[str, float]) -> tuple[Events, NDArray[np.int64]]:
    """The events of a table, in their order.

    Args:
        table: ``user_id``, ``item_id``, ``event_timestamp``, ``created_timestamp`` and, where types weigh, ``event_type``. Its columns go
            as they are read if nobody else holds them.
        users: Ids of all users, sorted.
        weights: What events count by their type; empty: one each.

    Returns:
        The events; when each became known (µs), int64 [M].
    """
    # One after the other, so that a column, or an array, goes before the next one comes.
    columns = dict(zip(table.column_names, table.columns, strict=True))
    del table
    ids = sorted_unique(columns[ITEM_ID])
    user = index_in(columns.pop(USER_ID), users)
    item = index_in(columns.pop(ITEM_ID), ids)
    time = micros_of(columns.pop(EVENT_TIMESTAMP))
    known = micros_of(columns.pop(CREATED_TIMESTAMP))
    weight = _weighed(columns["event_type"], weights) if weights else None
    give_back()
    hashed = np.unique(stable_hash(ids), return_inverse=True)[1].astype(np.int32)
    order = _in_order(user, lambda rows: (known[rows], hashed[item[rows]], time[rows]))
    user, item = user[order], item[order]
    time = time[order]
    known = known[order]
    return Events(user, item, time, ids, None if weight is None else weight[order]), known


def _in_order(user: NDArray[np.int32], keys: Callable[[NDArray[np.int64]], tuple[NDArray[Any], ...]]) -> NDArray[np.int64]:
    """Positions in the order of users and then of keys, the last one first: a `numpy.lexsort` that holds the keys of some users at once.

    Args:
        user: int32 [M], 0 or more.
        keys: Gives those of some positions.
    """
    order: NDArray[np.int64] = np.argsort(user, kind="stable")
    ends = np.cumsum(np.bincount(user))
    first = 0
    while first < len(order):
        # Whole users, one at the least.
        stop = int(ends[min(int(np.searchsorted(ends, first + _SORTED)), len(ends) - 1)])
        rows = order[first:stop]
        order[first:stop] = rows[np.lexsort((*keys(rows), user[rows]))]
        first = stop
    return order


def _weighed(types: pa.ChunkedArray, weights: Mapping[str, float]) -> NDArray[np.float32]:
    """What each event counts; one where the log did not say what it is: float32 [M]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pa.array(list(weights.values()), pa.float32())
    found = known.take(pc.index_in(types.combine_chunks().cast(pa.string()), pa.array(list(weights), pa.string())))
    weighed: NDArray[np.float32] = pc.fill_null(found, 1.0).to_numpy(zero_copy_only=False)
    return weighed
