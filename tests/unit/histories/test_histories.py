"""When histories are built, when they are left alone, and what they look like on a small log."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from support.lakes import mark_home

from scalr_prod.config.settings import Settings, load_settings
from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import CommitFailed, LakeError, TableNotFound
from scalr_prod.histories import build, build_histories, row_stream
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.operations.erasure.tables import purge
from scalr_prod.schemas import Table, table_schema
from scalr_prod.workspace import SuppressionList
from scalr_prod.workspace.suppression_list import SuppressedId

#: Reads the whole shared data set.
long = pytest.mark.long

DAY0 = datetime(2024, 1, 1, tzinfo=UTC)
BUILT = (Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)


def day(number: float) -> datetime:
    return DAY0 + timedelta(days=number)


def project(folder, rows, **chosen) -> Settings:
    """A lake whose two event tables hold the rows (user, item, event day, created day)."""
    domains = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}
    settings = Settings(domains=domains, histories=chosen, base=folder)
    mark_home(settings)
    lake = Lake.open(settings)
    for table in Table:
        lake.create(table, table_schema(table, user="string", item="string"))
    add(settings, rows, "first")
    return settings


def add(settings, rows, key: str) -> None:
    lake = Lake.open(settings)
    schema = lake.schema(Table.TARGET_EVENTS)
    made = [(user, item, day(event), day(created), 1.0) for user, item, event, created in rows]
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*made, strict=True), schema, strict=True)]
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        lake.append(table, pa.Table.from_arrays(arrays, schema=schema), key=key)


def histories_of(settings, user="u", table=Table.SOURCE_USER_HISTORY):
    rows = [row for row in Lake.open(settings).read(table).to_pylist() if row["user_id"] == user]
    rows.sort(key=lambda row: (row["event_timestamp"], row["created_timestamp"]))
    return [
        (
            (row["event_timestamp"] - DAY0).days,
            (row["created_timestamp"] - DAY0).days,
            "".join(row["item_ids"]),
            row["event_count"],
        )
        for row in rows
    ]


def test_a_late_event_makes_new_rows_and_changes_none(tmp_path):
    settings = project(tmp_path, [("u", "a", 1, 1), ("u", "b", 2, 2), ("u", "c", 4, 4), ("u", "x", 3, 5), ("v", "z", 1, 9)])
    build_histories(settings)
    assert histories_of(settings) == [
        (1, 1, "a", 1),
        (2, 2, "ab", 2),
        # x happened on day 3, became known on day 5, and belongs before c from then on.
        (3, 5, "abx", 3),
        (4, 4, "abc", 3),
        (4, 5, "abxc", 4),
    ]
    assert histories_of(settings, "v") == [(1, 9, "z", 1)]


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "cut off"])
@pytest.mark.parametrize("later", [[], [("u", "c", 3, 3)]], ids=["same events", "new events"])
def test_a_table_that_lacks_a_file_is_built_again(is_lost, later, tmp_path, caplog):
    settings = project(tmp_path, [("u", "a", 1, 1), ("u", "b", 2, 2)])
    build_histories(settings)
    file = next((settings.home / "lake" / Table.SOURCE_USER_HISTORY.value).glob("*.parquet"))
    if is_lost:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    if later:
        add(settings, later, "later")
    if not later:
        assert file.name in build.rebuild_reason(settings)
    assert not build.are_histories_current(settings)
    with pytest.raises(LakeError, match=r"scalr run, which builds histories again"):
        Lake.open(settings).dataset(Table.SOURCE_USER_HISTORY)
    report = build_histories(settings)
    assert file.name in caplog.text
    assert report.tables[Table.SOURCE_USER_HISTORY.value].built
    assert not report.tables[Table.SOURCE_USER_HISTORY.value].appended
    assert histories_of(settings)[:2] == [(1, 1, "a", 1), (2, 2, "ab", 2)]
    assert build.are_histories_current(settings)


def test_a_pinned_version_that_lost_a_file_says_what_builds_it_again(tmp_path):
    settings = project(tmp_path, [("u", "a", 1, 1)])
    build_histories(settings)
    lake = Lake.open(settings)
    next((settings.home / "lake" / Table.SOURCE_USER_HISTORY.value).glob("*.parquet")).unlink()
    latest = lake.version(Table.SOURCE_USER_HISTORY)
    with pytest.raises(LakeError, match="scalr run, which builds histories again"):
        lake.open_table(Table.SOURCE_USER_HISTORY, version=latest)
    build_histories(settings)
    with pytest.raises(LakeError, match="plan the run on the current tables"):
        lake.open_table(Table.SOURCE_USER_HISTORY, version=latest)


def test_only_the_last_events_are_kept_and_all_are_counted(tmp_path):
    settings = project(tmp_path, [("u", item, number, number) for number, item in enumerate("abcdef")], length=3)
    build_histories(settings)
    assert histories_of(settings)[-2:] == [(4, 4, "cde", 5), (5, 5, "def", 6)]


def test_ties_are_one_row_in_the_order_of_a_hash(tmp_path):
    items = [f"item{number}" for number in range(8)]
    settings = project(tmp_path, [("u", item, 1, 1) for item in items])
    build_histories(settings)
    (row,) = Lake.open(settings).read(Table.SOURCE_USER_HISTORY).to_pylist()
    ordered = sorted(items, key=lambda item: hashlib.md5(item.encode(), usedforsecurity=False).digest()[:7:-1])
    assert row["item_ids"] == ordered != sorted(items)
    assert row["event_timestamps"] == [day(1)] * 8


def test_statistics_of_items(tmp_path):
    rows = [("u", "a", 1, 1), ("v", "a", 3, 3), ("w", "a", 3, 3), ("u", "a", 10, 10), ("x", "a", 0.5, 20.2)]
    settings = project(tmp_path, rows, trailing_days=7)
    build_histories(settings)
    found = Lake.open(settings).read(Table.TARGET_ITEM_STATS).to_pylist()
    found.sort(key=lambda row: (row["event_timestamp"], row["created_timestamp"]))
    columns = ("event_timestamp", "created_timestamp", "first_seen", "event_count", "trailing_event_count")
    # The window (t - 7 days, t] of day 10 leaves day 3 out.
    assert [tuple(row[name] for name in columns) for row in found] == [
        (day(0.5), day(20.2), day(0.5), 1, 1),
        (day(1), day(1), day(1), 1, 1),
        (day(1), day(20.2), day(0.5), 2, 2),
        (day(3), day(3), day(1), 3, 3),
        (day(3), day(20.2), day(0.5), 4, 4),
        (day(10), day(10), day(1), 4, 1),
        (day(10), day(20.2), day(0.5), 5, 1),
    ]


def test_a_second_call_does_nothing_and_a_changed_log_or_setting_builds_anew(tmp_path):
    rows = [("u", "a", 1, 1), ("u", "b", 2, 2)]
    settings = project(tmp_path, rows)
    lake = Lake.open(settings)
    report = build_histories(settings)
    assert all(table.built for table in report.tables.values())
    versions = [lake.version(table) for table in BUILT]
    again = build_histories(settings)
    assert not any(table.built for table in again.tables.values())
    assert [lake.version(table) for table in BUILT] == versions
    assert [table.rows for table in again.tables.values()] == [2, 2, 2]
    json.dumps(again.to_json())

    shorter = settings.model_copy(update={"histories": settings.histories.model_copy(update={"length": 1})})
    assert [table.built for table in build_histories(shorter).tables.values()] == [True, True, False]
    assert histories_of(settings) == [(1, 1, "a", 1), (2, 2, "b", 2)]
    # Back to the length that has been built before: the rows that are there now are others.
    assert [table.built for table in build_histories(settings).tables.values()] == [True, True, False]
    assert histories_of(settings) == [(1, 1, "a", 1), (2, 2, "ab", 2)]

    add(settings, [("u", "c", 3, 3)], "second")
    assert [(table.built, table.appended) for table in build_histories(settings).tables.values()] == [(True, True)] * 3
    assert histories_of(settings) == [(1, 1, "a", 1), (2, 2, "ab", 2), (3, 3, "abc", 3)]
    assert not any(table.built for table in build_histories(settings).tables.values())
    # Known no later than what the tables were built from: rows that are there change.
    add(settings, [("u", "d", 1.5, 3)], "third")
    assert [(table.built, table.appended) for table in build_histories(settings).tables.values()] == [(True, False)] * 3
    assert histories_of(settings)[-1] == (3, 3, "adbc", 4)


def log_of(days: int, first: int = 0) -> list[tuple[str, str, float, float]]:
    """200 events of 40 users each day, some of them known a day late."""
    return [
        (f"u{(7 * number + day) % 40}", f"i{(3 * number + day) % 25}", day + number / 200, day + number / 200 + number % 9 // 8)
        for day in range(first, first + days)
        for number in range(200)
    ]


def bytes_of(settings) -> int:
    return sum(path.stat().st_size for table in BUILT for path in (settings.home / "lake" / table).glob("*.parquet"))


def known_on(rows, day: int):
    return [row for row in rows if int(row[3]) == day]


def test_a_day_adds_what_the_day_brings_whatever_lies_before(tmp_path):
    rows = log_of(30)
    added = {}
    for name, before in (("short", 3), ("long", 29)):
        settings = project(tmp_path / name, [row for row in rows if 29 - before <= row[3] < 29], length=5)
        build_histories(settings)
        size = bytes_of(settings)
        add(settings, known_on(rows, 29), "day 29")
        report = build_histories(settings)
        assert all(table.appended for table in report.tables.values())
        added[name] = bytes_of(settings) - size
    assert added["long"] < 1.3 * added["short"]


def test_a_build_that_was_cut_off_between_two_tables_is_finished_and_adds_nothing_twice(tmp_path, monkeypatch):
    rows = log_of(4)
    settings = project(tmp_path / "days", [row for row in rows if row[3] < 3], length=5)
    build_histories(settings)
    add(settings, known_on(rows, 3), "day 3")
    commit = Lake.append

    def cut_off(self, table, *args, **kwargs):
        commit(self, table, *args, **kwargs)
        if table is Table.TARGET_USER_HISTORY:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build_histories(settings)
    report = build_histories(settings)
    assert [table.appended for table in report.tables.values()] == [False, False, True]
    whole = project(tmp_path / "whole", [row for row in rows if row[3] < 3], length=5)
    add(whole, known_on(rows, 3), "day 3")
    build_histories(whole)
    for table in BUILT:
        found, expected = (
            sorted(Lake.open(made).read(table).to_pylist(), key=lambda row: repr(sorted(row.items())))
            for made in (settings, whole)
        )
        assert found == expected


def test_events_that_were_written_anew_or_whose_former_version_is_gone_are_built_from_anew(tmp_path):
    settings = project(tmp_path, [("u", "a", 1, 1), ("u", "b", 2, 2)])
    build_histories(settings)
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        lake.replace(table, lake.read(table), key="written anew")
    add(settings, [("u", "c", 3, 3)], "second")
    assert not any(table.appended for table in build_histories(settings).tables.values())
    assert histories_of(settings) == [(1, 1, "a", 1), (2, 2, "ab", 2), (3, 3, "abc", 3)]


def test_the_log_says_why_a_table_is_built_from_all_events(tmp_path, caplog):
    """The last one: of two logs that know no delivery times, one ends a day before the other, each day again."""
    caplog.set_level(logging.INFO, "scalr_prod.histories")

    def said(made: Settings) -> set[str]:
        caplog.clear()
        assert all(table.built for table in build_histories(made).tables.values())
        told = [record.getMessage() for record in caplog.records if "from all events" in record.getMessage()]
        assert len({line.split(" ")[1] for line in told}) == len(told), "once of each table"
        return {line.partition(": ")[2] for line in told}

    settings = project(tmp_path, [("u", "a", 1, 1), ("u", "b", 2, 2)])
    assert said(settings) == {"no record of an earlier build"}
    add(settings, [("u", "c", 3, 3)], "appended")
    assert said(settings) == set()
    coarser = settings.model_copy(update={"histories": settings.histories.model_copy(update={"late_step_s": 200_000})})
    assert said(coarser) == {"the settings or the row layout have changed"}
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        lake.replace(table, lake.read(table), key="written anew")
    assert said(coarser) == {f"files of {events}_events were rewritten" for events in ("source", "target")}
    for number in (4, 5):
        add(settings, [("u", "x", number, number), ("v", "y", number - 1, number - 1)], f"day {number}")
        for told in said(coarser):
            assert (
                f"created at {day(number - 1).isoformat()}, not after the latest one of the last build, {day(number - 1).isoformat()}"
                in told
            )
            assert "set `created` in [domains.*] columns to a column that is filled at delivery" in told


def test_two_at_the_same_time_end_with_the_same_table(tmp_path):
    settings = project(tmp_path, [(f"u{n % 7}", f"i{n % 5}", n, n) for n in range(100)])
    errors = []
    start = threading.Barrier(3)

    def work():
        start.wait()
        try:
            build_histories(settings)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Lake.open(settings).dataset(Table.SOURCE_USER_HISTORY).count_rows() == 100
    assert not any(table.built for table in build_histories(settings).tables.values())


def test_events_that_are_removed_while_their_tables_are_built_come_back_in_none(tmp_path, monkeypatch):
    """Also where the log was cut. Events that are added meanwhile are for the next build."""
    settings = project(tmp_path, [("u", "a", 1, 1), ("gone", "a", 1, 1)])
    lake, write, written = Lake.open(settings), build.write_all_rows, []

    def meanwhile(builds, *rest, **options):
        rows = write(builds, *rest, **options)
        written.append([each.table for each in builds])
        if len(written) == 1:
            add(settings, [("u", "b", 2, 2)], "meanwhile")
            lake.delete(Table.TARGET_EVENTS, "user_id = 'gone'", key="forgotten")
            assert purge(lake, Table.TARGET_EVENTS, before=datetime.now(UTC) + timedelta(days=1))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_all_rows", meanwhile)
        report = build_histories(settings)
    assert written == [[*BUILT], [Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS]]
    for table in BUILT:
        folder = settings.home / "lake" / table
        assert {path.name for path in folder.glob("*.parquet")} == file_names(lake.open_table(table))
    for table in (Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS):
        assert report.tables[table.value].events_version == lake.version(Table.TARGET_EVENTS)
    assert histories_of(settings, table=Table.TARGET_USER_HISTORY) == [(1, 1, "a", 1), (2, 2, "ab", 2)]
    assert histories_of(settings, "gone", Table.TARGET_USER_HISTORY) == []
    statistics = lake.read(Table.TARGET_ITEM_STATS).to_pylist()
    assert {row["item_id"]: row["event_count"] for row in statistics} == {"a": 1, "b": 1}
    assert histories_of(settings) == [(1, 1, "a", 1)]
    build_histories(settings)
    assert histories_of(settings) == [(1, 1, "a", 1), (2, 2, "ab", 2)]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_table_is_built_again_where_somebody_is_forgotten_meanwhile_but_not_without_end(tmp_path, monkeypatch, rounds):
    settings = project(tmp_path, [("u", "a", 1, 1), ("gone", "a", 1, 1)])
    write, written = build.write_all_rows, []

    def forget_meanwhile(builds, *rest, **options):
        rows = write(builds, *rest, **options)
        written.append(len(builds))
        if len(written) <= rounds:
            with SuppressionList.open_for_update(settings) as suppressed:
                user = suppressed.digest(f"gone {len(written)}", "user")
                suppressed.update([SuppressedId(user, datetime.now(UTC))], "user")
        return rows

    monkeypatch.setattr(build, "write_all_rows", forget_meanwhile)
    if rounds == 1:
        assert all(table.built for table in build_histories(settings).tables.values())
        assert written == [3, 3]
        return
    with pytest.raises(CommitFailed, match="each of the 3 times"):
        build_histories(settings)
    assert written == [3, 3, 3]
    assert not list((settings.home / "lake" / Table.SOURCE_USER_HISTORY).glob("*.parquet"))


def test_a_day_opens_each_log_once_and_that_of_former_events(tmp_path, monkeypatch):
    settings = project(tmp_path, [("u", "a", 1, 1)])
    build_histories(settings)
    add(settings, [("u", "b", 2, 2)], "second")
    opened, opening = [], DeltaTable.__init__

    def counted(self, uri, version=None, **options):
        opened.append((str(uri).rpartition("/")[2], version))
        opening(self, uri, version=version, **options)

    monkeypatch.setattr(DeltaTable, "__init__", counted)
    assert all(table.appended for table in build_histories(settings).tables.values())
    events = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
    now = [(table.value, None) for table in (*events, *BUILT, Table.SYNTHETIC_QUARANTINE)]
    assert sorted(opened, key=str) == sorted([*now, *((table.value, 1) for table in events)], key=str)


def test_files_that_no_recent_version_uses_are_deleted(tmp_path):
    settings = project(tmp_path, [("u", "a", 1, 1)])
    lake = Lake.open(settings)
    folder = settings.home / "lake" / Table.SOURCE_USER_HISTORY
    for number in range(3):
        # Known no later than the first event, so that the table is replaced each time.
        add(settings, [("u", "b", number / 9, number / 9)], f"more {number}")
        build_histories(settings)
    assert len(list(folder.glob("*.parquet"))) == 3
    assert lake.vacuum(Table.SOURCE_USER_HISTORY) == 0
    assert lake.vacuum(Table.SOURCE_USER_HISTORY, keep_days=0) == 2
    assert len(list(folder.glob("*.parquet"))) == 1
    assert sorted(row[3] for row in histories_of(settings)) == [1, 2, 3, 4]
    report = build_histories(settings)
    assert report.tables[Table.TARGET_USER_HISTORY].built is False


def test_before_an_ingest_it_says_what_to_run(tmp_path):
    domains = {"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}
    with pytest.raises(TableNotFound, match="scalr ingest"):
        build_histories(Settings(domains=domains, base=tmp_path))


def disorder(events: int) -> list[tuple[str, str, float, float]]:
    """One user's events, all loaded at the end in random order: a state for each pair of them."""
    created = 100 + np.random.default_rng(0).permutation(events) / events
    return [("u", f"i{number}", number / events, float(created[number])) for number in range(events)]


