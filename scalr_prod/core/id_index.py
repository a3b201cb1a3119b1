# SPDX-License-Identifier: Apache-2.0
"""Dense numbering of ids in their sort order, so that equal sets get equal numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


#: Largest number of ids that `index_in` and `IdIndex` can number.
_MAX_IDS: Final = 2**31 - 1
#: Number of ids hashed at a time: text ids become Python objects for it.
_HASHED_IDS: Final = 1_000_000


def sorted_unique(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the distinct ids in ascending order.

    Raises:
        InputError: The distinct ids are strings of more than 2 GiB in all, which one Arrow array cannot hold, or more ids than positions
            of 32 bits can tell apart.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        unique = pc.unique(ids)
        if len(unique) > _MAX_IDS:
            raise InputError(
                f"{len(unique):,} distinct ids, at most {_MAX_IDS:,} can be numbered",
                where=f"a column of {len(ids)} ids of type {ids.type}",
                next_step="leave out events, or split the log by users",
            )
        return unique.take(pc.array_sort_indices(unique))
    except pa.ArrowCapacityError as error:
        raise InputError(
            f"the distinct ids take more than 2 GiB: {error}",
            where=f"a column of {len(ids)} ids of type {ids.type}",
            next_step="map columns with shorter ids: 64-bit integers, or shorter strings",
        ) from error


def index_in(ids: Any, known: pa.Array) -> NDArray[np.int32]:
    """Return each id's position among the known ones: int32 [N], -1 for unknown ids.

    Each call builds a hash table of all known ids. For many calls, use `IdIndex`.

    Args:
        ids: [N], an Arrow array (chunked or not) or a sequence; cast to the type of ``known``.
        known: Distinct ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Keep the chunks: strings of more than 2 GiB do not fit into one array.
    values = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, type=known.type)
    indices = pc.fill_null(pc.index_in(values.cast(known.type), known), -1)
    return indices.to_numpy(zero_copy_only=False).astype("int32", copy=False)  # type: ignore[no-any-return]  # pyarrow is untyped


class IdIndex:
    """Look up the positions of ids among known ones, any number of times.

    Holds 12 bytes per known id, besides the ids: its hash and its position, in the order of the hashes.

    Args:
        known: Distinct ids; nulls are never found.
    """

    def __init__(self, known: pa.Array) -> None:
        hashes = _hash(known.drop_null())
        order = np.argsort(hashes)
        self._known, self._hashes = known, hashes[order]
        del hashes
        if known.null_count:
            order = np.flatnonzero(known.is_valid().to_numpy(zero_copy_only=False))[order]
        self._order = order.astype(np.int32)
        is_shared = np.zeros(len(order), bool)
        is_shared[1:] = self._hashes[1:] == self._hashes[:-1]
        is_shared[:-1] |= is_shared[1:]
        # Positions of the ids whose hash another one has, too.
        self._colliding = self._order[is_shared]

    def positions(self, ids: Any) -> NDArray[np.int32]:
        """Return each id's position: int32 [N], -1 for unknown ids and nulls.

        Args:
            ids: [N], an Arrow array (chunked or not) or a sequence; cast to the type of the known ids.
        """
        import pyarrow as pa

        values = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, type=self._known.type)
        encoded = values.cast(self._known.type).dictionary_encode()
        flat = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        # The last element stands for nulls.
        found = np.append(self._find(flat.dictionary), np.int32(-1))
        return found[flat.indices.fill_null(len(found) - 1).to_numpy()]  # type: ignore[no-any-return]  # pyarrow is untyped

    def _find(self, ids: pa.Array) -> NDArray[np.int32]:
        """Return the positions of distinct ids without nulls: int32 [N]."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(self._hashes):
            return np.full(len(ids), -1, np.int32)
        hashes = _hash(ids)
        # A search in the order of the hashes passes over memory once.
        order = np.argsort(hashes)
        places = np.empty(len(ids), np.int64)
        places[order] = np.searchsorted(self._hashes, hashes[order])
        positions = self._order[np.minimum(places, len(self._hashes) - 1)]
        is_equal = pc.fill_null(pc.equal(self._known.take(pa.array(positions)), ids), fill_value=False)
        positions[~is_equal.to_numpy(zero_copy_only=False)] = -1
        if len(self._colliding):
            missing = np.flatnonzero(positions < 0)
            found = index_in(ids.take(pa.array(missing)), self._known.take(pa.array(self._colliding)))
            positions[missing[found >= 0]] = self._colliding[found[found >= 0]]
        return positions


def _hash(ids: pa.Array) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each id: uint64 [N]. Safe in forked processes, such as workers of torch's `DataLoader`."""
    from pandas.util import hash_array

    parts = (ids.slice(start, _HASHED_IDS).to_numpy(zero_copy_only=False) for start in range(0, len(ids), _HASHED_IDS))
    return np.concatenate([np.empty(0, np.uint64), *(hash_array(part, categorize=False) for part in parts)])
