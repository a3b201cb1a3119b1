"""The limit of events per user and day holds for the day, whatever the number of ingests that deliver it."""

from __future__ import annotations

import itertools

import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.examples import sweep

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import EmptyInput
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.project import Project
from scalr_prod.schemas import Table

NOON = pd.Timestamp("2024-03-01T12:00:00Z")
MOST = 10
#: Hours after noon of a bot's events of one day, in three deliveries of which no two exceed the limit, and one that does.
DELIVERIES = ([n / 60 for n in range(4)], [2 + n / 60 for n in range(4)], [1 + n / 60 for n in range(5)])
WITH_IDS = 'columns = { event_id = "id" }'


def log(hours: list[float], *, user: str = "bot", others: int = 40) -> pd.DataFrame:
    """A user's events at these hours, among those of others."""
    rows = [(user, f"b{hour:.3f}", hour) for hour in hours] + [(f"u{n}", f"s{n}", 24 + n) for n in range(others)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "hour"])
    frame["timestamp"] = (NOON + pd.to_timedelta(frame.pop("hour"), unit="h")).astype("datetime64[us, UTC]")
    return frame.assign(id=[f"{user}-{item}" for user, item in zip(frame["user_id"], frame["item_id"], strict=True)])


@pytest.fixture
def project(tmp_path):
    """Write a project whose source log is the frame; gives the settings."""

    def make(frame: pd.DataFrame, toml: str, name: str = "a", timezone: str = "UTC"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        frame.to_parquet(folder / "source.parquet", index=False)
        log([0.0], others=30).to_parquet(folder / "target.parquet", index=False)
        (folder / "scalr.toml").write_text(
            f'[project]\ntimezone = "{timezone}"\n[domains.source]\nname = "source"\nevents = "source.parquet"\n'
            f"max_user_day = {MOST}\nmax_left_out = 1.0\n{toml}\n"
            '[domains.target]\nname = "target"\nevents = "target.parquet"\n'
        )
        return load_settings(folder / "scalr.toml")

    return make


def held(settings, user: str = "bot") -> list[str]:
    """The items of the lake's events of a user."""
    rows = Lake.open(settings).read(Table.SOURCE_EVENTS).to_pylist()
    return sorted(row["item_id"] for row in rows if row["user_id"] == user)


@pytest.mark.parametrize(
    ("order", "ids", "policy"),
    sweep(
        sorted(
            itertools.product([(0, 1, 2), (2, 1, 0), (1, 2, 0, 1)], ["", WITH_IDS], ["drop", "cap"]),
            key=lambda case: case not in {((1, 2, 0, 1), "", "drop"), ((2, 1, 0), WITH_IDS, "cap")},
        ),
        keep=1,
    ),
)
def test_a_day_in_several_deliveries_is_judged_as_one(project, policy, ids, order):
    toml = f'over_user_day = "{policy}"\n{ids}'
    for number in order:
        settings = project(log(DELIVERIES[number]), toml)
        ingest(settings)
    every = sorted(itertools.chain(*DELIVERIES))
    assert held(settings) == [f"b{hour:.3f}" for hour in ([] if policy == "drop" else every[:MOST])]
    assert len(held(settings, "u7")) == 1
    whole = project(log(every), toml, "whole")
    ingest(whole)
    assert held(whole) == held(settings)
    report = ingest(project(log(every), toml)).domains["source"]
    assert (report.rows_added, report.rows_removed) == (0, 0), "a repeated ingest changes nothing"


def test_of_events_that_are_equal_but_for_their_type_the_same_ones_stay_whatever_their_order(project):
    frame = log([0.0] * (MOST + 5))
    frame["kind"] = [f"k{number:02d}" for number in range(len(frame))]
    kept = []
    for name, rows in (("a", frame), ("b", frame.iloc[::-1])):
        settings = project(rows, 'over_user_day = "cap"\ncolumns = { event_type = "kind" }', name)
        ingest(settings)
        events = Lake.open(settings).read(Table.SOURCE_EVENTS).to_pylist()
        kept.append(sorted(row["event_type"] for row in events if row["user_id"] == "bot"))
    assert kept == [[f"k{number:02d}" for number in range(MOST)]] * 2


def test_few_events_of_a_day_that_was_left_out_stay_out(project):
    settings = project(log([n / 60 for n in range(11)]), "")
    assert ingest(settings).domains["source"].left_out == {"over_user_day": 11}
    report = ingest(project(log([3.0]), "")).domains["source"]
    assert (report.left_out, held(settings)) == ({"over_user_day": 1}, [])


@pytest.mark.long
def test_events_that_leave_the_lake_are_counted_and_their_histories_are_stale(project):
    settings = project(log(DELIVERIES[0] + DELIVERIES[1]), "")
    ingest(settings)
    with Project.open(settings) as opened:
        opened.histories()
    report = ingest(project(log(DELIVERIES[2]), "")).domains["source"]
    assert (report.rows_removed, report.left_out, held(settings)) == (8, {"over_user_day": 5}, [])
    assert report.rows == 40
    with Project.open(settings) as opened:
        opened.histories()
    histories = Lake.open(settings).read(Table.SOURCE_USER_HISTORY).to_pandas()
    assert "bot" not in set(histories["user_id"])


def test_a_day_is_one_of_the_projects_timezone(project):
    # From 22:00 and from 23:00 UTC on: in Berlin the latter are on the next day.
    hours = [10 + n / 60 for n in range(6)] + [11 + n / 60 for n in range(6)]
    settings = project(log(hours), "", timezone="Europe/Berlin")
    ingest(settings)
    assert len(held(settings)) == 12
    other = project(log(hours), "", "utc")
    ingest(other)
    assert held(other) == []


def test_a_replacement_records_its_days_anew(project):
    settings = project(log([n / 60 for n in range(11)]), "")
    ingest(settings)
    corrected = project(log([0.0, 1.0]), "")
    ingest(corrected, replace=NOON.to_pydatetime() - pd.Timedelta(hours=12))
    assert len(held(settings)) == 2
    ingest(project(log([2.0]), ""))
    assert len(held(settings)) == 3


@pytest.mark.parametrize("policy", ["drop", "cap"])
def test_an_event_that_moves_to_a_day_over_the_limit_leaves_its_former_day(project, policy):
    toml = f'over_user_day = "{policy}"\ncolumns = {{ event_id = "id" }}'
    settings = project(log([*(n / 60 for n in range(MOST)), -30.0]), toml)
    ingest(settings)
    moved = log([*(n / 60 for n in range(MOST)), 3.0]).assign(
        id=lambda frame: frame["id"].replace("bot-b3.000", "bot-b-30.000")
    )
    ingest(project(moved, toml))
    assert "b-30.000" not in held(settings)
    whole = project(moved, toml, "whole")
    ingest(whole)
    assert held(whole) == held(settings)


def test_an_event_that_is_left_out_does_not_count_for_its_day(project):
    toml = 'columns = { event_id = "id", event_type = "kind" }\ntypes = { purchase = 1.0 }\nunknown_types = "drop"'
    full = log([n / 60 for n in range(MOST)]).assign(kind="purchase")
    settings = project(full, toml)
    ingest(settings)
    gone = full.assign(kind=["cancelled", *["purchase"] * (len(full) - 1)])
    ingest(project(pd.concat([gone, log([3.0], others=0).assign(kind="purchase")]), toml))
    assert held(settings) == sorted([*(f"b{n / 60:.3f}" for n in range(1, MOST)), "b3.000"])


def test_a_log_of_nothing_but_days_over_the_limit_is_refused(project):
    with pytest.raises(EmptyInput, match="max_user_day"):
        ingest(project(log([n / 60 for n in range(11)], others=0), ""))


def test_the_record_of_days_is_erased_with_the_user(project):
    settings = project(log([n / 60 for n in range(11)]), "")
    ingest(settings)
    record = settings.home / "user_days.parquet"
    assert pq.read_table(record)["user_id"].to_pylist() == ["bot"]
    with Project.open(settings) as opened:
        opened.forget(["bot"])
    assert pq.read_table(record).num_rows == 0
    ingest(project(log([3.0]), ""))
    assert held(settings) == []
