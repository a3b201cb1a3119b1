"""The lake on real Delta tables: commits happen once, windows are replaced whole, failures change nothing."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown, ForeignFiles, LakeError, TableNotFound
from scalr_prod.lake import CommitMetadata, CommitResult, Lake, TableFile
from scalr_prod.schemas import Table, table_schema

T0 = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = table_schema(Table.TARGET_EVENTS, user="string", item="int64")


def rows(first_day: int, count: int, user: str = "u") -> pa.Table:
    moments = [T0 + timedelta(days=first_day + day) for day in range(count)]
    return pa.table(
        {
            "user_id": [user] * count,
            "item_id": list(range(count)),
            "event_timestamp": moments,
            "created_timestamp": moments,
            "weight": [1.0] * count,
        }
    ).cast(SCHEMA)


@pytest.fixture
def lake(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    lake.create(Table.TARGET_EVENTS, SCHEMA)
    return lake


def days(lake: Lake, user: str = "u") -> list[int]:
    table = lake.read(Table.TARGET_EVENTS).to_pylist()
    return sorted((row["event_timestamp"] - T0).days for row in table if row["user_id"] == user)


def test_a_key_is_committed_once(lake):
    first = lake.append(Table.TARGET_EVENTS, rows(0, 3), key="a")
    second = lake.append(Table.TARGET_EVENTS, rows(0, 3), key="a")
    assert (first.written, second.written) == (True, False)
    assert first.version == second.version
    assert days(lake) == [0, 1, 2]
    assert lake.has_commit(Table.TARGET_EVENTS, "a")
    assert not lake.has_commit(Table.TARGET_EVENTS, "b")


def test_recent_commits_are_found_without_reading_the_whole_log(lake, monkeypatch):
    table, few = Table.TARGET_EVENTS, rows(0, 1)
    for number in range(1, 26):
        lake.append(
            table, few, key=f"key {number}", metadata=CommitMetadata(f"record {number}") if number % 2 else CommitMetadata()
        )
    read, history = [], DeltaTable.history

    def counted(opened, limit=None):
        entries = history(opened, limit)
        read.append(len(entries))
        return entries

    monkeypatch.setattr(DeltaTable, "history", counted)
    assert lake.commit_records(table, after=22) == [(23, "record 23"), (25, "record 25")]
    assert lake.commit_records(table, after=25) == []
    assert lake.commit_version(table, "key 24") == 24
    assert lake.committed_at(table, 25) > T0
    assert sum(read) == 3 + 10 + 1
    assert lake.commit_version(table, "key 2") == 2
    assert lake.commit_version(table, "no such key") is None
    assert lake.committed_at(table, 26) is None
    assert lake.commit_records(table) == [(number, f"record {number}") for number in range(1, 26, 2)]


def test_a_window_is_replaced_and_its_neighbours_are_not(lake):
    lake.append(Table.TARGET_EVENTS, rows(0, 10, "old"), key="a")
    replaced = lake.replace_window(
        Table.TARGET_EVENTS,
        rows(3, 2, "new").to_reader(),
        start=T0 + timedelta(days=3),
        end=T0 + timedelta(days=6),
        key="w",
    )
    assert replaced.written
    assert days(lake, "old") == [0, 1, 2, 6, 7, 8, 9]
    assert days(lake, "new") == [3, 4]


def test_a_row_outside_of_the_window_fails_the_commit_and_changes_nothing(lake):
    lake.append(Table.TARGET_EVENTS, rows(0, 10), key="a")
    before = lake.version(Table.TARGET_EVENTS)
    with pytest.raises(CommitFailed, match="nothing was written"):
        lake.replace_window(Table.TARGET_EVENTS, rows(3, 5), start=T0 + timedelta(days=3), end=T0 + timedelta(days=6), key="w")
    assert lake.version(Table.TARGET_EVENTS) == before
    assert days(lake) == list(range(10))


WINDOW = {"start": T0 + timedelta(days=3), "end": T0 + timedelta(days=6)}


def write_file(lake: Lake, made: pa.Table) -> TableFile:
    written = lake.write_file(Table.TARGET_EVENTS, made.to_batches(), SCHEMA, number=0)
    assert written is not None
    return written


def replace_files(lake: Lake, made: pa.Table, *, key: str = "w", opened: DeltaTable | None = None) -> CommitResult | None:
    opened = opened or lake.open_table(Table.TARGET_EVENTS)
    options = {"key": key, "expected_version": opened.version(), "opened": opened, **WINDOW}
    return lake.replace_window_with_files(Table.TARGET_EVENTS, lambda: [write_file(lake, made)], **options)


def parquet_files(lake: Lake) -> set[str]:
    return {path.name for path in Path(lake.uri(Table.TARGET_EVENTS)).glob("*.parquet")}


@pytest.mark.parametrize("beside", [[], [2], [6], [0, 2, 6, 9]])
@pytest.mark.parametrize("inside", [[], [(3, 3)], [(3, 1), (5, 1)]])
def test_the_files_of_a_window_are_replaced_and_no_others(lake, inside, beside):
    for first, count in inside:
        lake.append(Table.TARGET_EVENTS, rows(first, count, "old"), key=f"old {first}")
    for day in beside:
        lake.append(Table.TARGET_EVENTS, rows(day, 1, "beside"), key=f"day {day}")
    version = lake.version(Table.TARGET_EVENTS)
    assert replace_files(lake, rows(4, 2, "new")) == CommitResult("target_events", version + 1, written=True)
    assert lake.version(Table.TARGET_EVENTS) == version + 1
    assert (days(lake, "old"), days(lake, "new"), days(lake, "beside")) == ([], [4, 5], beside)
    assert len(file_names(lake.open_table(Table.TARGET_EVENTS))) == 1 + len(beside)
    former = lake.read(Table.TARGET_EVENTS, version=version)
    assert former.num_rows == sum(count for _, count in inside) + len(beside)
    assert lake.vacuum(Table.TARGET_EVENTS, keep_days=1, dry_run=True) == 0, (
        "readers of the former version still need its files"
    )
    assert not replace_files(lake, rows(4, 1, "again")).written


@pytest.mark.parametrize("over", [(2, 2), (5, 2), (1, 8)])
def test_files_that_also_hold_rows_outside_of_the_window_are_not_replaced(lake, over):
    lake.append(Table.TARGET_EVENTS, rows(*over, "old"), key="a")
    lake.append(Table.TARGET_EVENTS, rows(4, 1, "old"), key="b")
    before = days(lake, "old"), parquet_files(lake), lake.version(Table.TARGET_EVENTS)
    assert replace_files(lake, rows(4, 2, "new")) is None
    assert (days(lake, "old"), parquet_files(lake), lake.version(Table.TARGET_EVENTS)) == before


def test_a_windows_bounds_are_its_first_instant_and_the_one_after_its_last(lake):
    def at(moment: datetime, user: str) -> pa.Table:
        return rows(0, 1, user).set_column(2, SCHEMA.field(2), pa.array([moment], SCHEMA.field(2).type))

    instant = timedelta(microseconds=1)
    times = {"before": WINDOW["start"] - 2000 * instant, "first": WINDOW["start"], "after": WINDOW["end"]}
    for name, moment in times.items():
        lake.append(Table.TARGET_EVENTS, at(moment, name), key=name)
    assert replace_files(lake, rows(4, 1, "new")).written
    assert set(lake.read(Table.TARGET_EVENTS)["user_id"].to_pylist()) == {"before", "new", "after"}
    # The log's times are in milliseconds: it cannot tell that these rows lie outside, or inside.
    for name, moment in {"just before": WINDOW["start"] - instant, "last": WINDOW["end"] - instant}.items():
        lake.append(Table.TARGET_EVENTS, at(moment, name), key=name)
        assert replace_files(lake, rows(4, 1, "newer"), key=f"after {name}") is None
        lake.delete(Table.TARGET_EVENTS, f"user_id = '{name}'", key=f"without {name}")


def test_a_window_that_another_writer_filled_is_left_alone(lake):
    view = lake.open_table(Table.TARGET_EVENTS)
    lake.append(Table.TARGET_EVENTS, rows(4, 1, "other"), key="other", expected_version=0)
    with pytest.raises(CommitFailed, match="is at version 1, the rows were computed from 0"):
        replace_files(lake, rows(3, 3), opened=view)
    assert (days(lake), days(lake, "other"), view.version()) == ([], [4], 1)
    assert parquet_files(lake) == file_names(view)


@pytest.mark.parametrize("expected", [1, None])
@pytest.mark.parametrize("day", [4, 8])
@pytest.mark.parametrize("there", [0, 3])
def test_what_another_writer_adds_meanwhile_is_not_lost(lake, monkeypatch, there, day, expected):
    """The other one commits after the window's files were looked up, before they are replaced; to the window, or beside it."""
    lake.append(Table.TARGET_EVENTS, rows(there, 2, "old"), key="a")
    first = DeltaTable.create_write_transaction

    def overtaken(*args, **options):
        monkeypatch.setattr(DeltaTable, "create_write_transaction", first)
        lake.append(Table.TARGET_EVENTS, rows(day, 1, "other"), key="other", expected_version=expected)
        return first(*args, **options)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", overtaken)
    with pytest.raises(CommitFailed):
        replace_files(lake, rows(3, 2, "new"))
    assert (days(lake, "old"), days(lake, "new"), days(lake, "other")) == ([there, there + 1], [], [day])
    assert parquet_files(lake) == file_names(lake.open_table(Table.TARGET_EVENTS))


