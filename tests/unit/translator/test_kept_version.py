"""`[translator] retrain_every`: which version a whole run keeps. The versions here are manifests: nothing is trained."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta

import pandas as pd
import pytest

from scalr_prod import Project, pipeline
from scalr_prod.config.settings import load_settings
from scalr_prod.integrations.airflow.tasks import run_task
from scalr_prod.ledger import Ledger
from scalr_prod.pipeline import PipelineContext, stage_states, steps
from scalr_prod.translator import TrainReport, find_kept_version, load_version, retraining_reason
from scalr_prod.translator.training_inputs import count_events, default_trained_until, table_versions, training_inputs

DAY = timedelta(days=1)


def make_version(settings, number=1, **changes):
    """Write what training leaves behind for these settings: a manifest, and the ledger's record."""
    until = default_trained_until(settings)
    versions = table_versions(settings)
    manifest = {
        "version": number,
        "sha256": "0" * 64,
        "fingerprint": f"of version {number}",
        "inputs": training_inputs(settings, until),
        "data_versions": versions,
        "events": count_events(settings, until, versions),
        "trained_until": until.isoformat(),
        "folds": 2,
        "metrics": {},
    } | changes
    path = settings.home / "models" / "translator" / str(number) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with Ledger.open(settings) as ledger:
        ledger.models.record(
            number,
            path=str(path.parent),
            sha256="0" * 64,
            fingerprint=manifest["fingerprint"],
            trained_until=until,
            metrics={},
        )


def ingest(config):
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        return project.settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory, make_project):
    """A project with a version that was trained until its last event."""
    found = ingest(make_project(tmp_path_factory.mktemp("kept") / "logs", users=40).base / "scalr.toml")
    make_version(found)
    return found


@pytest.fixture
def own(tmp_path, settings):
    """A copy of the project, for tests that change it."""
    shutil.copytree(settings.base, tmp_path / "logs")
    return load_settings(tmp_path / "logs" / "scalr.toml")


def changed(settings, section, **values):
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def as_of(settings, moment):
    return changed(settings, "generation", end=moment, as_of=moment)


def test_a_version_is_kept_until_it_is_due(settings):
    until = default_trained_until(settings)
    due = (until + 7 * DAY).isoformat()
    for age in (timedelta(0), DAY, 7 * DAY - timedelta(microseconds=1)):
        kept = find_kept_version(as_of(settings, until + age))
        assert kept.version.version == 1
        assert kept.reason == (
            f"trained until {until.isoformat()}; runs train again from {due} on, or once a log has grown by 10% "
            "([translator] retrain_every = 7 days)"
        )
    assert find_kept_version(as_of(settings, until + 7 * DAY)) is None
    assert find_kept_version(as_of(changed(settings, "translator", retrain_every=8), until + 7 * DAY)) is not None
    assert find_kept_version(changed(settings, "translator", retrain_every=0)) is None


def test_no_version_is_kept_that_learned_from_what_the_run_may_not_know(settings):
    earlier = default_trained_until(settings) - timedelta(microseconds=1)
    assert find_kept_version(as_of(settings, earlier)) is None
    causal = changed(settings, "generation", mode="causal")
    assert find_kept_version(causal) is None, "it begins a day before the end"
    start = default_trained_until(settings)
    ends = changed(causal, "generation", end=start - DAY)
    assert default_trained_until(ends) == start - 2 * DAY, "the default window is the day before its end"
    assert find_kept_version(changed(causal, "generation", start=start, end=start + DAY)).version.version == 1


def test_what_is_no_new_event_trains_anew(settings):
    assert find_kept_version(changed(settings, "translator", epochs=9)) is None
    assert retraining_reason(changed(settings, "translator", epochs=9)).text == "[translator] epochs changed"
    assert find_kept_version(changed(settings, "histories", length=7)) is None
    assert find_kept_version(changed(settings, "generation", exclude_consumed=False)) is None
    target = settings.domains.target.model_copy(update={"types": {"view": 0.1}})
    columns = target.columns.model_copy(update={"event_type": "type"})
    typed = changed(settings, "domains", target=target.model_copy(update={"columns": columns}))
    assert find_kept_version(typed) is None
    assert find_kept_version(changed(settings, "translator", threads=9, retrain_every=1)) is not None


def test_an_upgrade_trains_anew(settings, monkeypatch):
    monkeypatch.setattr("scalr_prod.translator.training_inputs.RECIPE_VERSION", 10_000)
    assert find_kept_version(settings) is None
    assert retraining_reason(settings, upgrades_only=True).is_upgrade


def test_a_log_that_has_grown_by_a_tenth_trains_anew(own):
    events = load_version(own).manifest["events"]
    for table, read in events.items():
        for share, is_kept in ((1, True), (0.92, True), (0.9, False), (1.01, False)):
            make_version(own, events=events | {table: read | {"rows": int(read["rows"] * share)}})
            assert (find_kept_version(own) is not None) == is_kept, (table, share)
    make_version(own, events={})
    assert find_kept_version(own) is None, "an earlier version of the package did not count them"
    make_version(own, events=events | {"source_events": events["source_events"] | {"id": "of a deleted lake"}})
    assert find_kept_version(own) is None


