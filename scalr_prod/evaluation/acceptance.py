# SPDX-License-Identifier: Apache-2.0
"""Acceptance: whether an arm keeps its λ, by expected gain and chance of harm (docs/adr/0019).

The gain is relative to the arm `real`. It is cross-validated: users are split into groups, and each group is scored with the values chosen
on the other groups. The gain is shrunk towards 0, the more the less evidence there is. λ is kept if the expected gain is above 0 and a loss
of more than 2 % is improbable.

For real+scalr the users' own source histories must matter, too: either the translator was measured to know them, or the events do better
than the same events given to other users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.evaluation.arms import REAL_ONLY, describe_baseline
from scalr_prod.evaluation.signal import Signal
from scalr_prod.generation import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.evaluation.arms import Arm
    from scalr_prod.evaluation.statistics import ArmComparison


#: Standard deviation of gains, in percent of the better arm's mean, before any evidence; their mean is 0.
_PRIOR_SD: Final = 50.0
_Z95: Final = NormalDist().inv_cdf(0.975)
#: A loss of more than this counts as harm, in percent.
HARM_PCT: Final = 2.0
#: Highest accepted probability of harm.
MAX_HARM_PROBABILITY: Final = 0.2
#: Factor that widens the reported interval. Any two groups' values were chosen on mostly the same users, so that their scores are
#: correlated, which the clustered error leaves out. Nadeau and Bengio (2003): the variance is 1 + groups × n_judged / n_choosing times as
#: large, here 1 + 5 / 4.
_NESTED_FACTOR: Final = (1 + 5 / 4) ** 0.5
#: Two-sided p-value below which real+scalr is ahead of the same events given to other users: 1 % on the side that matters.
_SIGNIFICANT: Final = 0.02


@dataclass(frozen=True)
class GainEstimate:
    """Gain over real events only, given its measurement and a prior around 0.

    Attributes:
        expected_pct: Posterior mean, in percent.
        harm_probability: Posterior probability of a loss of more than 2 %.
    """

    expected_pct: float
    harm_probability: float

    @classmethod
    def from_comparison(cls, comparison: ArmComparison) -> GainEstimate:
        """Combine a measured difference with the prior. Both are taken as normal.

        The ratio to a baseline near 0 is uncertain even where the arm is far ahead of it, so the error is that of the difference.
        """
        lift, difference = comparison.lift_pct, comparison.difference
        low, high = comparison.difference_ci95
        if not math.isfinite(lift):  # the baseline found nothing, so a gain over it has no size
            return cls(_PRIOR_SD, 0.0) if low > 0 else cls(0.0, 1.0)
        if high == low or not difference:
            return cls(lift, float(lift < -HARM_PCT))
        variance = ((high - low) / 2 / _Z95 * lift / difference) ** 2  # in percent of the baseline, as the lift
        prior = (_PRIOR_SD * max(1.0, 1 + lift / 100)) ** 2
        trust = prior / (prior + variance)
        posterior = NormalDist(lift * trust, (variance * trust) ** 0.5)
        return cls(posterior.mean, posterior.cdf(-HARM_PCT))


@dataclass(frozen=True)
class Acceptance:
    """Decision whether an arm keeps its λ.

    Attributes:
        candidate: The arm with the best values found on validation.
        over_real: Comparison with real events only, on users who did not choose the values.
        signal: What is known of the users' own histories; None for controls, which need no signal.
        over_shuffled: Comparison with the same events given to other users; None if `signal` decides.
    """

    candidate: Arm
    over_real: ArmComparison
    signal: Signal | None = None
    over_shuffled: ArmComparison | None = None

    @property
    def gain(self) -> GainEstimate:
        """The estimated gain over real events only."""
        return GainEstimate.from_comparison(self.over_real)

    @property
    def reported(self) -> ArmComparison:
        """The comparison with real events only, with an interval that allows for the choice (`_NESTED_FACTOR`)."""
        return self.over_real.widened(_NESTED_FACTOR)

    @property
    def is_personal(self) -> bool:
        """Whether the users' own histories matter. Controls are not tested for this and return True."""
        if self.over_shuffled is not None:
            return self.over_shuffled.difference > 0 and self.over_shuffled.p_value < _SIGNIFICANT
        return self.signal in {None, Signal.PRESENT}

    @property
    def passed(self) -> bool:
        """Whether the candidate is accepted with its λ; otherwise λ is 0."""
        gain = self.gain
        return self.is_personal and gain.expected_pct > 0 and gain.harm_probability <= MAX_HARM_PROBABILITY

    def describe(self) -> str:
        """Describe the decision in a sentence; see `describe_acceptance`."""
        return describe_acceptance(self.candidate.weights if self.passed else (0.0,) * 3, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; lift, interval and p-value are those of `reported`."""
        gain = self.gain
        found = {
            "passed": self.passed,
            "expected_pct": gain.expected_pct,
            "harm_probability": gain.harm_probability,
            "max_harm_probability": MAX_HARM_PROBABILITY,
            "p_value": self.reported.p_value,
        } | self.reported.lift_to_json()
        if self.signal is not None:
            found |= {"signal": self.signal.value, "personal": self.is_personal}
        if self.over_shuffled is not None:
            found["over_shuffled"] = self.over_shuffled.lift_to_json() | {"p_value": self.over_shuffled.p_value}
        return found


def describe_acceptance(weights: Sequence[float], decision: Mapping[str, Any] | None) -> str:
    """Describe a decision: the verdict with λ, the gain with its interval, and the rule that decided.

    Args:
        weights: λ of cold, sparse and dense users.
        decision: JSON of an `Acceptance`; None if no λ > 0 was better than λ = 0 on validation.
    """
    verdict = f"accepted: λ = {_describe_weights(weights)}" if any(weights) else "refused: λ = 0"
    if decision is None:
        return verdict if any(weights) else f"{verdict}: no λ > 0 was better on validation"
    low, high = decision["ci95"]
    gain = f"{decision['lift_pct']:+z.1f} % over {describe_baseline(REAL_ONLY)} (95 %: {low:+z.1f} … {high:+z.1f})"
    return f"{verdict}: {gain}; {_describe_rule(decision)}"


def _describe_rule(decision: Mapping[str, Any]) -> str:
    if not decision.get("personal", True):
        if "over_shuffled" in decision:
            return "not better than the same events given to other users"
        return "the users' own source histories predict no better than other users'"
    harm, limit = decision["harm_probability"], decision["max_harm_probability"]
    if decision["expected_pct"] <= 0:
        return f"expected gain {decision['expected_pct']:+z.1f} %"
    relation = "≤" if harm <= limit else ">"
    return f"expected gain {decision['expected_pct']:+z.1f} %, chance of a loss over {HARM_PCT:g} % {harm:.2f} {relation} {limit:g}"


def _describe_weights(weights: Sequence[float]) -> str:
    if len(set(weights)) == 1:
        return f"{weights[0]:g}"
    return ", ".join(f"{weight:g} ({segment})" for segment, weight in zip(SEGMENTS, weights, strict=True))
