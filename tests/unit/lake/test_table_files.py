"""Files that tasks write into a table's folder: what the log says of them, how they are committed, and that none stays for ever."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import CommitFailed
from scalr_prod.lake import CommitMetadata, Lake, commit_id_of, commit_record
from scalr_prod.schemas import Table, table_schema

TABLE, COMMIT = Table.SOURCE_USER_HISTORY, uuid.UUID(int=7)
SCHEMA = table_schema(TABLE, user="string", item="int64")
T0 = datetime(1969, 12, 31, 23, 59, 59, 123456, UTC)


@pytest.fixture
def lake(tmp_path):
    lake = Lake(str(tmp_path / "a lake"))
    lake.create(TABLE, SCHEMA)
    return lake


def rows(users, first_day=0) -> pa.Table:
    times = [T0 + timedelta(days=first_day + number) for number in range(len(users))]
    lists = [[number] * (number % 3) for number in range(len(users))]
    moments = [[T0] * len(items) for items in lists]
    columns = [users, times, lists, moments, [*range(len(users))], times]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def written(lake, users, number=0):
    return lake.write_file(TABLE, rows(users).to_batches(), SCHEMA, number=number)


def users_of(lake):
    return lake.read(TABLE).column("user_id").to_pylist()


def test_the_log_says_of_a_file_what_it_says_of_one_that_delta_wrote(lake):
    users = ["Zoë", "a\"b'c", "middle", "x" * 20]
    lake.append(TABLE, rows(users), key="by Delta")
    (delta,) = pa.table(lake.open_table(TABLE).get_add_actions(flatten=True)).to_pylist()
    lake.replace_with_files(TABLE, [written(lake, users)], key="by us", expected_version=1)
    (ours,) = pa.table(lake.open_table(TABLE).get_add_actions(flatten=True)).to_pylist()
    about_rows = {name for name in delta if name.split(".")[0] in {"num_records", "min", "max", "null_count"}}
    assert {name: ours.get(name) for name in about_rows} == {name: delta[name] for name in about_rows}
    assert ours["min.user_id"] == "Zoë"
    assert ours["min.event_timestamp"] == datetime(1969, 12, 31, 23, 59, 59, 123000, UTC)


def test_long_texts_are_bounded(lake):
    lake.replace_with_files(TABLE, [written(lake, ["y" * 100, "z" * 100])], key="a", expected_version=0)
    (entry,) = pa.table(lake.open_table(TABLE).get_add_actions(flatten=True)).to_pylist()
    assert entry["min.user_id"] <= "y" * 100
    assert entry["max.user_id"] >= "z" * 100
    assert len(entry["max.user_id"]) < 40


def test_files_replace_the_table_once_in_their_order(lake):
    lake.append(TABLE, rows(["before"]), key="before")
    files = [written(lake, [f"u{number}", f"v{number}"], number) for number in range(12)]
    opened = lake.open_table(TABLE)
    commit = {"key": "a", "expected_version": 1, "metadata": CommitMetadata("what it is made of"), "opened": opened}
    first = lake.replace_with_files(TABLE, files, **commit)
    assert (first.version, first.written, opened.version()) == (2, True, 2)
    assert commit_record(opened) == "what it is made of"
    assert users_of(lake) == [f"{name}{number}" for number in range(12) for name in "uv"]
    assert lake.replace_with_files(TABLE, files, **commit).written is False
    assert lake.version(TABLE) == 2


def test_no_rows_are_no_file_and_no_files_an_empty_table(lake):
    lake.append(TABLE, rows(["before"]), key="before")
    assert lake.write_file(TABLE, [], SCHEMA, number=0) is None
    lake.replace_with_files(TABLE, [], key="a", expected_version=1)
    assert users_of(lake) == []


def test_a_file_whose_rows_fail_is_not_left(lake):
    def failing():
        yield from rows(["a"] * 70_000).to_batches()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        lake.write_file(TABLE, failing(), SCHEMA, number=0)
    assert not list(Path(lake.uri(TABLE)).glob("*.parquet"))


@pytest.mark.parametrize("other", ["append", "replace", "files"])
def test_of_two_writers_from_one_version_one_wins(lake, monkeypatch, other):
    """The second commits between the first's check of the version and its commit."""
    from deltalake import DeltaTable

    transaction, winner = DeltaTable.create_write_transaction, Lake(lake.root)

    def late(delta, *args, **options):
        monkeypatch.setattr(DeltaTable, "create_write_transaction", transaction)
        if other == "files":
            winner.replace_with_files(TABLE, [written(winner, ["winner"])], key="winner", expected_version=0)
        else:
            getattr(winner, other)(TABLE, rows(["winner"]), key="winner")
        return transaction(delta, *args, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", late)
    file = written(lake, ["loser"])
    with pytest.raises(CommitFailed, match="nothing was written"):
        lake.replace_with_files(TABLE, [file], key="loser", expected_version=0)
    assert users_of(lake) == ["winner"]
    lake.remove_files(TABLE, [file])
    assert {path.name for path in Path(lake.uri(TABLE)).glob("*.parquet")} == file_names(lake.open_table(TABLE))


def test_what_was_never_committed_is_removed_after_a_day(lake):
    lake.append(TABLE, rows(["kept"]), key="kept")
    folder = Path(lake.uri(TABLE))
    old, young = (folder / written(lake, [name]).path for name in ("old", "young"))
    shuffled, foreign = folder / "shuffle-1-2.arrow", folder / "theirs.parquet"
    for path in (shuffled, foreign):
        path.write_bytes(b"x")
    past = time.time() - 25 * 3600
    for path in (old, shuffled, foreign):
        os.utime(path, (past, past))
    assert lake.vacuum(TABLE, keep_days=0, dry_run=True) == 2
    assert lake.vacuum(TABLE, keep_days=0) == 2
    assert not old.exists()
    assert not shuffled.exists()
    assert young.exists()
    assert foreign.exists()
    assert users_of(lake) == ["kept"]


def test_files_that_are_appended_land_on_the_version_that_they_were_made_for_or_not_at_all(lake):
    lake.append_files(TABLE, [written(lake, ["a"]), written(lake, ["b"], 1)], key="first", expected_version=0)
    late = written(lake, ["late"])
    with pytest.raises(CommitFailed, match="the table is at version 1"):
        lake.append_files(TABLE, [late], key="late", expected_version=0)
    lake.append_files(TABLE, [written(lake, ["c"])], key="second", expected_version=1)
    assert sorted(users_of(lake)) == ["a", "b", "c"]


def test_files_of_one_commit_have_an_id_in_common_whoever_writes_them(lake):
    batches = rows(["a"]).to_batches()
    ours = [lake.write_file(TABLE, batches, SCHEMA, number=number, commit_id=str(COMMIT)).path for number in (0, 1, 1)]
    assert {*map(commit_id_of, ours)} == {str(COMMIT)}
    assert len({*ours}) == 3, "two attempts of a task write two files"
    alone = [written(lake, ["a"], number).path for number in (0, 1)]
    assert len({*map(commit_id_of, alone)} - {*alone}) == 2
    lake.append(TABLE, rows(["a"]), key="by Delta")
    (by_delta,) = file_names(lake.open_table(TABLE))
    assert by_delta.startswith(f"part-00000-{commit_id_of(by_delta)}-")
    assert commit_id_of("x/other.parquet") == "x/other.parquet"


def test_files_that_are_restored_while_others_are_looked_for_stay(lake):
    lake.append(TABLE, rows(["kept"]), key="kept")
    hidden = lake.version(TABLE)
    lake.hide_rows(TABLE, key="off", expected_version=hidden)

    def restore() -> list[int]:
        lake.restore_rows(TABLE, hidden, key="on", expected_version=lake.version(TABLE))
        return []

    assert lake.vacuum(TABLE, keep_days=0, keep_versions=restore) == 0
    assert users_of(lake) == ["kept"]
