"""A build from all events: the same rows in the same order however many partitions and tasks there are, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.built_tables import BUILT, fill_lake, table_digest, table_rows

from scalr_prod.core import partitioned
from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import LakeError
from scalr_prod.histories import build_histories, full_build, row_stream
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table


def files_of(settings, table):
    return {path.name for path in Path(Lake.open(settings).uri(table)).iterdir() if path.name != "_delta_log"}


@pytest.mark.long
def test_the_number_of_partitions_changes_no_row(tmp_path, monkeypatch):
    settings, split = (fill_lake(tmp_path / name, 2_000) for name in ("whole", "split"))
    build_histories(settings)
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 100)
    build_histories(split)
    for table in BUILT:
        assert sorted(table_rows(split, table)) == sorted(table_rows(settings, table))
        names = file_names(Lake.open(split).open_table(table))
        assert files_of(split, table) == names, "files that the table does not name"
        assert len(names) > 5


@pytest.mark.parametrize("task_events", [1_000, pytest.param(100, marks=pytest.mark.long)])
def test_the_number_of_tasks_changes_neither_rows_nor_their_order(tmp_path, monkeypatch, task_events):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 400)
    settings, split = (fill_lake(tmp_path / name, 2_000) for name in ("whole", "split"))
    build_histories(settings)
    monkeypatch.setattr(full_build, "_TASK_EVENTS", task_events)
    build_histories(split)
    for table in BUILT:
        assert table_digest(split, table) == table_digest(settings, table)


def test_no_file_is_left_where_there_would_be_too_many_rows(tmp_path, monkeypatch):
    settings = fill_lake(tmp_path, 2_000)
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 100)
    monkeypatch.setattr(row_stream, "_ROWS_ALWAYS", 0)
    monkeypatch.setattr(row_stream, "_ROWS_PER_EVENT", 1)
    with pytest.raises(LakeError, match="more than 2000 rows"):
        build_histories(settings)
    assert Lake.open(settings).version(Table.SOURCE_USER_HISTORY) == 0
    assert files_of(settings, Table.SOURCE_USER_HISTORY) == set()
    assert not any((settings.home / "staging").iterdir())


def test_a_lake_whose_events_are_gone_gets_empty_tables(tmp_path):
    settings = fill_lake(tmp_path, 100)
    build_histories(settings)
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        lake.delete(table, "true", key="all")
    build_histories(settings)
    assert [lake.dataset(table).count_rows() for table in BUILT] == [0, 0, 0]
