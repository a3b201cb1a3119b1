# SPDX-License-Identifier: Apache-2.0
"""Smallest sample sizes for rules on shares and distributions.

A share or distribution of a few rows is mostly chance: with ten popularity buckets, a single event is at distance 0.9 from any even
distribution. Each function returns the smallest sample size at which the rule rejects at most one run in 1 000 (`CHANCE`) whose true value
is within the limit by the margin that the function states. The bounds are closed and hold for any distribution.
"""

from __future__ import annotations

from bisect import bisect_left
from math import ceil, log, log1p, sqrt
from typing import Final

#: Largest probability that chance alone breaks a rule.
CHANCE: Final = 1e-3
_LOG: Final = -log(CHANCE)

#: Rows of a user that count in the number of items that a run can reach. With one item for all of a user's rows, the worst case, n users
#: reach at most n items: half of this number of rows.
ROWS_PER_USER: Final = 2
#: Number of users from which the effective number of items is judged; a simulation of the worst case gives it (tests, test_sample_size).
MIN_USERS_FOR_ITEMS: Final = 200

#: Smallest share of contexts that an honest run turns into events, whatever the limit.
_HONEST_COVERAGE: Final = 0.1


def max_bad_rows_by_chance(rows: int, limit: float) -> int:
    """Return the number of bad rows that an honest run of so many rows exceeds with a probability of at most `CHANCE`.

    In an honest run a row is bad with at most half the allowed share: the quantile of that binomial distribution.

    >>> max_bad_rows_by_chance(40, 0.01), max_bad_rows_by_chance(20_000, 0.01)
    (3, 132)
    """
    from scipy import special

    return bisect_left(range(rows + 1), x=True, key=lambda bad: special.bdtrc(bad, rows, limit / 2) <= CHANCE)


def min_users_for_distance(buckets: int, limit: float) -> int:
    """Return the number of users from which the total variation distance over buckets is judged.

    An honest run's own distance is at most half the limit, so chance may add the other half, t. The distance between a sample and its
    distribution is the largest excess of the sample over the distribution in any set of buckets. For n independent users, Hoeffding bounds
    each of the 2^B sets: P(distance ≥ t) ≤ 2^B exp(−2nt²) (Weissman et al., 2003). Users with n_u events count as
    (Σ n_u)²/Σ n_u² users with equally many: Hoeffding holds for unequal weights with that n.

    >>> min_users_for_distance(10, 0.8)
    44
    """
    return ceil((buckets * log(2) + _LOG) / (2 * (limit / 2) ** 2))


def min_users_for_excess(limit: float) -> int:
    """Return the number of users from which the largest excess of an item's share over its real share is judged.

    An honest run's own excess is at most a third of the limit, so chance may add t = ⅔ of it. For an item of share p and n independent
    users, Hoeffding: P(excess ≥ t) ≤ exp(−n KL(p + t ‖ p)) ≤ exp(−2nt²). Since the shares add up to 1, the sum over all items is at most
    the largest exp(−n KL)/p. That is at most 3 exp(−2nt²): for p ≥ ⅓ directly, and for smaller p since KL grows as p falls.

    >>> min_users_for_excess(0.15)
    401
    """
    return ceil((_LOG + log(3)) / (2 * (2 * limit / 3) ** 2))


def min_contexts_for_coverage(limit: float) -> int:
    """Return the number of contexts from which the share that became an event is judged; limit 0: whether any did.

    An honest run covers c = max(√limit, 0.1). Hoeffding: P(share ≤ limit) ≤ exp(−n KL(limit ‖ c)) for n independent contexts.

    >>> min_contexts_for_coverage(0), min_contexts_for_coverage(0.01)
    (66, 97)
    """
    if limit >= 1:
        return 0
    honest = max(sqrt(limit), _HONEST_COVERAGE)
    divergence = (limit * log(limit / honest) if limit else 0.0) + (1 - limit) * (log1p(-limit) - log1p(-honest))
    return ceil(_LOG / divergence)


def min_events_for_drift(bins: int, limit: float) -> float:
    """Return the least 1/(1/n + 1/m), of n and m events, from which a population stability index (PSI) is judged.

    Between samples of one distribution, PSI/(1/n + 1/m) is asymptotically χ² with k = bins − 1 degrees of freedom, and
    P(χ² ≥ k + 2√(kx) + 2x) ≤ exp(−x) (Laurent and Massart, 2000, lemma 1). An honest run drifts by at most half the limit.

    >>> round(min_events_for_drift(10, 0.25))
    309
    """
    degrees = bins - 1
    return (degrees + 2 * sqrt(degrees * _LOG) + 2 * _LOG) / (limit / 2)
