"""What an ingest takes and what it leaves in the lake, at the room's door."""

from __future__ import annotations

import json
import threading

import pandas as pd
import pytest
from deltalake import DeltaTable
from support.ingest_project import DAY, SOURCE, log, project_in, rows_of, triples

from scalr_prod.errors import BadValue, NoCommonUsers
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table, table_schema

#: Two ingests at once, in further orders.
long = pytest.mark.long


@pytest.fixture
def project(tmp_path):
    return project_in(tmp_path)


def catalogue_of(settings, table=Table.SOURCE_ITEMS):
    return {
        row["item_id"]: (row["title"], row["category"], row["value"]) for row in Lake.open(settings).read(table).to_pylist()
    }


def test_both_logs_arrive_and_every_later_table_is_there_empty(settings, two_domains):
    report = ingest(settings)
    lake = Lake.open(settings)
    for domain, path in (("source", two_domains.source), ("target", two_domains.target)):
        raw = pd.read_parquet(path)
        found = lake.read(Table.events(domain)).to_pandas()
        assert len(found) == len(raw) == report.domains[domain].rows_added == report.domains[domain].rows_read
        left = raw.sort_values(["timestamp", "user_id", "item_id"], ignore_index=True)
        right = found.sort_values(["event_timestamp", "user_id", "item_id"], ignore_index=True)
        assert (left["user_id"] == right["user_id"]).all()
        assert (left["item_id"] == right["item_id"]).all()
        assert (left["timestamp"] == right["event_timestamp"]).all()
        assert (right["created_timestamp"] == right["event_timestamp"]).all()
        assert (right["weight"] == 1).all()
    common = set(pd.read_parquet(two_domains.source)["user_id"]) & set(pd.read_parquet(two_domains.target)["user_id"])
    assert report.common_users == len(common)
    for table in Table:
        expected = table_schema(table, user="string", item="string")
        assert lake.schema(table).names == expected.names
        if table not in {Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS}:
            assert lake.dataset(table).count_rows() == 0
    assert not list((settings.home / "staging").iterdir())
    json.dumps(report.to_json())


def test_the_same_input_twice_adds_nothing(settings):
    ingest(settings)
    lake = Lake.open(settings)
    versions = {table: lake.version(table) for table in Table}
    again = ingest(settings)
    assert {table: lake.version(table) for table in Table} == versions
    assert [report.rows_added for report in again.domains.values()] == [0, 0]
    assert all(report.rows == report.rows_read for report in again.domains.values())


def test_a_grown_log_adds_its_new_rows_only(project):
    ingest(project())
    grown = pd.concat([SOURCE, log(("u9", "s9", -5))])
    settings = project(source=grown.sample(frac=1, random_state=1))
    report = ingest(settings)
    assert report.domains["source"].rows_added == 1
    assert report.domains["target"].rows_added == 0
    assert triples(settings) == sorted(grown.itertuples(index=False, name=None))


def test_a_day_opens_the_lakes_logs_a_bounded_number_of_times_and_describes_no_files_but_its_own(project, monkeypatch):
    ingest(project())
    opened, described, opening = [], [], DeltaTable.__init__
    describing = DeltaTable.to_pyarrow_dataset

    def counted(self, uri, **options):
        opened.append(str(uri).rpartition("/")[2])
        opening(self, uri, **options)

    def told(self, *arguments, **options):
        described.append(self.table_uri)
        return describing(self, *arguments, **options)

    settings = project(log(("u1", "s2", 40)), log(("u3", "t1", 40)))
    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "__init__", counted)
        patch.setattr(DeltaTable, "to_pyarrow_dataset", told)
        report = ingest(settings)
    assert [domain.rows_added for domain in report.domains.values()] == [1, 1]
    assert not described
    assert set(opened) == {table.value for table in Table}, "each is seen to be the project's own"
    assert len(opened) <= 35
    expected = [("u1", "s1", 0), ("u1", "s2", 1), ("u1", "s2", 40), ("u2", "s1", 2)]
    assert triples(settings) == [(user, item, DAY + pd.Timedelta(day, "D")) for user, item, day in expected]


