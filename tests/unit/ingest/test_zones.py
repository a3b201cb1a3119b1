"""A log that is read again in another time zone would stand beside itself, an hour or more away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.core import partitioned
from scalr_prod.errors import BadValue
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

USERS, EACH = 60, 5


@pytest.fixture
def project(tmp_path):
    """Settings whose logs have times without a zone; written anew for each call with the target's rows."""

    def make(target: pd.DataFrame, zone: str):
        log(np.random.default_rng(1)).to_csv(tmp_path / "source.csv", index=False)
        target.to_csv(tmp_path / "target.csv", index=False)
        (tmp_path / "scalr.toml").write_text(
            '[domains.source]\nname = "shop"\nevents = "source.csv"\ntimezone = "UTC"\n'
            f'[domains.target]\nname = "films"\nevents = "target.csv"\ntimezone = "{zone}"\nmax_removed_share = 1.0\n'
        )
        return load_settings(tmp_path / "scalr.toml")

    return make


def log(rng, *, first: str = "2024-01-01", days: int = 90, dates: bool = False) -> pd.DataFrame:
    seconds = rng.integers(0, days * 86_400, USERS * EACH)
    times = pd.Timestamp(first) + pd.to_timedelta(seconds // 86_400 * 86_400 if dates else seconds, unit="s")
    items = rng.integers(0, 40, USERS * EACH)
    return pd.DataFrame({"user_id": np.repeat(np.arange(USERS), EACH), "item_id": items, "timestamp": times})


def rows(settings) -> int:
    return Lake.open(settings).read(Table.TARGET_EVENTS).num_rows


@pytest.mark.parametrize(
    ("first", "says"),
    [("2024-01-01", "1 h earlier"), ("2024-03-01", "2 h earlier")],
    ids=["winter", "the clocks are changed"],
)
def test_another_zone_is_refused_and_replaces_where_it_is_told_to(project, first, says):
    whole = log(np.random.default_rng(2), first=first)
    there = rows_before = None
    settings = project(whole, "UTC")
    ingest(settings)
    there = rows_before = rows(settings)
    moved = project(whole, "Europe/Paris")
    with pytest.raises(BadValue, match="ingesting again would double-count") as caught:
        ingest(moved)
    assert rows(settings) == there
    assert says.replace("earlier", "later") in str(caught.value)
    assert "set timezone" in caught.value.next_step
    since = pd.Timestamp(caught.value.next_step.rsplit(" ", 1)[1], tz="UTC").to_pydatetime()
    ingest(moved, replace=since)
    assert rows(settings) == rows_before
    first_there = pd.Timestamp(Lake.open(settings).read(Table.TARGET_EVENTS)["event_timestamp"].to_pandas().min())
    assert first_there == whole["timestamp"].min().tz_localize("Europe/Paris")


def test_another_zone_is_refused_though_most_of_the_log_is_new(project, monkeypatch):
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 100)
    whole = log(np.random.default_rng(2), days=10)
    settings = project(whole, "UTC")
    ingest(settings)
    there = rows(settings)
    later = [whole.assign(timestamp=whole["timestamp"] + pd.Timedelta(days=days)) for days in (10, 20, 30)]
    with pytest.raises(BadValue, match="ingesting again would double-count"):
        ingest(project(pd.concat([whole, *later]), "Europe/Paris"))
    assert rows(settings) == there


def test_new_days_are_added_also_where_users_do_each_day_what_they_did_before(project):
    """Of dates, the same event of the next day is a day away; of times, the same hour."""
    for dates in (True, False):
        whole = log(np.random.default_rng(3), days=1, dates=dates)
        daily = [whole.assign(timestamp=whole["timestamp"] + pd.Timedelta(days=day)) for day in range(4)]
        for day, new in enumerate(daily):
            settings = project(new, "UTC")
            ingest(settings)
            assert rows(settings) == (day + 1) * len(whole) + (0 if dates else 4 * len(whole))


def test_a_few_rows_say_nothing(project):
    few = log(np.random.default_rng(4)).head(10)
    ingest(project(few, "UTC"))
    settings = project(few, "Europe/Paris")
    ingest(settings)
    assert rows(settings) == 20
