"""Source events that arrive after their window was published: it is published again, or they are counted as too late."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.schemas import Table

#: Trains, publishes weeks, and publishes them again with late events; how late events are joined is in tests/property.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand"), pytest.mark.long]

TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


@pytest.fixture(scope="module")
def week_by_week(make_project, tmp_path_factory):
    """A project whose translator is trained and whose first two weeks are published, from a log that lacks some events.

    Gives the scalr.toml and the whole log.
    """
    folder = tmp_path_factory.mktemp("late") / "logs"
    config = lean(make_project(folder, LOCAL, users=80).base / "scalr.toml")
    whole = pd.read_parquet(folder / "s.parquet")
    first_week = whole["timestamp"].between(TRAINED, TRAINED + WEEK, inclusive="left")
    second_week = whole["timestamp"].between(TRAINED + WEEK, TRAINED + 2 * WEEK, inclusive="left")
    late = whole[first_week].index[::5].union(whole[second_week].index[::7])
    whole.drop(late).to_parquet(folder / "s.parquet")
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        project.train(TRAINED)
    for number in range(2):
        publish(config, number)
    return config, whole


def window(number, **more):
    start = TRAINED + number * WEEK
    return {"mode": "causal", "start": start, "end": start + WEEK, "as_of": start + WEEK, **more}


def publish(config, number, **more):
    """The week's run, as a scheduler does it."""
    from scalr_prod.pipeline import PipelineContext, execute_stages, stages_to

    project = Project.open(config, generation=window(number, **more))
    return execute_stages(PipelineContext(project.settings), stages_to(last="late", exclude=("translator",)))


def stages_of(project, *names, run_id=None):
    from scalr_prod.pipeline import PipelineContext, execute_stages, with_light_prerequisites

    return execute_stages(
        PipelineContext.from_run(project.settings, run_id) if run_id else PipelineContext(project.settings),
        with_light_prerequisites(*names),
    )


def rows_of(config):
    rows = Project.open(config).lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    return rows.drop(columns="run_id").sort_values("event_id", ignore_index=True)


@pytest.fixture
def late(week_by_week, tmp_path):
    """The same with all events in the log: those of the first two weeks are late."""
    config, whole = week_by_week
    folder = tmp_path / "logs"
    shutil.copytree(config.parent, folder)
    whole.to_parquet(folder / "s.parquet")
    return folder / "scalr.toml"


@pytest.fixture(scope="module")
def in_time(week_by_week, tmp_path_factory):
    """What is published where the same events were there in time; the translator never saw those weeks."""
    config, whole = week_by_week
    folder = tmp_path_factory.mktemp("in_time") / "logs"
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns(".scalr"))
    whole.to_parquet(folder / "s.parquet")
    with Project.open(folder / "scalr.toml") as project:
        project.ingest()
        project.histories()
        project.train(TRAINED)
    for number in range(3):
        publish(folder / "scalr.toml", number)
    return rows_of(folder / "scalr.toml")


def test_windows_within_the_look_back_are_what_they_had_been_in_time(late, in_time):
    before = rows_of(late)
    job = publish(late, 2, lookback=14)
    report = job.reports["late"].to_json()
    assert [found["start"] for found in report["windows"]] == [(TRAINED + n * WEEK).isoformat() for n in range(2)]
    assert all(found["events"] > 5 for found in report["windows"])
    assert report["too_late"] == 0
    assert [found["error"] for found in report["windows"]] == [None] * 2
    after = rows_of(late)
    assert len(after) > len(before)
    pd.testing.assert_frame_equal(after, in_time)
    with Project.open(late) as project:
        (planned,) = [
            change for change in project.ledger.changes.find(report["windows"][0]["run_id"]) if change.to_state == "planned"
        ]
        assert "source events arrived after run_" in planned.cause
    # Nothing is late any more.
    assert publish(late, 2, lookback=14).reports["late"].to_json() == {"windows": [], "too_late": 0, "corrected": []}
    pd.testing.assert_frame_equal(rows_of(late), in_time)


def test_without_a_look_back_nothing_is_published_again_and_what_lies_before_it_is_counted_as_too_late(late):
    job = publish(late, 2)
    assert "late" not in job.reports
    assert len(Project.open(late).runs()) == 3
    report = publish(late, 2, lookback=8).reports["late"].to_json()
    assert [found["start"] for found in report["windows"]] == [(TRAINED + WEEK).isoformat()]
    assert report["too_late"] > 5


def test_a_window_is_published_again_as_it_was_whatever_the_settings_say_now(late, in_time):
    """Its own mode, seed and draws; a window that was taken out of the view stays out."""
    with Project.open(late) as project:
        second = next(run for run in project.runs() if run.spec.start == TRAINED + WEEK)
        project.rollback(second.run_id)
    job = publish(late, 2, lookback=14, seed=5, events_per_source_event=1, temperature=0.5)
    (found,) = job.reports["late"].to_json()["windows"]
    assert found["start"] == TRAINED.isoformat()
    rows = rows_of(late)
    first_week = rows["event_timestamp"] < TRAINED + WEEK
    of_first_week = in_time["event_timestamp"] < TRAINED + WEEK
    pd.testing.assert_frame_equal(rows[first_week].reset_index(drop=True), in_time[of_first_week].reset_index(drop=True))
    assert not rows["event_timestamp"].between(TRAINED + WEEK, TRAINED + 2 * WEEK, inclusive="left").any()


def test_a_window_that_the_gate_refuses_is_reported_and_stops_no_other(late):
    strict = late.read_text().replace("min_information = 0", "min_information = 50")
    with Project.open(late, generation=window(2, lookback=14)) as project:
        project.ingest()
        project.histories()
        job = stages_of(project, "generate", "validate", "publish")
        late.write_text(strict)
        again = Project.open(late, generation=window(2, lookback=14))
        report = stages_of(again, "late", run_id=job.run_id).reports["late"].to_json()
    assert [found["error"].split(":")[0] for found in report["windows"]] == ["QualityGateFailed"] * 2


def test_events_that_became_known_after_the_window_are_translated_if_the_settings_say_so(late, week_by_week):
    _, whole = week_by_week
    known = whole["timestamp"].copy()
    first_week = whole["timestamp"].between(TRAINED, TRAINED + WEEK, inclusive="left")
    late_ones = whole[first_week].index[::5]
    known[late_ones] = pd.Timestamp(TRAINED + 2.5 * WEEK)
    second_week = whole["timestamp"].between(TRAINED + WEEK, TRAINED + 2 * WEEK, inclusive="left")
    log = whole.assign(seen=known).drop(whole[second_week].index[::7])
    log.to_parquet(late.parent / "s.parquet")
    late.write_text(late.read_text().replace('events = "s.parquet"', 'events = "s.parquet"\ncolumns = { created = "seen" }'))
    for policy, translated in (("at_window_end", False), ("latest", True)):
        report = publish(late, 2, lookback=30, late_as_of=policy).reports["late"].to_json()
        (found,) = report["windows"]
        assert (found["events"], found["unknown"]) == ((len(late_ones), 0) if translated else (0, len(late_ones)))
        assert (found["run_id"] is not None) == translated
        assert report["too_late"] == 0
        rows = rows_of(late)
        week = rows[rows["event_timestamp"].between(TRAINED, TRAINED + WEEK, inclusive="left")]
        as_of = TRAINED + (3 if translated else 1) * WEEK
        assert (week["created_timestamp"] == as_of).all()
