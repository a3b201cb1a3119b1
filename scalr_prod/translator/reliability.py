# SPDX-License-Identifier: Apache-2.0
"""Reliability by class of predicted probability: mean prediction compared with the observed rate.

A pair is one event and one item that was eligible at it. Its outcome is whether the event was on that item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

#: Lower limits of the classes after the lowest, which begins at 0.
CLASS_LIMITS: Final = (0.001, 0.01, 0.1, 0.5, 0.9)
#: Confidence level of the interval of an observed rate.
CONFIDENCE: Final = 0.999
#: Least number of outcomes from which a class is judged.
MIN_OUTCOMES: Final = 50


@dataclass(frozen=True)
class ReliabilityClass:
    """A class of predicted probability.

    Attributes:
        low: Least probability of the class, inclusive.
        high: Largest probability of the class, exclusive; 1.0 is inclusive.
        pairs: Number of pairs.
        expected: Sum of their probabilities.
        events: Number of events that occurred.
    """

    low: float
    high: float
    pairs: int
    expected: float
    events: int

    @property
    def predicted(self) -> float:
        """Return the mean predicted probability."""
        return self.expected / self.pairs

    @property
    def observed(self) -> float:
        """Return the observed rate."""
        return self.events / self.pairs

    def interval(self) -> tuple[float, float]:
        """Return the exact binomial interval of the observed rate (Clopper and Pearson, 1934)."""
        from scipy import special  # scipy.stats takes about half a second more to import

        tail = (1 - CONFIDENCE) / 2
        low = special.betaincinv(self.events, self.pairs - self.events + 1, tail) if self.events else 0.0
        high = special.betainccinv(self.events + 1, self.pairs - self.events, tail) if self.events < self.pairs else 1.0
        return float(low), float(high)

    def is_off(self, max_factor: float) -> bool:
        """Return whether the prediction is wrong by more than chance and by more than a factor; False below `MIN_OUTCOMES`."""
        if self.pairs < MIN_OUTCOMES:
            return False
        low, high = self.interval()
        by_factor = self.predicted > max_factor * self.observed or self.observed > max_factor * self.predicted
        return by_factor and not low <= self.predicted <= high

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "low": self.low,
            "high": self.high,
            "pairs": self.pairs,
            "expected": round(self.expected, 6),
            "events": self.events,
            "predicted": self.predicted,
            "observed": self.observed,
            "ci999": list(self.interval()),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ReliabilityClass:
        """Return the class that `to_json` described."""
        return cls(*(values[name] for name in ("low", "high", "pairs", "expected", "events")))
