"""Files of a table are divided among tasks: each row is read by one of them, and each reads about as many."""

from __future__ import annotations

import duckdb
import pytest
from support.built_tables import fill_lake

from scalr_prod.compute import FilePart, create_file_part_view, open_file_part, plan_file_parts
from scalr_prod.core.delta_log import row_count_by_file
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table


def test_small_files_are_read_together_and_large_ones_by_several_tasks():
    planned = plan_file_parts({"c": 9, "a": 40, "b": 50, "d": 250}, 100)
    assert planned == [FilePart(("d",), 0, 3), FilePart(("d",), 1, 3), FilePart(("d",), 2, 3), FilePart(("a", "b", "c"))]
    assert plan_file_parts({}, 100) == []


def test_row_groups_of_a_large_file_are_divided_among_tasks(tmp_path):
    """Delta's writer makes row groups of 65 536 rows; each task reads its own."""
    settings = fill_lake(tmp_path, 150_000, files=1)
    events = Lake.open(settings).open_table(Table.SOURCE_EVENTS)
    parts = plan_file_parts(row_count_by_file(events), 60_000)
    assert [(each.part, each.parts) for each in parts] == [(0, 3), (1, 3), (2, 3)]
    found = [open_file_part(events, part).to_table() for part in parts]
    assert [len(rows) for rows in found] == [65_536, 65_536, 150_000 - 2 * 65_536]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_view_has_the_rows_of_a_part(tmp_path, parts):
    """Whole files are read in place, row groups as a data set."""
    events = Lake.open(fill_lake(tmp_path, 400)).open_table(Table.SOURCE_EVENTS)
    names = sorted(row_count_by_file(events))[:2]
    part = FilePart(tuple(names[:1] if parts > 1 else names), 0, parts)
    with duckdb.connect() as db:
        create_file_part_view(db, "found", events, part)
        assert db.sql("SELECT count(*) FROM found").fetchall() == [(100 if parts > 1 else 200,)]


def test_a_part_without_files_has_the_columns_and_no_row(tmp_path):
    events = Lake.open(fill_lake(tmp_path, 100)).open_table(Table.TARGET_EVENTS)
    rows = open_file_part(events, FilePart(())).to_table()
    assert (len(rows), rows.column_names[:2]) == (0, ["user_id", "item_id"])