@pytest.mark.parametrize(("first", "count"), [(2, 2), (5, 2)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_row_outside_of_an_empty_window_fails_the_commit_and_changes_nothing(lake, first, count, streamed):
    made = rows(first, count)
    with pytest.raises(CommitFailed, match="nothing was written"):
        lake.replace_window(Table.TARGET_EVENTS, made.to_reader() if streamed else made, key="w", expected_version=0, **WINDOW)
    assert lake.version(Table.TARGET_EVENTS) == 0
    assert days(lake) == []


def test_deleting_rows_of_a_file_and_reading_an_earlier_version(lake):
    both = pa.concat_tables([rows(0, 2, "x"), rows(0, 2, "y"), rows(0, 1, "z")])
    lake.append(Table.TARGET_EVENTS, both, key="a")
    version = lake.version(Table.TARGET_EVENTS)
    lake.delete(Table.TARGET_EVENTS, "user_id = 'x'", key="d")
    # A filter on text, which pyarrow cannot apply to the files that Delta's own delete leaves.
    left = {user: lake.read(Table.TARGET_EVENTS, where=ds.field("user_id") == user).num_rows for user in "xyz"}
    assert left == {"x": 0, "y": 2, "z": 1}
    assert lake.read(Table.TARGET_EVENTS, version=version).num_rows == 5


def test_a_missing_table_names_the_command_that_makes_it(lake):
    with pytest.raises(TableNotFound, match="scalr histories"):
        lake.read(Table.SOURCE_USER_HISTORY)


def test_several_tables_are_opened_at_the_versions_asked_for(lake):
    lake.create(Table.SOURCE_EVENTS, table_schema(Table.SOURCE_EVENTS, user="string", item="int64"))
    lake.append(Table.TARGET_EVENTS, rows(0, 1), key="a")
    tables = (Table.TARGET_EVENTS, Table.SOURCE_EVENTS)
    assert lake.versions(tables) == {"target_events": 1, "source_events": 0}
    assert [opened.version() for opened in lake.open_tables(tables, versions={"target_events": 0}).values()] == [0, 0]
    assert list(lake.open_tables(iter(tables))) == list(tables)
    assert lake.open_tables([]) == {}
    with pytest.raises(TableNotFound, match="does not exist") as caught:
        lake.open_tables([Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY, Table.TARGET_ITEMS])
    assert caught.value.where.endswith("source_user_history")


def test_tables_that_do_not_exist_are_left_out_and_a_damaged_one_is_an_error(lake, tmp_path):
    (tmp_path / "lake" / "target_items").mkdir()  # a folder without a log
    assert lake.find_tables(Table).keys() == {Table.TARGET_EVENTS}
    assert lake.find_table(Table.TARGET_ITEMS) is None
    log = tmp_path / "lake" / "source_events" / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json").write_text("{")
    with pytest.raises(LakeError, match="log cannot be read"):
        lake.find_tables(Table)


def test_a_table_that_is_created_while_it_is_looked_for_is_found(lake, monkeypatch):
    opens = iter([TableNotFound("not yet"), lake.open_table(Table.TARGET_EVENTS)])

    def open_table(table, *, version=None):
        found = next(opens)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(lake, "open_table", open_table)
    assert lake.find_table(Table.TARGET_EVENTS).version() == 0


def test_a_table_that_another_process_filled_meanwhile_is_no_foreign_folder(lake, tmp_path):
    lake.append(Table.TARGET_EVENTS, rows(0, 1), key="a")
    lake.ensure_no_files(Table.TARGET_EVENTS)
    folder = tmp_path / "lake" / "target_items"
    folder.mkdir()
    (folder / "theirs.parquet").write_bytes(b"x")
    with pytest.raises(ForeignFiles, match="no Delta table"):
        lake.ensure_no_files(Table.TARGET_ITEMS)


def test_a_log_that_cannot_be_read_after_a_failure_is_another_error(lake, monkeypatch):
    bad = rows(0, 1).drop_columns(["weight"])

    def unreadable(*_args):
        raise OSError("gone")

    monkeypatch.setattr(lake, "has_commit", unreadable)
    with pytest.raises(CommitOutcomeUnknown, match="may have landed"):
        lake.append(Table.TARGET_EVENTS, bad, key="a")


def test_a_string_id_keeps_quotes_and_a_table_keeps_its_types(lake):
    lake.append(Table.TARGET_EVENTS, rows(0, 1, "o'brien; DROP TABLE x"), key="a")
    assert days(lake, "o'brien; DROP TABLE x") == [0]
    assert lake.schema(Table.TARGET_EVENTS).types == SCHEMA.types


def test_a_table_that_another_makes_at_the_same_moment_is_there(tmp_path, monkeypatch):
    """Which of several commits of version 0 came first is decided in the lake: the others fail, and find it made."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaProtocolError

    lake, create = Lake(str(tmp_path)), DeltaTable.create

    def beaten(*args, **options):
        create(*args, **options)
        raise DeltaProtocolError("Failed to commit transaction: Protocol changed since last commit: protocol changed")

    monkeypatch.setattr(DeltaTable, "create", beaten)
    schema = table_schema(Table.SOURCE_EVENTS, user="string", item="string")
    lake.create(Table.SOURCE_EVENTS, schema)
    assert lake.schema(Table.SOURCE_EVENTS) == schema

    def failing(*_args, **_options):
        raise DeltaProtocolError("no")

    monkeypatch.setattr(DeltaTable, "create", failing)
    with pytest.raises(CommitFailed, match="cannot be created"):
        lake.create(Table.TARGET_EVENTS, schema)


class Refusing(BaseHTTPRequestHandler):
    """An object store that refuses everybody, as it does whoever comes without credentials."""

    def _refuse(self):
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = _refuse  # noqa: N815 - names of the base class

    def log_message(self, *_):
        pass


def test_a_store_that_refuses_is_told_with_the_machine_and_where_credentials_go():
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "here",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "planted-secret",
        }
        with pytest.raises(LakeError) as caught:
            Lake("s3://bucket/lake", options).version(Table.SOURCE_EVENTS)
        server.shutdown()
    assert caught.value.where == "s3://bucket/lake/source_events"
    assert socket.gethostname() in caught.value.found
    assert "[project] storage_options" in caught.value.next_step
    assert "_delta_log" not in caught.value.next_step
    assert "planted-secret" not in str(caught.value)
