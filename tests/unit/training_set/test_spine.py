"""Where rows of the spine are: whatever is asked for is read, in order, and no other row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.compute import shuffle_folder, write_tables
from scalr_prod.training_set.spine import Spine, SpineChunk


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [7, 1, 60, 32], [33, 33, 34], [10] * 10])
@pytest.mark.parametrize("chunk_rows", [100, 10, 7])
def test_rows_of_the_spine_are_of_the_sizes_asked_for_and_in_order(tmp_path, sizes, chunk_rows):
    rows = pa.table({"n": np.arange(100)})
    with shuffle_folder(str(tmp_path), {}) as folder:
        chunks = [rows.slice(start, chunk_rows) for start in range(0, 100, chunk_rows)]
        segments = write_tables(enumerate(chunks), folder=folder)
        spine = Spine(rows.schema, [SpineChunk(segments[n], len(chunk)) for n, chunk in enumerate(chunks)], {})
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        selected = [spine.select(start, size) for start, size in zip(starts, sizes, strict=True)]
        found = [some.read(folder) for some in selected]
    assert [len(table) for table in found] == sizes
    assert [number for table in found for number in table["n"].to_pylist()] == list(range(100))
    assert max(len(some.segments) for some in selected) <= max(sizes) // chunk_rows + 2, "no chunk without such a row is read"