def test_a_log_is_a_multiset(project):
    twice = log(("u1", "s1", 0), ("u1", "s1", 0), ("u2", "s1", 1))
    settings = project(source=twice)
    assert ingest(settings).domains["source"].rows_added == 3
    assert ingest(settings).domains["source"].rows_added == 0
    settings = project(source=pd.concat([twice, twice.head(1)]))
    assert ingest(settings).domains["source"].rows_added == 1
    assert len(rows_of(settings)) == 4
    # A shorter log takes nothing away.
    assert ingest(project(source=twice.head(1))).domains["source"].rows_added == 0
    assert len(rows_of(settings)) == 4


@long
def test_ingests_at_the_same_time_add_each_row_once(settings, two_domains):
    added, errors = [], []
    start = threading.Barrier(4)

    def work():
        start.wait()
        try:
            added.append(ingest(settings).domains["source"].rows_added)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    size = len(pd.read_parquet(two_domains.source))
    assert sum(added) == size
    assert len(rows_of(settings)) == size
    assert len(catalogue_of(settings)) == pd.read_parquet(two_domains.source)["item_id"].nunique()


def test_a_table_that_moves_on_between_comparison_and_commit_is_compared_again(project, monkeypatch):
    settings = project()
    others = project(source=SOURCE.head(2))
    ingest(others)
    settings = project()
    from scalr_prod.ingest.append import AppendMissing

    compare, calls = AppendMissing.compare_rounds, []

    def compare_then_another_commits(self):
        yield from compare(self)
        calls.append(self.log.domain)
        if calls.count("source") == 1 and self.log.domain == "source":
            monkeypatch.setattr(AppendMissing, "compare_rounds", compare)
            assert ingest(settings).domains["source"].rows_added == 1

    monkeypatch.setattr(AppendMissing, "compare_rounds", compare_then_another_commits)
    assert ingest(settings).domains["source"].rows_added == 0
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))


@long
def test_a_table_that_moves_on_just_before_it_is_compared_again_is_reported_as_it_was_compared(project, monkeypatch):
    from scalr_prod.ingest.append import AppendMissing

    compare, calls = AppendMissing.compare_rounds, []

    def others_add(rows):
        with monkeypatch.context() as undone:
            undone.setattr(AppendMissing, "compare_rounds", compare)
            ingest(project(source=SOURCE.head(rows)))

    def compare_beside_others(self):
        if self.log.domain == "source":
            calls.append(self)
            if len(calls) == 2:
                others_add(3)
        yield from compare(self)
        if self.log.domain == "source" and len(calls) == 1:
            others_add(2)

    ingest(project(source=SOURCE.head(1)))
    monkeypatch.setattr(AppendMissing, "compare_rounds", compare_beside_others)
    settings = project()
    report = ingest(settings).domains["source"]
    assert len(calls) == 2
    assert (report.rows_added, report.rows) == (0, len(SOURCE))
    assert report.version == Lake.open(settings).version(Table.SOURCE_EVENTS)


def test_one_domain_at_a_time(project):
    settings = project()
    lake = Lake.open(settings)
    report = ingest(settings, domain="source")
    assert report.common_users is None
    assert list(report.domains) == ["source"]
    assert lake.exists(Table.SOURCE_USER_HISTORY)
    assert not lake.exists(Table.TARGET_EVENTS)
    assert ingest(settings, domain="target").common_users == 1
    assert all(lake.exists(table) for table in Table)


def test_one_domain_with_no_user_of_the_other_is_refused(project):
    settings = project(target=log(("x", "t1", 0)))
    ingest(settings, domain="source")
    with pytest.raises(NoCommonUsers):
        ingest(settings, domain="target")
    assert not Lake.open(settings).exists(Table.TARGET_EVENTS)


def test_new_users_need_not_be_common_when_the_lake_has_common_ones(project):
    ingest(project())
    settings = project(source=log(("u7", "s1", 9)), target=log(("u8", "t1", 9)))
    assert ingest(settings).domains["source"].rows_added == 1
    assert len(rows_of(settings)) == 4


