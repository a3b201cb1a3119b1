"""What an evaluation fits for an arm at a cutoff."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from scalr_prod.evaluation.arms import Arm
from scalr_prod.evaluation.evaluation_runner import CutoffRun, EvaluationRunner
from scalr_prod.evaluation.translation import DrawOptions

DRAW = DrawOptions(20, 0.5)
REAL = Arm("als", "real", {"alpha": 10.0}, DRAW, (0.0, 0.0, 0.0), 1.0)
WITH_SYNTHETIC = Arm("als", "real+scalr", {"alpha": 40.0}, DRAW, (0.1, 0.1, 0.1), 1.0)


@pytest.mark.parametrize("is_refused", [False, True])
def test_events_that_the_gate_rejects_are_fitted_for_no_group_of_users(is_refused):
    """Users as if they were new have no published events of their own: what the gate says of the cutoff holds for them, too."""
    published = SimpleNamespace(is_refused=lambda _: is_refused, is_used_by=lambda arm: any(arm.weights))
    family = SimpleNamespace(
        arm={"real": REAL, "real+scalr": WITH_SYNTHETIC}.get, boost=lambda _: 0.0, synthetic_counts={"real+scalr": {}}
    )
    half = CutoffRun(None, None, None, None, seeds=1)
    run = CutoffRun(None, None, published, None, seeds=2, new_users=[half])
    runner = SimpleNamespace(_fit_and_evaluate=lambda *_: None)
    found = EvaluationRunner._is_rejected(runner, run, family, "real+scalr")
    assert found is is_refused
    fits = [fit for one in (run, half) for fit in EvaluationRunner._fits(runner, one, family, "real+scalr", is_rejected=found)]
    assert len(fits) == 3
    assert {fit.args[1].weights for fit in fits} == {REAL.weights if is_refused else WITH_SYNTHETIC.weights}
    assert {fit.args[1].options["alpha"] for fit in fits} == {10.0 if is_refused else 40.0}


def test_a_family_without_synthetic_events_is_not_said_to_be_rejected():
    """Families share what is published for a draw: the other one's events were rejected, and this one has none."""
    runner = SimpleNamespace(runs=[{"draw": DRAW.to_json(), "refused": "1 expectation failed"}])
    for arm, reason in ((WITH_SYNTHETIC, "1 expectation failed"), (replace(WITH_SYNTHETIC, weights=(0.0, 0.0, 0.0)), None)):
        family = SimpleNamespace(tuned={"real+scalr": SimpleNamespace(arm=arm)})
        assert EvaluationRunner._rejection(runner, family) == reason
