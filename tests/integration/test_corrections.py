"""Rows that were read, built on and published, and then taken back: afterwards the project is as if they had never been."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.errors import PublicationError
from scalr_prod.schemas import Table

#: A second project that never read the wrong rows; the replacement itself: unit/ingest/test_replace_window.py.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand"), pytest.mark.long]

SINCE = datetime(2090, 1, 1, tzinfo=UTC)
TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
SKIPPED_WITHOUT_EVENTS = ["plan", "generate", "validate", "publish", "late"]


@pytest.fixture(scope="module")
def never(make_project, tmp_path_factory):
    """A project that never read a row of 2099, run to its training set."""
    folder = tmp_path_factory.mktemp("never") / "logs"
    config = lean(make_project(folder, LOCAL, users=40).base / "scalr.toml")
    pristine = folder.parent / "pristine"
    shutil.copytree(folder, pristine)
    with Project.open(config) as project:
        project.run()
    return config, pristine


def rows_of(project, table, *, without=()):
    rows = project.lake.read(table).to_pandas().drop(columns=list(without), errors="ignore")
    for name in ("item_ids", "event_timestamps"):
        if name in rows:
            rows[name] = rows[name].map(tuple)
    return rows.sort_values(list(rows.columns), ignore_index=True)


def same(one, other):
    """All tables and the training set of two projects."""
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS):
        left, right = (rows_of(project, table, without=("event_id",)) for project in (one, other))
        pd.testing.assert_frame_equal(left, right)
    for table in (Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS):
        pd.testing.assert_frame_equal(rows_of(one, table), rows_of(other, table))
    named = ("run_id", "translator_version")
    left, right = (rows_of(project, Table.SYNTHETIC_TARGET_EVENTS, without=named) for project in (one, other))
    assert len(left)
    pd.testing.assert_frame_equal(left, right)
    assert one.translator().sha256 == other.translator().sha256
    sets = [project.training_set().to_pandas().drop(columns=list(named), errors="ignore") for project in (one, other)]
    by = ["user_id", "item_id", "event_timestamp", "label"]
    assert set(sets[0].columns) == set(sets[1].columns)
    for name in by:
        ordered = [rows.sort_values(by, ignore_index=True)[name] for rows in sets]
        pd.testing.assert_series_equal(*ordered)


def stale(project):
    return {state.stage: state.stale for state in project.status() if state.stale}


def test_a_row_of_2099_that_is_corrected_away_leaves_no_trace_in_what_is_made(never, tmp_path):
    config, pristine = never
    folder = tmp_path / "logs"
    shutil.copytree(pristine, folder)
    far = folder / "scalr.toml"
    far.write_text(far.read_text().replace('events = "', 'ahead_days = 40000\nevents = "'))
    logs = {name: pd.read_parquet(folder / f"{name}.parquet") for name in "st"}
    for name, rows in logs.items():
        more = rows.tail(1).assign(timestamp=pd.Timestamp("2099-06-01", tz="UTC"), item_id=f"{name}_far")
        pd.concat([rows, more]).to_parquet(folder / f"{name}.parquet")
    with Project.open(far) as project:
        first = project.run()
        assert project.ledger.runs.get(first.run_id).spec.end.year == 2099
        assert project.lake.read(Table.SOURCE_USER_HISTORY)["event_timestamp"].to_pandas().max().year == 2099
        assert not stale(project)

        for name, rows in logs.items():
            rows.to_parquet(folder / f"{name}.parquet")
        report = project.ingest(replace=SINCE)
        assert [one.rows_removed for one in report.domains.values()] == [1, 1]
        found = stale(project)
        assert {"translator", "dataset", *SKIPPED_WITHOUT_EVENTS} == found.keys()
        assert all("2099-06-01" in reason and "scalr run" in reason for reason in found.values())
        assert not any(state.done for state in project.status() if state.stage in found)

        again = project.run()
        assert again.run_id != first.run_id
        assert not stale(project)
        with Project.open(config) as other:
            same(project, other)

        # What was taken back does not come back by an older run.
        with pytest.raises(PublicationError, match="have been replaced since"):
            project.publish(first.run_id)
        with Project.open(config) as other:
            same(project, other)


@pytest.mark.long
def test_an_event_that_was_changed_by_its_id_leaves_no_trace_of_the_former_one(never, tmp_path):
    config, pristine = never
    folder = tmp_path / "logs"
    shutil.copytree(pristine, folder)
    mapped = folder / "scalr.toml"
    mapped.write_text(mapped.read_text() + '[domains.source.columns]\nevent_id = "id"\n')
    logs = pd.read_parquet(folder / "s.parquet")
    right = logs.assign(id=[f"e{number}" for number in range(len(logs))])
    wrong, changed = right.copy(), len(right) // 3
    wrong.loc[changed, ["user_id", "item_id"]] = wrong.loc[changed + 7, ["user_id", "item_id"]].tolist()
    wrong.to_parquet(folder / "s.parquet")
    with Project.open(mapped) as project:
        first = project.run()
        right.to_parquet(folder / "s.parquet")
        assert project.ingest().domains["source"].rows_updated == 1
        found = stale(project)
        assert {"translator", *SKIPPED_WITHOUT_EVENTS} == found.keys(), "a training set reads no source history"
        assert all(right["timestamp"][changed].isoformat() in reason for reason in found.values())
        project.run()
        assert not stale(project)
        with pytest.raises(PublicationError, match="have been replaced since"):
            project.publish(first.run_id)
        with Project.open(config) as other:
            same(project, other)


def weekly(config, number: float):
    from scalr_prod.pipeline import PipelineContext, execute_stages, stages_to

    start = TRAINED + number * WEEK
    window = {"mode": "causal", "start": start, "end": start + WEEK, "as_of": start + WEEK}
    project = Project.open(config, generation=window)
    return execute_stages(PipelineContext(project.settings), stages_to(last="late", exclude=("translator",)))


@pytest.mark.long
def test_windows_that_a_correction_reaches_are_published_anew_and_the_others_stay(never, tmp_path):
    _, pristine = never
    base = tmp_path / "base"
    shutil.copytree(pristine, base)
    with Project.open(base / "scalr.toml") as project:
        project.ingest()
        project.histories()
        project.train(TRAINED)
    for name in ("corrected", "right"):
        shutil.copytree(base, tmp_path / name)
    config, right = (tmp_path / name / "scalr.toml" for name in ("corrected", "right"))
    logs = pd.read_parquet(pristine / "s.parquet")
    second = TRAINED + WEEK
    wrong = logs[logs["timestamp"].between(second, second + WEEK)].iloc[::3].assign(item_id="s1")
    assert len(wrong)
    pd.concat([logs, wrong]).to_parquet(tmp_path / "corrected" / "s.parquet")
    with Project.open(config) as project:
        project.ingest("source")
        project.histories()
    for number in range(2):
        weekly(config, number)
        weekly(right, number)
    logs.to_parquet(tmp_path / "corrected" / "s.parquet")
    with Project.open(config) as project, Project.open(right) as other:
        before = {run.run_id: run.spec for run in project.runs()}
        assert len(before) == 2
        project.ingest("source", replace=second)
        assert stale(project).keys() == set(SKIPPED_WITHOUT_EVENTS)  # of the latest run, the second week
        (found,) = weekly(config, 2).reports["late"].corrected
        assert before[found.published_by].start == found.start == second
        assert found.run_id is not None
        assert found.error is None
        assert not stale(project)
        rows = rows_of(project, Table.SYNTHETIC_TARGET_EVENTS)
        weeks = rows[rows["event_timestamp"] < second + WEEK].drop(columns="run_id").reset_index(drop=True)
        pd.testing.assert_frame_equal(weeks, rows_of(other, Table.SYNTHETIC_TARGET_EVENTS, without=("run_id",)))
        assert len(weeks) < len(rows)
        # The first week is still that of its own run.
        first = rows[rows["event_timestamp"] < second]
        assert set(first["run_id"]) == {run_id for run_id, spec in before.items() if spec.start == TRAINED}


@pytest.mark.long
def test_of_a_window_that_the_current_run_overlaps_the_rest_is_published_anew(never, tmp_path):
    _, pristine = never
    shutil.copytree(pristine, tmp_path / "base")
    config = tmp_path / "base" / "scalr.toml"
    logs = pd.read_parquet(pristine / "s.parquet")
    wrong = logs[logs["timestamp"].between(TRAINED, TRAINED + WEEK)].iloc[::3].assign(item_id="s1")
    pd.concat([logs, wrong]).to_parquet(tmp_path / "base" / "s.parquet")
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        project.train(TRAINED)
        (former,) = [weekly(config, 0).run_id]
        logs.to_parquet(tmp_path / "base" / "s.parquet")
        project.ingest("source", replace=TRAINED)
        (found,) = weekly(config, 0.5).reports["late"].corrected
        assert (found.published_by, found.start, found.end) == (former, TRAINED, TRAINED + WEEK / 2)
        assert found.run_id is not None
        assert not stale(project)
        rows = rows_of(project, Table.SYNTHETIC_TARGET_EVENTS)
        assert set(rows["run_id"]) == {found.run_id, *(run.run_id for run in project.runs() if run.spec.start > TRAINED)}
        assert (rows.loc[rows["run_id"] == found.run_id, "event_timestamp"] < TRAINED + WEEK / 2).all()