def test_created_and_weight_are_read(project):
    created = [DAY + pd.Timedelta(5, "D"), DAY, DAY + pd.Timedelta(2, "D")]
    settings = project(
        source=SOURCE.assign(seen=created, w=[0.0, 2.5, 7]), source_toml='columns = { created = "seen", weight = "w" }'
    )
    report = ingest(settings)
    rows = rows_of(settings)
    assert [row["weight"] for row in rows] == [0.0, 2.5, 7.0]
    # The second claims to be known a day before it happened: it counts as known when it happened.
    assert [row["created_timestamp"] for row in rows] == [
        created[0].to_pydatetime(),
        rows[1]["event_timestamp"],
        created[2].to_pydatetime(),
    ]
    assert report.domains["source"].created_lifted == 1


def test_mapping_created_anew_does_not_count_every_event_twice(project):
    late = SOURCE.assign(seen=SOURCE["timestamp"] + pd.Timedelta(1, "h"))
    ingest(project(source=late))
    settings = project(source=late, source_toml='columns = { created = "seen" }')
    with pytest.raises(BadValue, match="3 of 3 events are in the lake already") as caught:
        ingest(settings)
    assert "[domains.source.columns]" in caught.value.next_step
    assert len(rows_of(settings)) == 3


def test_another_event_at_the_same_time_is_no_change_of_mapping(project):
    ingest(project())
    again = log(("u1", "s1", 0), ("u2", "s5", 0), ("u2", "s6", 0), w=[3.0, 1.0, 1.0])
    settings = project(source=again, source_toml='columns = { weight = "w" }')
    assert ingest(settings).domains["source"].rows_added == 3


def test_one_item_file_may_hold_both_domains_and_the_last_row_of_an_id_counts(project, tmp_path):
    items = pd.DataFrame(
        {
            "item_id": ["s1", "t1", "s1", "s2", "unused"],
            "title": ["old", "T", "new", " ", "U"],
            "value": [1.0, 2.0, 3.0, float("nan"), 5.0],
        }
    )
    items.to_parquet(tmp_path / "items.parquet")
    settings = project(source_toml='items = "items.parquet"', target_toml='items = "items.parquet"')
    report = ingest(settings)
    assert catalogue_of(settings) == {"s1": ("new", None, 3.0), "s2": (None, None, None)}
    assert catalogue_of(settings, Table.TARGET_ITEMS) == {"t1": ("T", None, 2.0), "t2": (None, None, None)}
    assert report.domains["source"].catalogue_duplicates == 1


def test_a_catalogue_keeps_what_it_knew_and_takes_what_is_new(project, tmp_path):
    (tmp_path / "i.csv").write_text("sku,name,price\ns1,one,1.5\ns2,two,\n")
    mapped = 'items = "i.csv"\nitem_columns = { item = "sku", title = "name", value = "price" }'
    ingest(project(source_toml=mapped))
    (tmp_path / "i.csv").write_text("sku,name,price\ns2,zwei,2\ns3,three,3\n")
    settings = project(source=pd.concat([SOURCE, log(("u1", "s3", 3))]), source_toml=mapped)
    assert ingest(settings).domains["source"].catalogue == 3
    expected = {"s1": ("one", None, 1.5), "s2": ("zwei", None, 2.0), "s3": ("three", None, 3.0)}
    assert catalogue_of(settings) == expected
    ingest(project())
    assert catalogue_of(settings) == expected


def test_progress_goes_to_stderr_only(project, capfd):
    ingest(project(), progress=True)
    assert not capfd.readouterr().out


def test_figures_of_the_log_and_of_the_table_stand_apart(project):
    first = ingest(project()).domains["source"]
    assert (first.users_read, first.items_read) == (first.users, first.items) == (2, 2)
    # Tomorrow's file holds the new rows alone.
    later = ingest(project(source=log(("u1", "s3", 9)), target=log(("u1", "t1", 0)))).domains["source"]
    assert (later.rows_read, later.users_read, later.items_read) == (1, 1, 1)
    assert (later.rows, later.users, later.items) == (4, 2, 3)
    assert (later.first_read, later.last_read) == (DAY + pd.Timedelta(9, "D"),) * 2
    assert (later.first_event, later.last_event) == (DAY, DAY + pd.Timedelta(9, "D"))
    json.dumps(later.to_json())
