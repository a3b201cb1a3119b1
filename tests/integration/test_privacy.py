"""A translator that repeats users' training events is found by its rows and refused; an honest run tells nothing of its users' events."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import START, make_two_domains, write_toml
from support import warm

from scalr_prod import Project
from scalr_prod.ledger import Ledger
from scalr_prod.privacy import shadow_draws

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand")]

SCALR = Path(sys.executable).with_name("scalr")
USERS, FAVOURITES = 900, 5
LIMIT = """
[serving]
scorer = "local"
threads = 1
[compute]
workers = 1
[quality]
min_information = 0
max_bucket_distance = 1.0
max_item_excess = 0
max_membership_auc = 0.75
max_anonymity_risk = 0.2
"""
MEMORISER = '''
"""Finds the training user with nearly the same source history, and repeats that user's target events."""

import torch


class Memoriser:
    version = 1

    def share(self, pairs):
        return {}

    def fit(self, pairs, shared):
        target = pairs.target_matrix()
        source = pairs.source_matrix()[target.getnnz(axis=1) > 0]
        unit = source.toarray()
        unit /= (unit**2).sum(axis=1, keepdims=True).clip(min=1) ** 0.5
        known = target[target.getnnz(axis=1) > 0].toarray() > 0
        return {"source": torch.from_numpy(unit.astype("float32")), "target": torch.from_numpy(known.astype("float32"))}

    def score(self, parameters, batch, log_prior):
        history = torch.zeros(len(batch.items), parameters["source"].shape[1], dtype=torch.float64)
        history.scatter_(1, batch.items, 1.0)
        history[:, 0] = 0
        history /= history.norm(dim=1, keepdim=True).clamp(min=1e-9)
        similarity, user = (history @ parameters["source"].double().T).max(1)
        return (parameters["target"][user] * (similarity > 0.7)[:, None]).to(log_prior.dtype)
'''


@pytest.fixture
def regulars(tmp_path) -> Path:
    """The scalr.toml of a shop whose users buy a few items of their own again and again."""
    made, rng = make_two_domains(tmp_path / "logs", users=10), np.random.default_rng(3)
    favourites = rng.integers(0, 300, (USERS, FAVOURITES))
    tables = {
        made.source: ("s", [(user, item) for user in range(USERS) for item in rng.integers(0, 250, 15)]),
        made.target: ("t", [(user, item) for user in range(USERS) for item in rng.choice(favourites[user], 12)]),
    }
    for path, (prefix, rows) in tables.items():
        frame = pd.DataFrame([(f"u{user}", f"{prefix}{item}") for user, item in rows], columns=["user_id", "item_id"])
        days = pd.to_timedelta(rng.random(len(frame)) * 200, unit="D")
        frame["timestamp"] = (START + days).astype("datetime64[us, UTC]")
        frame.sort_values("timestamp", ignore_index=True).to_parquet(path)
    generation = '[generation]\ncontexts = "users"\nmode = "causal"\nstart = "2024-06-20T00:00:00Z"\nexclude_consumed = false\n'
    estimators = 'estimators = ["popularity", "memoriser:Memoriser"]\n'
    return write_toml(made, estimators + generation + LIMIT, items=False)


def test_a_translator_that_repeats_training_events_is_refused(regulars, tmp_path):
    (tmp_path / "memoriser.py").write_text(MEMORISER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = warm.run([SCALR, "run", "--config", regulars, "--json"], env=environment)
    assert done.returncode == 3, done.stderr
    refused = json.loads(done.stdout)
    assert "membership_is_not_inferable" in refused["found"]
    assert "users_are_not_singled_out_linked_or_inferred" in refused["found"]
    assert "scalr privacy" in refused["next_step"]
    with Project.open(regulars) as project:
        report = project.privacy()
    assert report.membership["own_rows"].auc.ci95[0] >= 0.9
    assert report.membership["translator_scores"].auc.ci95[0] >= 0.9
    for name in ("singling_out", "linkability", "inference"):
        assert report.risks[name].risk.ci95[0] > 0.9, name
        assert not report.risks[name].has_failed
    with Ledger.open(project.settings) as ledger:
        assert ledger.runs.get(report.run_id).state == "rejected"


@pytest.mark.long
def test_an_honest_run_tells_nothing_of_its_users_events(tmp_path, monkeypatch):
    made = make_two_domains(tmp_path / "logs", users=1000)
    estimators = 'estimators = ["popularity", "frequency", "linear"]\n[generation]\ncontexts = "users"\n'
    config = write_toml(made, estimators + LIMIT)
    with Project.open(config) as project:
        run = project.run()
        report = project.privacy()
        gate = project.validate(run.run_id)
        monkeypatch.setattr(shadow_draws, "MAX_CONTEXTS", 250)
        of_few_contexts = project.privacy()
    low, high = report.membership["own_rows"].auc.ci95
    assert low <= 0.5 <= high
    assert gate.passed
    assert gate.figures["membership_users"] >= 500
    assert gate.figures["membership_auc_low"] < 0.65
    assert gate.figures["anonymity_guesses"] >= 500
    assert gate.figures["anonymity_risk_low"] < 0.1
    assert report.source_inference.with_provenance.value > report.source_inference.published_rows.value
    assert all(found.risk.ci95[0] < 0.05 for found in report.risks.values())
    # A fifth of the users are newcomers. They have a sample of their own, however few users of all are read.
    newcomers = report.newcomers_source_inference
    assert (newcomers.users, newcomers.real_rows) == (200, None)
    assert newcomers.with_provenance.value > newcomers.published_rows.value
    assert report.membership["newcomers_closest_row_set"].auc.ci95[0] < 0.6
    assert of_few_contexts.newcomers_source_inference == newcomers
    assert of_few_contexts.membership["newcomers_closest_row_set"] == report.membership["newcomers_closest_row_set"]
