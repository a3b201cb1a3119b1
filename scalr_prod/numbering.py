# SPDX-License-Identifier: Apache-2.0
"""Ids as dense numbers, and back: the order of the ids themselves, so that equal sets are numbered alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["index_in", "sorted_unique"]


def sorted_unique(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Each id once, in ascending order.

    Raises:
        InputError: The distinct ids are strings of more than 2 GiB in all, which one Arrow array cannot hold.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        unique = pc.unique(ids)
        return unique.take(pc.array_sort_indices(unique))
    except pa.ArrowCapacityError as error:
        raise InputError(
            f"the distinct ids take more than 2 GiB: {error}",
            where=f"a column of {len(ids)} ids of type {ids.type}",
            next_step="map columns with shorter ids: 64-bit integers, or shorter strings",
        ) from error


def index_in(ids: Any, known: pa.Array) -> NDArray[np.int32]:
    """Where each id stands among the known ones: int32 [N], -1 for others.

    Args:
        ids: [N], an Arrow array, in chunks or whole, or a sequence; cast to the type of ``known``.
        known: Distinct ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Chunks stay as they are: strings of more than 2 GiB do not fit into one array.
    values = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, type=known.type)
    found = pc.fill_null(pc.index_in(values.cast(known.type), known), -1)
    return found.to_numpy(zero_copy_only=False).astype("int32", copy=False)  # type: ignore[no-any-return]  # pyarrow is untyped
