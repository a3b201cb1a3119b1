"""Row groups of candidate files: which partitions of users read them, and the place of each row that they read."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.quality.candidate_files import CandidateFiles, RowGroup, chunk_row_groups, list_row_groups

USERS = ["a", "b", "c", None, None, None]


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Two files: one with statistics of three row groups, one without."""
    rows = pa.table({"user_id": pa.array(USERS), "weight": list(range(6))})
    paths = [tmp_path / f"part-{number}.parquet" for number in range(2)]
    pq.write_table(rows, paths[0], row_group_size=2)
    pq.write_table(rows, paths[1], write_statistics=False)
    return paths


def test_a_row_group_is_read_by_the_partitions_that_its_users_may_be_in(files):
    groups = list_row_groups(files)
    assert [group[:4] for group in groups] == [(0, 0, 0, 2), (0, 1, 2, 2), (0, 2, 4, 2), (1, 0, 0, 6)]
    found = [group.partitions(["b", "c", "d"]) for group in groups]
    # Rows without a user are in the last partition; without statistics, any partition may have some.
    assert found == [{0, 1}, {2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    assert all(group.partitions([]) == {0} for group in groups)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_rows_come_with_their_place(files, scheme):
    """From files on this machine, and by the file system of a store."""
    groups = list_row_groups(files)
    candidates = CandidateFiles(f"{scheme}{files[0].parent}", {}, [path.name for path in files], pq.read_schema(files[0]))
    with duckdb.connect() as db:
        candidates.create_view(db, "found", [groups[1], groups[3]], ["weight"])
        assert db.sql("FROM found ORDER BY candidate_file, candidate_row").to_arrow_table().to_pydict() == {
            "weight": [2, 3, 0, 1, 2, 3, 4, 5],
            "candidate_file": [0, 0, 1, 1, 1, 1, 1, 1],
            "candidate_row": [2, 3, 0, 1, 2, 3, 4, 5],
        }
        candidates.create_view(db, "nothing", [], ["user_id"])
        assert db.sql("FROM nothing").fetchall() == []


def test_a_task_reads_about_as_many_rows_as_another():
    groups = [RowGroup(0, number, 0, rows, None, lacks_users=False) for number, rows in enumerate([3, 3, 9, 1])]
    assert [[group.rows for group in chunk] for chunk in chunk_row_groups(groups, 6)] == [[3, 3], [9], [1]]
