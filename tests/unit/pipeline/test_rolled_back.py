# SPDX-License-Identifier: Apache-2.0
"""A run that was rolled back stays out of the feature view until a person resumes it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.ledger_runs import T0, make_spec, validated

from scalr_prod.integrations.airflow import tasks
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.pipeline import PipelineContext, PipelineReport, Stage, execute_stages, rolled_back_runs, stage_states, steps
from scalr_prod.pipeline.stale_outputs import stale_stages
from scalr_prod.project import Project
from scalr_prod.training_set import TrainingSet

VIEW = "synthetic_target_events"


def publish(ledger, run_id, version, rows=7):
    intent = ledger.publications.record_intent(run_id, base_version=version - 1, rows=rows, replaced={})
    ledger.publications.confirm(run_id, attempt=intent.attempt, delta_version=version, rows=rows, cause="test")


def roll_back(ledger, run_id, version):
    attempt = ledger.publications.last(run_id).attempt
    ledger.publications.record_rollback(run_id, attempt=attempt, delta_version=version, cause="test")


@pytest.fixture
def rolled_back(settings, monkeypatch):
    """A run that was published in version 1 of the view and rolled back in version 2; the settings plan it again."""
    with Ledger.open(settings) as ledger:
        run_id = validated(ledger)
        publish(ledger, run_id, 1)
        roll_back(ledger, run_id, 2)
        spec = ledger.runs.get(run_id).spec
    monkeypatch.setattr("scalr_prod.generation.plan_run", lambda *_, **__: spec)
    return run_id


def walk(context):
    """Execute stages that only note their names, around the plan itself; return their names."""
    done = []

    def note(name):
        return Stage(name, (), "", "", lambda _: done.append(name), lambda _: True)

    plan = Stage("plan", (), "", "", steps.plan, lambda _: True, light=True)
    after = ("generate", "validate", "publish", "late", "dataset")
    execute_stages(context, [note("ingest"), plan, *map(note, after)])
    return done


def test_a_run_does_not_undo_a_rollback(settings, rolled_back, caplog):
    context = PipelineContext(settings, whole=True)
    assert walk(context) == ["ingest", "late", "dataset"]
    assert f"{rolled_back} was rolled back and stays out" in context.rolled_back
    assert f"scalr runs resume {rolled_back}" in context.rolled_back
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [context.rolled_back]
    report = PipelineReport.from_context(context)
    assert report.to_json()["rolled_back"] == report.to_summary()["not published"] == context.rolled_back


def test_who_resumes_it_publishes_it_and_another_run_is_not_affected(settings, rolled_back, monkeypatch):
    everything = ["ingest", "generate", "validate", "publish", "late", "dataset"]
    assert walk(PipelineContext.from_run(settings, rolled_back)) == everything
    assert walk(PipelineContext(settings, resume=True)) == everything, "scalr generate"
    with Ledger.open(settings) as ledger:
        other = ledger.runs.begin(make_spec(seed=1)).spec
    monkeypatch.setattr("scalr_prod.generation.plan_run", lambda *_, **__: other)
    assert walk(PipelineContext(settings)) == everything


def test_a_scheduler_leaves_it_out_in_every_task(settings, rolled_back, monkeypatch):
    def stages(*names):
        return [stage for stage in execution if stage.name in names]

    done = []
    execution = [
        Stage(name, (), "", "", lambda _, name=name: done.append(name), lambda _: True)
        for name in ("generate", "validate", "publish", "late")
    ]
    execution.insert(0, Stage("plan", (), "", "", steps.plan, lambda _: True, light=True))
    monkeypatch.setattr("scalr_prod.pipeline.with_light_prerequisites", lambda *names: stages("plan", *names))
    monkeypatch.setattr(tasks, "_load_window_settings", lambda *_: settings)
    monkeypatch.setattr(tasks, "run_window", lambda _: (T0, T0 + timedelta(days=1)))
    run = None
    for name in ("generate", "validate", "publish", "late"):
        call = {"stage": name, "run_id": run, "params": {}}
        result = tasks.run_task("events", call)
        run = result["run_id"]
        assert run == rolled_back
        assert "was rolled back" in result["rolled_back"]
    assert done == ["late"]
    window = {
        "start": T0.isoformat(),
        "end": (T0 + timedelta(days=1)).isoformat(),
        "as_of": (T0 + timedelta(days=1)).isoformat(),
        "days": [T0.date().isoformat()],
    }
    assert result["announced"] == [{"run_id": None, **window}], "the training set is still built"
    assert tasks.run_task("window", {"window": [window["start"], window["end"]]}) == {"run_id": None, **window}
    assert done == ["late"]


def test_status_says_that_the_latest_run_stays_out(settings, rolled_back):
    said = {state.stage: state.rolled_back for state in stage_states(settings) if state.rolled_back}
    assert list(said) == ["publish"]
    assert f"scalr runs resume {rolled_back}" in said["publish"]


@pytest.fixture
def manifest():
    return {"versions": {VIEW: 1}, "synthetic": 7, "start": None, "cutoff": (T0 + timedelta(days=30)).isoformat()}


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"versions": {VIEW: 0}}, False),  # built before it was published
        ({"versions": {VIEW: 2}}, False),  # built after the rollback
        ({"synthetic": 0}, False),
        ({"cutoff": T0.isoformat()}, False),
        ({"start": (T0 + timedelta(days=1)).isoformat()}, False),
    ],
)
def test_which_training_sets_hold_rows_of_it(settings, rolled_back, manifest, change, holds):
    with Ledger.open(settings) as ledger:
        assert rolled_back_runs(ledger, manifest | change) == ([rolled_back] if holds else [])


def test_a_run_that_another_had_replaced_or_that_was_published_again_is_not_among_them(settings, rolled_back, manifest):
    with Ledger.open(settings) as ledger:
        replaced, by = validated(ledger, seed=1), validated(ledger, seed=2)
        publish(ledger, replaced, 3)
        publish(ledger, by, 4)
        roll_back(ledger, replaced, 6)
        assert rolled_back_runs(ledger, manifest | {"versions": {VIEW: 5}}) == []
        assert rolled_back_runs(ledger, manifest | {"versions": {VIEW: 3}}) == [replaced]
        publish(ledger, rolled_back, 7)
        assert ledger.runs.get(rolled_back).state is RunState.PUBLISHED
        assert rolled_back_runs(ledger, manifest) == []


def test_status_and_the_training_set_itself_say_so(settings, rolled_back, manifest, monkeypatch, caplog):
    folder = settings.home / "datasets" / settings.training_set.name / "v1"
    with Ledger.open(settings) as ledger:
        ledger.datasets.record(
            settings.training_set.name, 1, path=str(folder), fingerprint="f", rows=9, cutoff=None, manifest=manifest
        )
    monkeypatch.setattr(TrainingSet, "open", lambda *_: TrainingSet(folder, manifest | {"version": 1}))
    why = f"it contains rows of {rolled_back}, which was rolled back since; build it again: scalr dataset build"
    assert stale_stages(settings)["dataset"] == why
    with Project(settings) as project:
        project.training_set()
    assert caplog.messages == [f"training set {folder.parent.name} v1: {why}"]


@pytest.mark.parametrize(("rebuilt", "says"), [("synthetic_target_events changed", True), (None, False)])
def test_status_says_that_the_training_set_lacks_a_run_that_was_resumed(
    settings, rolled_back, manifest, monkeypatch, rebuilt, says
):
    monkeypatch.setattr("scalr_prod.training_set.rebuild_reason", lambda _: rebuilt)
    with Ledger.open(settings) as ledger:
        without = manifest | {"versions": {VIEW: 2}, "synthetic": 0}
        ledger.datasets.record(settings.training_set.name, 1, path="v1", fingerprint="f", rows=2, cutoff=None, manifest=without)
        publish(ledger, rolled_back, 3)
    why = f"it lacks rows of {rolled_back}, which was published since; build it again: scalr dataset build"
    assert (stale_stages(settings).get("dataset") == why) == says
