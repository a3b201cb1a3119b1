"""The vocabulary has each id of all files once, sorted, however the files are divided among tasks."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.compute import InProcessExecutor, SharedFiles, shuffle_folder
from scalr_prod.training_set import vocabulary
from scalr_prod.training_set.vocabulary import _quantiles, write_vocabulary

KINDS = ("users", "target_items", "source_items")


@pytest.mark.parametrize("merged", [1, 3, 16])
def test_each_id_of_all_files_is_written_once_and_in_order(tmp_path, monkeypatch, merged):
    monkeypatch.setattr(vocabulary, "_MERGED_FILES", merged)
    drawn = np.random.default_rng(0)
    home = tmp_path / "users=5"  # as a partition's folder is called
    home.mkdir()
    users = [[f"u'{number:03d}" for number in drawn.integers(0, 400, 60)] for _ in range(20)]
    items = [drawn.integers(-50, 50, 30).tolist() if number > 11 else [] for number in range(20)]
    for number, (own, had) in enumerate(zip(users, items, strict=True)):
        lists = {
            "users": pa.array([sorted(set(own))], pa.list_(pa.string())),
            "target_items": pa.array([sorted(set(had))], pa.list_(pa.int64())),
            "source_items": pa.array([[]], pa.list_(pa.int32())),
        }
        pq.write_table(pa.table(lists), home / f"part-{number}.parquet")
    with shuffle_folder(str(home), {}) as folder, duckdb.connect() as connection:
        shared = SharedFiles(folder, [f"part-{number}.parquet" for number in range(20)])
        entries = write_vocabulary(InProcessExecutor(connection), shared, folder, tmp_path / "version")
    found = [pq.read_table(tmp_path / "version" / "vocabulary" / f"{kind}.parquet", partitioning=None) for kind in KINDS]
    assert found[0].column("id").to_pylist() == sorted({user for own in users for user in own})
    assert found[1].column("id").to_pylist() == sorted({item for had in items for item in had})
    assert (found[2].schema.field("id").type, len(found[2])) == (pa.int32(), 0)
    assert entries.keys() == {f"vocabulary/{kind}.parquet" for kind in KINDS}


def test_ranges_are_bounded_by_the_sampled_ids_and_are_fewer_where_these_are_few():
    sample = pa.table({"users": [[3, 1, 2], [5, 4, 9, 8]], "target_items": [[7], [7]], "source_items": [[], []]})
    assert _quantiles(sample, "users", 4) == [2, 4, 8]
    assert _quantiles(sample, "target_items", 4) == [7]
    assert _quantiles(sample, "source_items", 4) == []
    assert _quantiles(sample, "users", 1) == []
