# SPDX-License-Identifier: Apache-2.0
"""Whether a run would train a translator, and why. The version here is a manifest without counts, which `retrain_every` does not keep."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

import pytest

from scalr_prod import Project, pipeline
from scalr_prod.ledger import Ledger
from scalr_prod.pipeline import PipelineContext, stage_states, steps
from scalr_prod.training_set import build
from scalr_prod.translator import find_kept_version, retraining_reason
from scalr_prod.translator import training_inputs as training_inputs_module
from scalr_prod.translator.training_inputs import compute_fingerprint, default_trained_until, table_versions, training_inputs


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, make_project):
    config = make_project(tmp_path_factory.mktemp("retraining") / "logs", users=20).base / "scalr.toml"
    with Project.open(config) as project:
        project.ingest()
        project.histories()
        yield project.settings


@pytest.fixture
def version(ingested, tmp_path):
    """The version that these settings would train now, written by hand; a function to change its manifest."""
    until = default_trained_until(ingested)
    inputs, versions = training_inputs(ingested, until), table_versions(ingested)
    manifest = {
        "version": 1,
        "sha256": "0" * 64,
        "fingerprint": compute_fingerprint(ingested, inputs, versions, until, tmp_path),
        "inputs": inputs,
        "data_versions": versions,
        "trained_until": until.isoformat(),
        "folds": 2,
        "metrics": {},
    }
    path = ingested.home / "models" / "translator" / "1" / "manifest.json"

    def write(**changes):
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {key: value for key, value in (manifest | changes).items() if value is not None}
        path.write_text(json.dumps(found), encoding="utf-8")
        with Ledger.open(ingested) as ledger:
            if not ledger.models.find():
                ledger.models.record(
                    1, path=str(path.parent), sha256="0" * 64, fingerprint="f", trained_until=until, metrics={}
                )
        return inputs

    write()
    return write


def with_translator(settings, **changes):
    return settings.model_copy(update={"translator": settings.translator.model_copy(update=changes)})


def test_the_same_inputs_train_nothing_and_read_no_log(ingested, version, monkeypatch):
    def reads(*_):
        raise AssertionError("the logs were read")

    monkeypatch.setattr("scalr_prod.translator.retraining.compute_fingerprint", reads)
    assert retraining_reason(ingested) is None
    assert retraining_reason(with_translator(ingested, threads=7)) is None, "threads decide nothing"


def test_an_upgrade_is_told_before_it_trains(ingested, version, monkeypatch):
    monkeypatch.setattr(training_inputs_module, "RECIPE_VERSION", training_inputs_module.RECIPE_VERSION + 1)
    recipe = f"recipe {training_inputs_module.RECIPE_VERSION - 1}, now {training_inputs_module.RECIPE_VERSION}"
    reason = retraining_reason(ingested, upgrades_only=True)
    assert reason.text == f"this version of the package trains it differently ({recipe})"
    state = {state.stage: state for state in stage_states(ingested)}["translator"]
    assert not state.done
    assert state.stale == (
        f"{reason.text}: scalr run trains a version and publishes its run again; [translator] pin = true keeps version 1"
    )
    found = pipeline.dry_run(ingested, pipeline.stages_to()).to_json()
    assert found["stages"]["translator"] == found["stages"]["generate"] == "run"
    assert found["reasons"]["translator"] == state.stale
    pinned = with_translator(ingested, pin=True)
    assert retraining_reason(pinned) is None
    assert {state.stage: state for state in stage_states(pinned)}["translator"].stale is None


def test_a_version_of_an_earlier_package_is_recognised_by_its_fingerprint(ingested, version):
    version(inputs=None)
    assert retraining_reason(ingested) is None
    version(inputs=None, fingerprint="another")
    reason = retraining_reason(ingested, upgrades_only=True)
    assert reason.text == "version 1 was trained by an earlier version of this package, or with other settings"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"epochs": 7}, "[translator] epochs changed"),
        ({"epochs": 7, "dim": 8}, "[translator] dim, [translator] epochs changed"),
    ],
)
def test_other_settings_are_named_and_are_no_upgrade(ingested, version, change, why):
    reason = retraining_reason(with_translator(ingested, **change))
    assert (reason.text, reason.is_upgrade) == (why, False)
    assert retraining_reason(with_translator(ingested, **change), upgrades_only=True) is None


def test_other_events_are_named(ingested, version):
    versions = table_versions(ingested)
    version(data_versions=versions | {"target_events": 0}, fingerprint="of other events")
    assert retraining_reason(ingested).text == "events have changed"
    version(data_versions=versions | {"target_events": 0})
    assert retraining_reason(ingested) is None, "another version of the table with the same rows"


def test_a_pinned_version_is_kept_by_a_whole_run_alone(ingested, version, monkeypatch):
    version(fingerprint="another")
    pinned = with_translator(ingested, pin=True)
    trained = []
    monkeypatch.setattr("scalr_prod.translator.train", lambda *_, **__: trained.append(1) or steps_report(2))

    def steps_report(number):
        return type("Report", (), {"version": number})

    context = PipelineContext(pinned, whole=True)
    assert (steps.translator(context).reused, context.version, trained) == (True, 1, [])
    context = PipelineContext(pinned)
    steps.translator(context)
    assert (context.version, trained) == (2, [1]), "scalr translator train"
    assert find_kept_version(ingested) is None
    until = default_trained_until(ingested)
    version(trained_until=(until + timedelta(days=1)).isoformat())
    assert find_kept_version(pinned) is None, "it has learned from what the run may not know"


def test_the_pin_is_no_part_of_a_versions_inputs(ingested):
    assert with_translator(ingested, pin=True).translator.recipe() == ingested.translator.recipe()


def test_a_training_set_names_why_it_would_be_built_again(ingested, monkeypatch):
    inputs = build._read_inputs(ingested, Project(ingested).lake)
    folder = ingested.home / "datasets" / ingested.training_set.name / "v1"
    folder.mkdir(parents=True)
    manifest = {**inputs.values, "fingerprint": inputs.fingerprint, "version": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert build.rebuild_reason(ingested) is None
    options = ingested.training_set
    lighter = ingested.model_copy(update={"training_set": options.model_copy(update={"synthetic_weight": 0.5})})
    assert build.rebuild_reason(lighter) == "[training_set] λ changed"
    monkeypatch.setattr(build, "_LAYOUT", build._LAYOUT + 1)
    layout = f"layout {build._LAYOUT - 1}, now {build._LAYOUT}"
    assert build.rebuild_reason(ingested) == f"this version of the package builds it otherwise ({layout})"


def test_asking_needs_no_torch():
    """`scalr status` and the preview of a run ask, and torch takes over a second to import."""
    program = "import sys, scalr_prod.translator.retraining; print('torch' in sys.modules, 'feast' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == ["False", "False"]
