"""A segment that synthetic events harm gets λ = 0 if a setting asks for it, and every run warns about it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from support.small_project import Handmade

from scalr_prod.errors import EvaluationError
from scalr_prod.generation import apply_policy, why_not_generated
from scalr_prod.generation.harmed_segments import HarmedSegments, harmed_segments_path, record_harmed_segments
from scalr_prod.ledger import Ledger
from scalr_prod.operations import analyze_experiment
from scalr_prod.pipeline import PipelineContext, PipelineReport
from scalr_prod.pipeline.steps import policy
from scalr_prod.reporting.report_data import collect_run_data
from scalr_prod.workspace import Holdout

BEGUN = '[experiment]\nholdout = 0.3\nkey = "a key of the company"\nstart = 2024-01-01T00:00:00Z\n'
DROPPING = BEGUN + 'harmed_segments = "drop"\n'


@pytest.fixture
def project(tmp_path) -> Handmade:
    """200 cold users, and 200 dense ones."""
    source = [(f"u{k}", f"s{k % 7}", k / 100, k / 100) for k in range(400)]
    target = [(f"u{k}", f"t{n}", -1000 + n, -1000 + n) for k in range(0, 400, 2) for n in range(6)]
    return Handmade(tmp_path, extra=BEGUN, source=source, target=target)


def measure(project: Handmade, *, cold: float, dense: float):
    """Outcomes with these effects, and what the experiment says of them."""
    import duckdb

    users = pd.DataFrame({"user_id": [f"u{k}" for k in range(400)]})
    with duckdb.connect() as db:
        db.register("users", users)
        held = db.sql(
            f"SELECT {Holdout.from_settings(project.settings).membership_sql('user_id')} AS h FROM users"
        ).fetchnumpy()["h"]
    effect = np.where(np.arange(400) % 2 == 0, dense, cold)
    users["value"] = np.random.default_rng(0).normal(5, 1, 400) + np.where(held, 0, effect)
    users.to_csv(project.folder / "outcomes.csv", index=False)
    return analyze_experiment(project.settings, outcomes="outcomes.csv", until=datetime(2024, 1, 25, tzinfo=UTC))


def weights(project: Handmade) -> tuple[float, ...]:
    return tuple(apply_policy(project.settings)[0].training_set.resolved_segment_weights)


def test_harm_is_noticed_and_weighs_nothing_where_it_is_asked_for(project, caplog):
    report = measure(project, cold=0.5, dense=-3.0)
    (sentence,) = report.harmed_segments
    assert "lowered the outcome of dense users by 2." in sentence
    assert 'harmed_segments = "drop"' in sentence
    assert weights(project) == (0.1, 0.1, 0.1)
    assert sentence in caplog.text, "every run tells it"
    project.configure(DROPPING)
    assert weights(project) == (0.1, 0.1, 0.0)
    project.configure(DROPPING + "[training_set]\nsynthetic_weight = 0.5\nsegment_weights = [1.0, 0.5, 0.5]\n")
    assert weights(project) == (0.5, 0.25, 0.0), "whatever else sets it"


def test_an_effect_that_may_be_chance_changes_nothing(project):
    assert measure(project, cold=-0.1, dense=1.0).harmed_segments == []
    project.configure(DROPPING)
    assert weights(project) == (0.1, 0.1, 0.1)


def test_a_run_tells_it_in_one_sentence_and_the_ledger_keeps_it(project):
    measure(project, cold=0.5, dense=-3.0)
    project.configure(DROPPING)
    for _ in range(2):
        context = PipelineContext(project.settings, whole=True)
        policy(context)
    context.spec = project.run()
    summary = PipelineReport.from_context(context).to_summary()
    assert "λ is 0 for them" in summary["experiment"]
    assert context.settings.training_set.resolved_segment_weights.dense == 0
    with Ledger.open(project.settings) as ledger:
        changes = ledger.changes.find(subject="experiment")
        told = collect_run_data(project.settings, ledger, context.spec.run_id).harmed_segments
    assert [(change.from_state, change.to_state) for change in changes] == [(None, "harmed"), ("harmed", "dropped")]
    assert all(change.key.startswith("dense/") and "dense users by 2." in change.cause for change in changes)
    assert list(told) == context.harmed_segments


def test_it_stays_until_another_experiment_begins(project):
    measure(project, cold=0.5, dense=-3.0)
    project.configure(DROPPING)
    assert measure(project, cold=0.5, dense=3.0).harmed_segments, "what no longer happens cannot be seen to do good"
    project.configure(DROPPING.replace("holdout = 0.3", "holdout = 0.0"))
    assert weights(project)[2] == 0, "the end of an experiment is no reason to begin again"
    project.configure(DROPPING.replace("2024-01-01", "2024-06-01"))
    assert weights(project) == (0.1, 0.1, 0.1)
    project.configure(DROPPING.replace("a key of the company", "another key of theirs"))
    assert weights(project) == (0.1, 0.1, 0.1)


def test_where_every_segment_is_harmed_nothing_is_generated(project):
    Ledger.open(project.settings).close()
    record_harmed_segments(project.settings, dict.fromkeys(("cold", "sparse", "dense"), "they lose"))
    assert why_not_generated(project.settings) is None
    assert str(harmed_segments_path(project.settings)) in why_not_generated(project.configure(DROPPING))


@pytest.mark.parametrize("text", ["", "[]", '{"salt": 1}', '{"salt": "", "start": null, "segments": 3}'])
def test_a_broken_file_is_a_clear_error(project, text):
    path = harmed_segments_path(project.settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(EvaluationError, match="not a valid result"):
        HarmedSegments.from_settings(project.settings)
