"""What an acceptance decides, and that its description states the verdict first, then the gain, then the rule."""

from __future__ import annotations

import json

import pytest

from scalr_prod.evaluation.acceptance import LENIENT, STRICT, Acceptance, describe_acceptance
from scalr_prod.evaluation.arms import Arm
from scalr_prod.evaluation.statistics import ArmComparison
from scalr_prod.evaluation.translation import DrawOptions


def arm(weights=(0.1, 0.1, 0.1)) -> Arm:
    return Arm("als", "real+scalr", {}, DrawOptions(5, 1.0), weights, 1.0)


def comparison(lift: float, p_value: float) -> ArmComparison:
    return ArmComparison(lift, (lift - 5, lift + 5), lift / 1000, ((lift - 5) / 1000, (lift + 5) / 1000), p_value)


GAIN = "+12.3 % over real events only (95 %: +7.3 … +17.3)"


@pytest.mark.parametrize(
    ("threshold", "over_real", "over_strongest", "described"),
    [
        (LENIENT, (12.3, 0.1), (3, 0.6), f"accepted: λ = 0.1: {GAIN}; p 0.1 < 0.5, the limit because {LENIENT.why}"),
        (STRICT, (12.3, 0.1), (3, 0.6), f"refused: λ = 0: {GAIN}; p 0.1 ≥ 0.02, the limit because {STRICT.why}"),
        (STRICT, (12.3, 0.001), (-9, 0.001), f"refused: λ = 0: {GAIN}; significantly worse than the strongest baseline"),
        (LENIENT, (-2, 0.3), (3, 0.6), "refused: λ = 0: -2.0 % over real events only (95 %: -7.0 … +3.0); no gain"),
    ],
)
def test_the_verdict_comes_first_then_the_gain_then_the_rule(threshold, over_real, over_strongest, described):
    acceptance = Acceptance(arm(), threshold, comparison(*over_real), comparison(*over_strongest))
    assert acceptance.passed is described.startswith("accepted")
    assert acceptance.describe() == described
    assert (
        describe_acceptance((0.1,) * 3 if acceptance.passed else (0.0,) * 3, json.loads(json.dumps(acceptance.to_json())))
        == described
    )


def test_weights_that_differ_are_named_by_segment():
    acceptance = Acceptance(arm((0.3, 0.1, 0.0)), STRICT, comparison(12, 0.001), comparison(3, 0.6))
    assert acceptance.describe().startswith("accepted: λ = 0.3 (cold), 0.1 (sparse), 0 (dense): +12.0 %")


def test_without_a_comparison_no_weight_was_better():
    assert describe_acceptance((0.0, 0.0, 0.0), None) == "refused: λ = 0: no λ > 0 was better on validation"
