"""What an ingest takes and what it leaves in the lake, at the room's door."""

from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from scalr_prod.contracts import Table, id_type_of, schema_of
from scalr_prod.errors import BadValue, NoCommonUsers
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.settings import load_settings

DAY = pd.Timestamp("2024-03-01T12:00:00Z")


def log(*rows, **more) -> pd.DataFrame:
    """Rows (user, item, days after DAY) as a log; ``more`` are further columns."""
    made = pd.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "timestamp": pd.to_datetime([DAY + pd.Timedelta(row[2], "D") for row in rows]).astype("datetime64[us, UTC]"),
        }
    )
    return made.assign(**more)


SOURCE = log(("u1", "s1", 0), ("u1", "s2", 1), ("u2", "s1", 2))
TARGET = log(("u1", "t1", 0), ("u3", "t2", 1))


@pytest.fixture
def project(tmp_path):
    """Write two logs and a scalr.toml; gives the settings. A log is a frame (written as Parquet) or TOML lines."""

    def make(source=SOURCE, target=TARGET, *, source_toml="", target_toml="", extra=""):
        lines = []
        for name, events, toml in (("source", source, source_toml), ("target", target, target_toml)):
            lines += [f"[domains.{name}]", f'name = "{name}"']
            if isinstance(events, pd.DataFrame):
                events.to_parquet(tmp_path / f"{name}.parquet", index=False)
                lines.append(f'events = "{name}.parquet"')
            else:
                lines.append(events)
            lines.append(toml)
        (tmp_path / "scalr.toml").write_text("\n".join([*lines, extra]))
        return load_settings(tmp_path / "scalr.toml")

    return make


def rows_of(settings, table=Table.SOURCE_EVENTS):
    return Lake.open(settings).read(table).sort_by([("event_timestamp", "ascending")]).to_pylist()


def catalogue_of(settings, table=Table.SOURCE_ITEMS):
    return {
        row["item_id"]: (row["title"], row["category"], row["value"]) for row in Lake.open(settings).read(table).to_pylist()
    }


def triples(settings, table=Table.SOURCE_EVENTS):
    return sorted((row["user_id"], row["item_id"], row["event_timestamp"]) for row in rows_of(settings, table))


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
        expected = schema_of(table, user="string", item="string")
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
    from scalr_prod.ingest.commit import Addition

    compare, calls = Addition.compare, []

    def compare_then_another_commits(self):
        compare(self)
        calls.append(self.log.domain)
        if calls.count("source") == 1 and self.log.domain == "source":
            monkeypatch.setattr(Addition, "compare", compare)
            assert ingest(settings).domains["source"].rows_added == 1

    monkeypatch.setattr(Addition, "compare", compare_then_another_commits)
    assert ingest(settings).domains["source"].rows_added == 0
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))


def test_a_table_that_moves_on_just_before_it_is_compared_again_is_reported_as_it_was_compared(project, monkeypatch):
    from scalr_prod.ingest.commit import Addition

    compare, calls = Addition.compare, []

    def others_add(rows):
        with monkeypatch.context() as undone:
            undone.setattr(Addition, "compare", compare)
            ingest(project(source=SOURCE.head(rows)))

    def compare_beside_others(self):
        if self.log.domain == "source":
            calls.append(self)
            if len(calls) == 2:
                others_add(3)
        compare(self)
        if self.log.domain == "source" and len(calls) == 1:
            others_add(2)

    ingest(project(source=SOURCE.head(1)))
    monkeypatch.setattr(Addition, "compare", compare_beside_others)
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


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_typed_ids_keep_their_type(project, ids):
    kind = int if ids == "int64" else str
    source, target = (
        frame.assign(**{c: frame[c].str[1:].map(kind) for c in ("user_id", "item_id")}) for frame in (SOURCE, TARGET)
    )
    settings = project(source, target)
    ingest(settings)
    schema = Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS)
    assert {id_type_of(schema, column) for column in ("user_id", "item_id", "source_item_id")} == {ids}
    assert {row["user_id"] for row in rows_of(settings)} == {kind(1), kind(2)}


def test_the_domains_may_have_different_types_of_item_ids(project):
    settings = project(source=SOURCE.assign(item_id=[1, 2, 1]))
    ingest(settings)
    schema = Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS)
    assert id_type_of(schema, "item_id") == "string"
    assert id_type_of(schema, "source_item_id") == "int64"


