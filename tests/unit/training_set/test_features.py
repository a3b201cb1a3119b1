"""Which rows of a spine go to which file, and which files are written together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from scalr_prod.compute import shuffle_folder, write_tables
from scalr_prod.training_set.features import _plan_files, _plan_groups
from scalr_prod.training_set.grouped_join import ROW
from scalr_prod.training_set.periods import utc_day
from scalr_prod.training_set.spine import Spine, SpineChunk

DAY = 86_400_000_000


def test_files_go_together_up_to_the_limit_past_what_is_not_written(tmp_path):
    days = [utc_day(number * DAY) for number in range(6)]
    periods = dict(zip(days, (4, 3, 25, 4, 2, 9), strict=True))
    files = _plan_files(periods, [day for day in days if day != days[1]], 10)
    assert [(file.rows, file.group) for file in files] == [
        (4, 0), (3, -1), (10, 1), (10, 2), (5, 3), (4, 3), (2, 4), (9, 5)
    ]  # fmt: skip
    assert files[3].name == "part-1970-01-03-00001.parquet"
    assert [file.group for file in _plan_files(periods, days[:2], 10)] == [0, 0, *[-1] * 6]

    rows = pa.table({"user_id": np.arange(47), "item_id": np.arange(47), "event_timestamp": np.arange(47)})
    with shuffle_folder(str(tmp_path), {}) as folder:
        chunks = [rows.slice(start, 6) for start in range(0, 47, 6)]
        segments = write_tables(enumerate(chunks), folder=folder)
        spine = Spine(rows.schema, [SpineChunk(segments[n], len(chunk)) for n, chunk in enumerate(chunks)], {})
        groups = _plan_groups(spine, files)
        found = [group.read_keys(folder) for group in groups]
    assert [[size for _, size in group.files] for group in groups] == [[4], [10], [10], [5, 4], [2], [9]]
    assert [number for keys in found for number in keys[ROW].to_pylist()] == list(range(44)), "those that are written"
    assert [number for keys in found for number in keys["user_id"].to_pylist()] == [*range(4), *range(7, 47)]
