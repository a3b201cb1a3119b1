"""The lake on real Delta tables: commits happen once, windows are replaced whole, failures change nothing."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown, ForeignFiles, LakeError, TableNotFound
from scalr_prod.lake import CommitMetadata, Lake
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


def operation(lake: Lake) -> tuple[str, str]:
    latest = lake.open_table(Table.TARGET_EVENTS).history(1)[0]
    return latest["operation"], latest["operationParameters"]["mode"]


WINDOW = {"start": T0 + timedelta(days=3), "end": T0 + timedelta(days=6)}


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_of_a_window_that_no_file_reaches_are_appended_and_all_else_is_a_replacement(lake, streamed):
    lake.append(Table.TARGET_EVENTS, rows(0, 3, "old"), key="a")
    view = lake.open_table(Table.TARGET_EVENTS)
    for key, made, how in (("w", rows(3, 3, "one"), "Append"), ("again", rows(4, 2, "two"), "Overwrite")):
        given = made.to_reader() if streamed else made
        done = lake.replace_window(Table.TARGET_EVENTS, given, key=key, expected_version=view.version(), opened=view, **WINDOW)
        assert done.written
        assert done.version == view.version() == lake.version(Table.TARGET_EVENTS)
        assert operation(lake) == ("WRITE", how)
        assert not lake.replace_window(
            Table.TARGET_EVENTS, made, key=key, expected_version=view.version(), opened=view, **WINDOW
        ).written
    assert (days(lake, "old"), days(lake, "one"), days(lake, "two")) == ([0, 1, 2], [], [4, 5])


def test_without_a_version_to_follow_nothing_is_appended_to_a_window_that_looks_empty(lake):
    """Another writer may fill it meanwhile."""
    lake.replace_window(Table.TARGET_EVENTS, rows(3, 3), key="w", **WINDOW)
    assert operation(lake) == ("WRITE", "Overwrite")


def test_a_window_that_another_writer_filled_is_not_appended_to(lake):
    view = lake.open_table(Table.TARGET_EVENTS)
    lake.append(Table.TARGET_EVENTS, rows(4, 1, "other"), key="other", expected_version=0)
    with pytest.raises(CommitFailed, match="is at version 1, the rows were computed from 0"):
        lake.replace_window(Table.TARGET_EVENTS, rows(3, 3), key="w", expected_version=0, opened=view, **WINDOW)
    assert (days(lake), days(lake, "other")) == ([], [4])
    assert view.version() == 1


def test_of_two_that_append_to_one_empty_window_one_lands(lake, monkeypatch):
    """The other one commits after the window was found empty, before the rows are written."""
    from scalr_prod.lake import tables

    first = tables.checked_window

    def overtaken(*args):
        monkeypatch.setattr(tables, "checked_window", first)
        lake.replace_window(Table.TARGET_EVENTS, rows(3, 1, "other"), key="other", expected_version=0, **WINDOW)
        return first(*args)

    monkeypatch.setattr(tables, "checked_window", overtaken)
    with pytest.raises(CommitFailed):
        lake.replace_window(Table.TARGET_EVENTS, rows(3, 3), key="w", expected_version=0, **WINDOW)
    assert (days(lake), days(lake, "other")) == ([], [3])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("beside", [[], [2], [6]])
def test_where_all_rows_lie_in_the_window_nothing_is_asked_for_in_place_of_them(lake, beside, streamed):
    lake.append(Table.TARGET_EVENTS, rows(3, 3, "old"), key="a")
    for day in beside:
        lake.append(Table.TARGET_EVENTS, rows(day, 1, "beside"), key=f"day {day}")
    made, version = rows(4, 2, "new"), lake.version(Table.TARGET_EVENTS)
    given = made.to_reader() if streamed else made
    assert lake.replace_window(Table.TARGET_EVENTS, given, key="w", expected_version=version, **WINDOW).version == version + 1
    said = lake.open_table(Table.TARGET_EVENTS).history(1)[0]["operationParameters"]
    assert (said["mode"], "predicate" in said) == ("Overwrite", bool(beside))
    assert (days(lake, "old"), days(lake, "new"), days(lake, "beside")) == ([], [4, 5], beside)


@pytest.mark.parametrize("expected", [1, None])
@pytest.mark.parametrize("day", [4, 8])
def test_what_another_writer_adds_is_not_lost_where_all_rows_are_replaced(lake, monkeypatch, day, expected):
    """The other one commits after all rows were found to lie in the window; to it, or beside it."""
    from scalr_prod.lake import tables

    lake.append(Table.TARGET_EVENTS, rows(3, 3, "old"), key="a")
    first = tables.checked_window

    def overtaken(*args):
        monkeypatch.setattr(tables, "checked_window", first)
        lake.append(Table.TARGET_EVENTS, rows(day, 1, "other"), key="other", expected_version=expected)
        return first(*args)

    monkeypatch.setattr(tables, "checked_window", overtaken)
    with pytest.raises(CommitFailed):
        lake.replace_window(Table.TARGET_EVENTS, rows(3, 2, "new"), key="w", expected_version=1, **WINDOW)
    assert (days(lake, "old"), days(lake, "new"), days(lake, "other")) == ([3, 4, 5], [], [day])


def test_a_row_outside_of_a_window_that_holds_all_rows_changes_nothing(lake):
    lake.append(Table.TARGET_EVENTS, rows(3, 3, "old"), key="a")
    with pytest.raises(CommitFailed, match="a row is outside the window from 2024-01-04"):
        lake.replace_window(Table.TARGET_EVENTS, rows(5, 2), key="w", expected_version=1, **WINDOW)
    assert (lake.version(Table.TARGET_EVENTS), days(lake, "old")) == (1, [3, 4, 5])


@pytest.mark.parametrize(("first", "count"), [(2, 2), (5, 2)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_row_outside_of_an_empty_window_fails_the_commit_and_changes_nothing(lake, first, count, streamed):
    made = rows(first, count)
    with pytest.raises(CommitFailed, match="a row is outside the window from 2024-01-04"):
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
