"""`ingest --replace`: the lake's events equal the logs from an instant on; what lies before is left alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import BadValue, EmptyInput
from scalr_prod.histories import are_histories_current, build_histories
from scalr_prod.ingest import ingest
from scalr_prod.ingest.pipeline import IngestPipeline
from scalr_prod.lake import Lake
from scalr_prod.lake.corrections import corrections_since, stale_since
from scalr_prod.schemas import Table

#: Ingests a second project to compare with.
long = pytest.mark.long

DAY = pd.Timestamp("2024-03-01", tz="UTC")
NOON_3 = datetime(2024, 3, 3, 12, tzinfo=UTC)


def log(*rows) -> pd.DataFrame:
    """Rows (user, item, days after DAY)."""
    made = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
    made["timestamp"] = (DAY + pd.to_timedelta(made.pop("day"), unit="D")).astype("datetime64[us, UTC]")
    return made


SOURCE = log(*[(f"u{n % 3}", f"s{n % 4}", n) for n in range(8)], ("u0", "s0", 4), ("u0", "s0", 4))
TARGET = log(*[(f"u{n % 3}", f"t{n % 2}", n) for n in range(6)])


@pytest.fixture
def project(tmp_path):
    """Write both logs; gives the settings."""

    def make(source=SOURCE, target=TARGET, toml=""):
        source.to_parquet(tmp_path / "s.parquet", index=False)
        target.to_parquet(tmp_path / "t.parquet", index=False)
        (tmp_path / "scalr.toml").write_text(
            f'[domains.source]\nname = "source"\nevents = "s.parquet"\n{toml}\n[domains.target]\nname = "target"\nevents = "t.parquet"\n'
        )
        return load_settings(tmp_path / "scalr.toml")

    return make


def events(settings, table=Table.SOURCE_EVENTS):
    rows = Lake.open(settings).read(table).to_pylist()
    return sorted((row["user_id"], row["item_id"], row["event_timestamp"]) for row in rows)


def rows(frame):
    return sorted(frame.itertuples(index=False, name=None))


def test_rows_gone_from_the_log_leave_the_lake_in_one_commit(project):
    ingest(project())
    lake = Lake.open(project())
    before = {table: lake.version(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)}
    # One of two equal rows goes, one row goes, one comes, and one is another item from now on.
    corrected = SOURCE.drop(index=[5, 9])
    corrected.loc[6, "item_id"] = "s9"
    corrected = pd.concat([corrected, log(("u9", "s1", 9))])
    report = ingest(project(corrected), replace=NOON_3).domains["source"]
    assert (report.rows_added, report.rows_removed, report.rows) == (2, 3, len(corrected))
    assert events(project(corrected)) == rows(corrected)
    assert lake.version(Table.SOURCE_EVENTS) == before[Table.SOURCE_EVENTS] + 1
    assert lake.version(Table.TARGET_EVENTS) == before[Table.TARGET_EVENTS]
    (found,) = corrections_since(lake, Table.SOURCE_EVENTS, before[Table.SOURCE_EVENTS])
    assert (found.removed, found.added, found.since) == (3, 2, DAY + pd.Timedelta(4, "D"))
    # The same again changes nothing.
    again = ingest(project(corrected), replace=NOON_3).domains["source"]
    assert (again.rows_added, again.rows_removed, again.version) == (0, 0, report.version)


def test_what_lies_before_the_window_is_left_alone(project):
    ingest(project())
    late = SOURCE[SOURCE["timestamp"] >= NOON_3].drop(index=7)
    settings = project(pd.concat([late, log(("u5", "s5", 0.5))]))
    report = ingest(settings, domain="source", replace=NOON_3).domains["source"]
    assert (report.rows_added, report.rows_removed) == (0, 1)
    assert events(settings) == rows(SOURCE.drop(index=7))


def test_a_row_of_2099_goes_with_its_item_and_nothing_else_is_touched(project):
    far = log(("u0", "s77", 27_000))
    ahead = "ahead_days = 40000"
    ingest(project(pd.concat([SOURCE, far]), toml=ahead))
    lake = Lake.open(project())
    assert "s77" in lake.read(Table.SOURCE_ITEMS)["item_id"].to_pylist()
    settings = project(SOURCE, toml=ahead)
    report = ingest(settings, replace=datetime(2090, 1, 1, tzinfo=UTC)).domains["source"]
    assert (report.rows_removed, report.rows, report.catalogue) == (1, len(SOURCE), 4)
    assert events(settings) == rows(SOURCE)
    assert sorted(lake.read(Table.SOURCE_ITEMS)["item_id"].to_pylist()) == ["s0", "s1", "s2", "s3"]
    # What had been read of earlier days by then is not stale, what knew the row is.
    versions = {Table.SOURCE_EVENTS.value: 1}
    assert stale_since(lake, versions, datetime(2030, 1, 1, tzinfo=UTC)) is None
    assert stale_since(lake, versions, datetime(2100, 1, 1, tzinfo=UTC)).year == 2098


def test_a_log_that_lacks_too_much_is_refused(project):
    ingest(project())
    few = SOURCE.head(3)
    with pytest.raises(BadValue, match=r"7 of the domain's 10 events .*max_removed_share = 0.5"):
        ingest(project(few), replace=DAY.to_pydatetime())
    assert events(project()) == rows(SOURCE)
    assert ingest(project(few, toml="max_removed_share = 0.7"), replace=DAY.to_pydatetime()).domains["source"].rows == 3
    with pytest.raises(EmptyInput):
        ingest(project(SOURCE.head(0)), replace=DAY.to_pydatetime())


def test_a_replacement_that_leaves_a_domain_without_events_is_refused_before_any_commit(project):
    settings = project(toml="max_removed_share = 1")
    lake = Lake.open(settings)
    with pytest.raises(EmptyInput, match=r"no events from 2024-06-01.* on, and the lake would have none"):
        ingest(settings, replace=datetime(2024, 6, 1, tzinfo=UTC))
    assert not any(lake.exists(table) for table in Table)
    ingest(settings)
    with pytest.raises(EmptyInput, match="the lake would have none of the domain"):
        ingest(project(log(("u0", "s0", -9)), toml="max_removed_share = 1"), replace=DAY.to_pydatetime())
    assert events(settings) == rows(SOURCE)


@long
def test_histories_are_those_of_a_project_that_never_had_the_rows(project, tmp_path):
    # Known in order, so that days are appended: a replacement is not.
    ingest(project(SOURCE.head(4)))
    build_histories(project())
    ingest(project())
    assert build_histories(project()).tables["source_user_history"].appended
    corrected = SOURCE.drop(index=[7])
    settings = project(corrected)
    ingest(settings, replace=NOON_3)
    assert not are_histories_current(settings)
    report = build_histories(settings).tables
    assert report["source_user_history"].built
    assert not report["source_user_history"].appended
    assert not report["target_user_history"].built
    found = Lake.open(settings).read(Table.SOURCE_USER_HISTORY)
    other = settings.model_copy(update={"project": settings.project.model_copy(update={"home": str(tmp_path / "other")})})
    ingest(other)
    build_histories(other)
    order = [("user_id", "ascending"), ("event_timestamp", "ascending"), ("created_timestamp", "ascending")]
    assert found.sort_by(order).equals(Lake.open(other).read(Table.SOURCE_USER_HISTORY).sort_by(order))


@long
def test_of_several_sources_only_the_one_that_is_read_is_replaced(tmp_path):
    def make(first, second):
        for name, frame in (("a", first), ("b", second), ("t", TARGET)):
            frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
        (tmp_path / "scalr.toml").write_text(
            '[domains.sources.a]\nevents = "a.parquet"\n[domains.sources.b]\nevents = "b.parquet"\n'
            '[domains.target]\nname = "target"\nevents = "t.parquet"\n'
        )
        return load_settings(tmp_path / "scalr.toml")

    def of(frame, name):
        return [(user, f"{name}:{item}", time) for user, item, time in frame.itertuples(index=False, name=None)]

    ingest(make(SOURCE, SOURCE))
    settings = make(SOURCE.drop(index=7), SOURCE.drop(index=[6, 7]))
    ingest(settings, domain="sources.a", replace=NOON_3)
    assert events(settings) == sorted(of(SOURCE.drop(index=7), "a") + of(SOURCE, "b"))
    before = Lake.open(settings).version(Table.SOURCE_EVENTS)
    reports = ingest(settings, replace=NOON_3).domains
    assert [reports[f"sources.{name}"].rows_removed for name in "ab"] == [0, 2]
    assert events(settings) == sorted(of(SOURCE.drop(index=7), "a") + of(SOURCE.drop(index=[6, 7]), "b"))
    assert Lake.open(settings).version(Table.SOURCE_EVENTS) == before + 1


def test_the_status_says_that_histories_are_to_be_built(project):
    with Project(project()) as opened:
        opened.ingest()
        opened.histories()
        assert {state.stage: state.done for state in opened.status()}["histories"]
    with Project(project(SOURCE.drop(index=7))) as opened:
        opened.ingest("source", replace=NOON_3)
        assert not {state.stage: state.done for state in opened.status()}["histories"]


def test_an_event_id_that_moves_into_the_window_is_refused_and_nothing_changes(project):
    """Its event of before the window would stay, so that the id would be there twice."""
    toml = 'columns = { event_id = "id" }'
    named = SOURCE.assign(id=[f"e{n}" for n in range(len(SOURCE))])
    settings = project(named, toml=toml)
    ingest(settings)
    before = Lake.open(settings).version(Table.SOURCE_EVENTS)
    moved = named.copy()
    moved.loc[1, "timestamp"] = moved.loc[6, "timestamp"]
    with pytest.raises(BadValue, match="1 events of the log, such as e1, are in the lake with a time before") as caught:
        ingest(project(moved, toml=toml), replace=NOON_3)
    assert "earlier time" in caught.value.next_step
    assert Lake.open(settings).version(Table.SOURCE_EVENTS) == before
    report = ingest(project(moved, toml=toml), replace=DAY.to_pydatetime()).domains["source"]
    assert (report.rows_added, report.rows_removed, report.rows) == (1, 1, len(named))
    ids = Lake.open(settings).read(Table.SOURCE_EVENTS).column("event_id").to_pylist()
    assert sorted(ids) == sorted(named["id"])


def test_catalogues_of_all_domains_are_committed_before_any_event(project, monkeypatch):
    order = []
    for name in ("commit_catalogue", "commit"):
        done = getattr(IngestPipeline, name)
        monkeypatch.setattr(
            IngestPipeline,
            name,
            lambda self, place, done=done, name=name, **more: order.append((name, place)) or done(self, place, **more),
        )
    settings = project()
    ingest(settings)
    ingest(settings, replace=NOON_3)
    once = [(name, place) for name in ("commit_catalogue", "commit") for place in ("source", "target")]
    assert order == once * 2
