# SPDX-License-Identifier: Apache-2.0
"""Always-valid intervals: 95 % intervals of a difference in means that may be read every day, and acted on at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


ALPHA: Final = 0.05
#: Days for which the mixture is tuned; relative to the standard error, the interval is narrowest at about eight times as many.
_TUNED_DAYS: Final = 3.0


def boundary(days: float) -> float:
    """Return half the width of the interval in standard errors: 3.03 after 24 days, where 1.96 would do for a single reading.

    This is Robbins' normal mixture ("Statistical methods related to the law of the iterated logarithm", 1970) as an asymptotic confidence
    sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", 2021).
    Each day adds one observation, the day's difference in means. The probability that a reading at any time, on however many days,
    excludes the true difference so far is at most 5 %.

    It holds for many users whose outcomes are independent of each other's. A user's days may be correlated, but a day must not make up for
    another: negative correlation would let the estimate move more than the boundary allows.

    Args:
        days: Days that outcomes were counted for, over 0.
    """
    observed = days / _TUNED_DAYS
    return float(np.sqrt((1 + 1 / observed) * np.log((1 + observed) / ALPHA**2)))


def half_width(treated: npt.NDArray[np.float64], held_out: npt.NDArray[np.float64], days: float) -> float:
    """Return half the width of the interval of a difference in mean outcomes per user.

    The standard error is the larger of the unpooled and the pooled one. With few held-out users and skewed outcomes, a sample with a low
    mean also has a low variance, so unpooled intervals would be too narrow too often.

    Args:
        treated: Each treated user's outcome so far, float64 [N].
        held_out: Each held-out user's outcome so far, float64 [M].
        days: See `boundary`.
    """
    sizes = np.array([len(treated), len(held_out)])
    variances = np.array([treated.var(ddof=1), held_out.var(ddof=1)])
    pooled = (sizes - 1) @ variances / (sizes.sum() - 2)
    return boundary(days) * float(np.sqrt(max((variances / sizes).sum(), (pooled / sizes).sum())))