def csv(tmp_path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return f'events = "{name}"'


@pytest.mark.parametrize(
    ("ids", "expected"),
    [(("1", "2"), 1), (("1", "x"), "1"), (("007", "1"), "007"), (("1", "9223372036854775808"), "1"), (("-3", "0"), -3)],
    ids=["all canonical", "one is a word", "leading zeros", "does not fit", "negative"],
)
def test_ids_of_a_text_file_are_int64_only_if_all_are_canonical(project, tmp_path, ids, expected):
    source = csv(tmp_path, "s.csv", "".join(["user_id,item_id,timestamp\n", *(f"{i},a,2024-01-01T00:00:00Z\n" for i in ids)]))
    target = csv(tmp_path, "t.csv", f"user_id,item_id,timestamp\n{ids[0]},b,2024-01-02T00:00:00Z\n")
    settings = project(source, target)
    ingest(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        assert rows_of(settings, table)[0]["user_id"] == expected


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("1.0", "2.0"), ("1", "2"), [1, 2]),
        (("1.0", "2.0"), ("1.0", "2.0"), ["1.0", "2.0"]),  # nothing says that these are numbers
        (("1.0", "b"), ("1.0", "2"), ["1.0", "b"]),
        (("123456789012345.0",), ("123456789012345",), [123456789012345]),
    ],
)
def test_whole_numbers_with_a_point_are_integers_where_the_other_side_has_integers(project, tmp_path, source, target, expected):
    def text(name, ids):
        return csv(tmp_path, name, "user_id,item_id,timestamp\n" + "".join(f"{i},a,2024-01-01T00:00:00Z\n" for i in ids))

    settings = project(text("s.csv", source), text("t.csv", target))
    ingest(settings)
    assert [row["user_id"] for row in rows_of(settings)] == expected
    ingest(settings)  # by what the lake holds
    assert [row["user_id"] for row in rows_of(settings)] == expected


@pytest.mark.parametrize("kind", [str, int])
def test_text_ids_follow_the_typed_side(project, tmp_path, kind):
    source = csv(tmp_path, "s.csv", "user_id,item_id,timestamp\n1,5,2024-01-01T00:00:00Z\n")
    settings = project(source, TARGET.assign(user_id=[kind(1), kind(3)]))
    assert ingest(settings).domains["source"].user_id == {str: "string", int: "int64"}[kind]
    assert [row["user_id"] for row in rows_of(settings)] == [kind(1)]


def test_text_ids_follow_what_the_lake_holds(project, tmp_path):
    ingest(project(source=SOURCE.assign(item_id=["1", "2", "3"])))
    settings = project(csv(tmp_path, "s.csv", "user_id,item_id,timestamp\nu1,4,2024-05-01T00:00:00Z\n"))
    ingest(settings)
    assert [row["item_id"] for row in rows_of(settings)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "ndjson", "parquet"])
def test_every_format_gives_the_same_rows(project, tmp_path, suffix):
    frame = SOURCE.assign(other='ignored, "quoted"\nand broken', timestamp=SOURCE["timestamp"].map(lambda t: t.isoformat()))
    path = tmp_path / f"s.{suffix}"
    if suffix == "parquet":
        SOURCE.to_parquet(path)
    else:
        separator = "\t" if suffix == "tsv" else ";"
        text = frame.to_csv(index=False, sep=separator) if "sv" in suffix else frame.to_json(orient="records", lines=True)
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    settings = project(f'events = "s.{suffix}"')
    ingest(settings)
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))


def test_globs_folders_and_fsspec_urls(project, tmp_path):
    import fsspec

    folder = tmp_path / "days"
    folder.mkdir()
    for day in range(3):
        SOURCE.iloc[day : day + 1].to_parquet(folder / f"{day}.parquet")
    memory = fsspec.filesystem("memory")
    with memory.open("/scalr-test/t.parquet", "wb") as file:
        TARGET.to_parquet(file)
    for events in ("days/*.parquet", "days"):
        settings = project(f'events = "{events}"', 'events = "memory://scalr-test/t.parquet"')
        assert ingest(settings).domains["source"].rows_read == 3
    assert triples(settings) == sorted(SOURCE.itertuples(index=False, name=None))
    assert triples(settings, Table.TARGET_EVENTS) == sorted(TARGET.itertuples(index=False, name=None))
    memory.rm("/scalr-test", recursive=True)


def test_dictionary_and_view_and_narrow_columns_are_taken(project, tmp_path):
    times = pa.array([0, 1], pa.timestamp("ns", tz="Asia/Tokyo"))
    table = pa.table(
        {
            "user_id": pa.array([3, 4], pa.uint8()),
            "item_id": pa.array(["a", "b"]).dictionary_encode(),
            "timestamp": times,
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    large = table.set_column(1, "item_id", pa.array(["a", "b"], pa.large_string()))
    pq.write_table(large, tmp_path / "t.parquet")
    settings = project('events = "s.parquet"', 'events = "t.parquet"')
    ingest(settings)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert triples(settings) == [(3, "a", epoch), (4, "b", epoch)]
    assert triples(settings, Table.TARGET_EVENTS) == triples(settings)


def test_naive_timestamps_are_taken_in_the_zone_of_the_settings(project):
    naive = SOURCE.assign(timestamp=SOURCE["timestamp"].dt.tz_localize(None))
    settings = project(naive, source_toml='timezone = "Europe/Paris"')
    ingest(settings)
    assert rows_of(settings)[0]["event_timestamp"] == DAY.to_pydatetime() - timedelta(hours=1)


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