def test_a_log_that_would_fill_the_disk_is_refused_and_steps_make_it_small(tmp_path, monkeypatch):
    monkeypatch.setattr(row_stream, "_ROWS_ALWAYS", 0)
    settings = project(tmp_path, disorder(400), length=2)
    with pytest.raises(LakeError, match="more than 8000 rows") as caught:
        build_histories(settings)
    assert "late_step_s" in str(caught.value)
    lake = Lake.open(settings)
    assert lake.version(Table.SOURCE_USER_HISTORY) == 0
    stepped = settings.model_copy(update={"histories": settings.histories.model_copy(update={"late_step_s": 86400})})
    build_histories(stepped)
    rows = lake.read(Table.SOURCE_USER_HISTORY).to_pylist()
    assert len(rows) <= 800
    last = max(rows, key=lambda row: (row["event_timestamp"], row["created_timestamp"]))
    assert (last["item_ids"], last["event_count"]) == (["i398", "i399"], 400)


def test_one_huge_user_beside_small_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(row_stream, "_CHUNK", 64)
    monkeypatch.setattr(row_stream, "_BATCH", 50)
    rows = [("huge", f"i{number % 9}", number / 10, number / 10 + (number % 3 == 0)) for number in range(2000)]
    rows += [(user, "i1", number, number) for user in "agiz" for number in range(20)]
    settings = project(tmp_path, rows, length=4)
    build_histories(settings)
    found = Lake.open(settings).read(Table.SOURCE_USER_HISTORY).to_pandas()
    assert found.groupby("user_id")["event_count"].max().to_dict() == {"huge": 2000, "a": 20, "g": 20, "i": 20, "z": 20}
    assert not found.duplicated(["user_id", "event_timestamp", "created_timestamp"]).any()