def append(settings, moment, *, side="source"):
    """Add an event of a known user and item to a log."""
    log = settings.resolve(getattr(settings.domains, side).events)
    rows = pd.read_parquet(log)
    new = rows.head(1).assign(timestamp=pd.Timestamp(moment).as_unit("us"))
    pd.concat([rows, new], ignore_index=True).to_parquet(log)
    with Project(settings) as project:
        project.ingest()
        project.histories()


def test_new_events_and_late_ones_are_added_without_a_training(own):
    until = default_trained_until(own)
    append(own, until + DAY)
    append(own, until - 3 * DAY)
    assert find_kept_version(own).version.version == 1
    assert retraining_reason(own) is None
    append(own, until + 8 * DAY)
    assert find_kept_version(own) is None
    assert retraining_reason(own).text.startswith(f"version 1 was trained until {until.isoformat()}")


@pytest.mark.long
def test_a_correction_of_what_it_read_trains_anew(own):
    until = default_trained_until(own)
    append(own, until + DAY)
    log = own.resolve(own.domains.source.events)
    rows = pd.read_parquet(log)
    rows.iloc[:-1].to_parquet(log)
    with Project(own) as project:
        project.ingest("source", replace=until)
        assert find_kept_version(as_of(own, until + DAY)) is not None, "it had not read the event"
        rows.iloc[:-2].to_parquet(log)
        project.ingest("source", replace=until - DAY)
    assert find_kept_version(as_of(own, until + DAY)) is None


def test_an_erased_user_trains_anew(own):
    user = pd.read_parquet(own.resolve(own.domains.target.events))["user_id"].iloc[0]
    with Project(own) as project:
        assert project.forget([user]).translators == [1]
    assert find_kept_version(own) is None


@pytest.fixture
def trained(monkeypatch):
    """Record trainings, each of which writes a version."""
    ends = []

    def train(settings, *, trained_until=None, progress=False):
        until = trained_until or default_trained_until(settings)
        ends.append(until)
        make_version(as_of(settings, until), len(ends) + 1)
        return TrainReport.from_version(load_version(settings), reused=False)

    monkeypatch.setattr("scalr_prod.translator.train", train)
    return ends


@pytest.mark.long
def test_a_backfill_trains_weekly_and_repeats_itself(own, trained):
    first = default_trained_until(own) + 10 * DAY
    windows = [as_of(own, first + number * DAY) for number in range(16)]

    def versions(windows):
        found = []
        for window in windows:
            context = PipelineContext(window, whole=True)
            steps.translator(context)
            found.append(context.version)
        return found

    made = versions(windows)
    assert made == [2] * 7 + [3] * 7 + [4] * 2
    assert trained == [first, first + 7 * DAY, first + 14 * DAY]
    assert versions(reversed(windows)) == made[::-1]
    assert len(trained) == 3


def test_who_asks_for_a_training_gets_one(own, trained, monkeypatch):
    """`scalr translator train` and the Airflow task, which has its own schedule."""
    assert steps.translator(PipelineContext(own, whole=True)).kept == find_kept_version(own).reason
    with Project(own) as project:
        project.train()
    end = default_trained_until(own) + DAY
    call = {
        "stage": "translator",
        "params": {"config": str(own.base / "scalr.toml")},
        "data_interval_end": end.isoformat(),
    }
    assert run_task("translator", call)["trained_until"] == end.isoformat()
    assert trained == [default_trained_until(own), end]


def test_status_and_dry_run_name_the_version_and_when_the_next_is_due(settings):
    reason = find_kept_version(settings).reason
    state = {state.stage: state for state in stage_states(settings)}["translator"]
    assert (state.done, state.stale, state.kept) == (True, None, f"version 1: {reason}")
    found = pipeline.dry_run(settings, pipeline.stages_to()).to_json()
    assert found["stages"]["translator"] == "check"
    assert found["translator"] == f"version 1: {reason}"

    other = changed(settings, "translator", epochs=9)
    found = pipeline.dry_run(other, pipeline.stages_to()).to_json()
    assert found["stages"]["translator"] == "run"
    assert "translator" not in found
    assert {state.stage: state for state in stage_states(other)}["translator"].kept is None


def test_a_dry_run_expects_no_training_for_a_log_that_has_grown(own):
    ingest(own.base / "scalr.toml")  # files of a copy count as changed
    log = own.resolve(own.domains.source.events)
    rows = pd.read_parquet(log)
    pd.concat([rows, rows.head(1)], ignore_index=True).to_parquet(log)
    found = pipeline.dry_run(own, pipeline.stages_to()).to_json()
    assert found["reasons"]["ingest"] == f"source: {log.name} changed"
    assert (found["stages"]["translator"], found["stages"]["dataset"]) == ("check", "run")
    assert datetime.fromisoformat(load_version(own).manifest["trained_until"]).isoformat() in found["translator"]


def test_a_kept_version_is_recorded_if_its_driver_died_before(own):
    """The version's files are written before the ledger knows it; the quality gate asks the ledger."""
    for file in own.home.glob("ledger.db*"):
        file.unlink()
    report = steps.translator(PipelineContext(own, whole=True))
    assert report.reused
    version = load_version(own, report.version)
    with Ledger.open(own) as ledger:
        assert [model.sha256 for model in ledger.models.find()] == [version.sha256]
