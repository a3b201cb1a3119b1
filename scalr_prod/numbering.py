"""Ids as dense numbers, and back: the order of the ids themselves, so that equal sets are numbered alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["index_in", "sorted_unique"]


def sorted_unique(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Each id once, in ascending order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    unique = pc.unique(ids)
    unique = unique.combine_chunks() if isinstance(unique, pa.ChunkedArray) else unique
    return unique.take(pc.array_sort_indices(unique))


def index_in(ids: Any, known: pa.Array) -> NDArray[np.int32]:
    """Where each id stands among the known ones: int32 [N], -1 for others.

    Args:
        ids: [N], an Arrow array or a sequence; cast to the type of ``known``.
        known: Distinct ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    values = ids if isinstance(ids, pa.Array) else pa.array(ids, type=known.type)
    found = pc.fill_null(pc.index_in(values.cast(known.type), known), -1)
    return found.to_numpy(zero_copy_only=False).astype("int32")  # type: ignore[no-any-return]  # pyarrow is untyped
