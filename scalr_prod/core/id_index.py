# SPDX-License-Identifier: Apache-2.0
"""Dense numbering of ids in their sort order, so that equal sets get equal numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["index_in", "sorted_unique"]

#: Largest number of ids that `index_in` can number.
_MAX_IDS: Final = 2**31 - 1


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