def test_histories_of_an_ingested_log(settings):
    ingest(settings)
    report = build_histories(settings, progress=True)
    lake = Lake.open(settings)
    for domain in ("source", "target"):
        events = lake.read(Table.events(domain)).to_pandas()
        found = lake.read(Table.history(domain)).to_pandas()
        assert (
            len(found)
            == report.tables[Table.history(domain).value].rows
            == len(events.drop_duplicates(["user_id", "event_timestamp"]))
        )
        assert found.groupby("user_id")["event_count"].max().equals(events.groupby("user_id").size().rename("event_count"))
    assert not list((settings.home / "staging").iterdir())


@long
@pytest.mark.data
def test_real_domains_in_seconds(amazon, tmp_path):
    (tmp_path / "scalr.toml").write_text(
        f'[domains.source]\nname = "kitchen"\nevents = "{amazon}/kitchen.parquet"\nitems = "{amazon}/items.parquet"\n'
        f'[domains.target]\nname = "food"\nevents = "{amazon}/food.parquet"\nitems = "{amazon}/items.parquet"\n'
    )
    settings = load_settings(tmp_path / "scalr.toml")
    report = ingest(settings)
    assert report.common_users == 7144
    assert [part.catalogue for part in report.domains.values()] == [16258, 11837]
    build_histories(settings)
    lake = Lake.open(settings)
    events = lake.read(Table.SOURCE_EVENTS).to_pandas()
    found = lake.read(Table.SOURCE_USER_HISTORY).to_pandas()
    assert len(found) == len(events.drop_duplicates(["user_id", "event_timestamp"]))
    latest = found.sort_values("event_timestamp").groupby("user_id").tail(1).set_index("user_id")
    for user, own in list(events.groupby("user_id"))[:200]:
        assert sorted(latest.loc[user, "item_ids"]) == sorted(own["item_id"])
