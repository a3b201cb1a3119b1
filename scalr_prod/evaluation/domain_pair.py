# SPDX-License-Identifier: Apache-2.0
"""Measurement of one ordered pair of domains by a quick translator: is there something to translate, and would it help?

Two figures decide, and they are about different events:

- *own over others*, which the quality gate reads of a run's translator: what a user's own source history tells of the user's target
  events, over other users' histories, on users whose target events did not shape the translator.
- the *lift* in a split by time: NDCG@20 of the quick translator's ranking as of an instant, over that of the best list of popular items,
  for later target events. The list's half-life is chosen on the events before that instant.

No recommender is trained, so the lift is not that of an evaluation: it says how much a pair can bring, and orders pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import InputError, TranslatorError
from scalr_prod.evaluation.acceptance import HARM_PCT, GainEstimate
from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models.recent_popularity import HALF_LIVES, RecentPopularity
from scalr_prod.evaluation.ranking_metrics import Ranking, rank_users
from scalr_prod.evaluation.statistics import TwoWayClusters
from scalr_prod.quality import MIN_USERS
from scalr_prod.translator import LogCounts, QuickTranslator, estimate_training_minutes, pair_log, quick_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.statistics import ArmComparison
    from scalr_prod.translator import DomainLog, EventLog, OwnOverOthers


#: Largest number of events of a domain that a pair is measured on, and of users that are ranked for.
MAX_EVENTS: Final = 50_000
MAX_TEST_USERS: Final = 1_500
_K: Final = 20
#: Standard deviation of log(translator / list) before any evidence; its mean is 0.
_PRIOR_SD: Final = math.log(2)


@dataclass(frozen=True)
class SplitLift:
    """Lift of a quick translator over the best list of popular items, on later events.

    Attributes:
        users: Test users: those with a source history before the split and a new target item after it.
        translator: NDCG@20 of the translator.
        popular: NDCG@20 of the list.
        half_life: The list's half-life in days.
        comparison: Lift with its interval; users and items are clusters.
    """

    users: int
    translator: float
    popular: float
    half_life: float
    comparison: ArmComparison

    @property
    def gain(self) -> GainEstimate:
        """The lift, shrunk towards 0 in log(translator / list): the error of a ratio is proportional to it."""
        return _shrunk(self.comparison)

    def describe(self) -> str:
        """Describe the lift with its 95 % interval."""
        if not np.isfinite(self.comparison.lift_pct):
            return "the list hits nothing"
        low, high = self.comparison.ci95
        return f"{self.comparison.lift_pct:+z.0f} % ({low:+z.0f} … {high:+z.0f})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; null for the lift over a list that hits nothing."""
        values = [self.comparison.lift_pct, *self.comparison.ci95]
        lift, low, high = (round(value, 2) if np.isfinite(value) else None for value in values)
        return {
            "users": self.users,
            "ndcg_translator": round(self.translator, 6),
            "ndcg_popular": round(self.popular, 6),
            "half_life_days": self.half_life,
            "lift_pct": lift,
            "ci95": [low, high],
        }


@dataclass(frozen=True)
class PairMeasurement:
    """What was measured of an ordered pair of domains.

    Attributes:
        source: Name of the source domain.
        target: Name of the target domain.
        common_users: Number of users of both.
        source_events: Number of events of the source domain.
        target_events: Number of events of the target domain.
        training_minutes: Estimated time that training the default translator takes one core; most of a run.
        information: Own over others; None: it could not be measured.
        lift: Lift in a split by time; None: it could not be measured.
        problem: Why something could not be measured; None: all was.
        min_information: `[quality] min_information`, which the gate compares the information with.
    """

    source: str
    target: str
    common_users: int
    source_events: int
    target_events: int
    training_minutes: float
    information: OwnOverOthers | None = None
    lift: SplitLift | None = None
    problem: str | None = None
    min_information: float = 0.001

    @property
    def reason(self) -> str | None:
        """Why a run would not help; None: it is expected to."""
        if self.problem is not None:
            return self.problem
        if self.information is None or self.lift is None:
            return "nothing was measured"
        if not self._would_pass_gate(self.information):
            if self.information.users < MIN_USERS:
                return f"too few events: information on {self.information.users} held-out users, the gate needs {MIN_USERS}"
            return "no information: own source histories are not measured to tell more than other users'"
        if self.lift.gain.expected_pct <= 0:
            return "no gain expected over the best list of popular items"
        return None

    @property
    def expected_gain_pct(self) -> float | None:
        """Expected gain of a run, in percent: the shrunk lift, 0 where the gate would refuse the run; None: not measured."""
        if self.problem is not None or self.information is None or self.lift is None:
            return None
        return self.lift.gain.expected_pct if self._would_pass_gate(self.information) else 0.0

    def _would_pass_gate(self, information: OwnOverOthers) -> bool:
        if not self.min_information:
            return True
        return information.users >= MIN_USERS and information.nats.low >= self.min_information

    def order(self) -> tuple[bool, bool, float, str, str]:
        """Return the key that ranks pairs: those worth a run first, by expected gain; those that were not measured last."""
        gain = self.expected_gain_pct
        return self.reason is not None, gain is None, -(gain or 0.0), self.source, self.target

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        gain = self.expected_gain_pct
        return {
            "source": self.source,
            "target": self.target,
            "common_users": self.common_users,
            "source_events": self.source_events,
            "target_events": self.target_events,
            "own_over_others": self.information and self.information.to_json(),
            "split_lift": self.lift and self.lift.to_json(),
            "expected_gain_pct": None if gain is None else round(gain, 2),
            "harm_probability": None if self.lift is None else round(self.lift.gain.harm_probability, 4),
            "training_minutes": round(self.training_minutes, 1),
            "reason": self.reason,
        }


def measure_pair(settings: Settings, names: tuple[str, str], source: DomainLog, target: DomainLog) -> PairMeasurement:
    """Measure a pair. What cannot be measured is told in the result.

    Args:
        settings: Sections other than ``[domains]`` are read; the translator is a quick one, whatever they say of it.
        names: Names of source and target.
        source: Log of the source domain.
        target: Log of the target domain.
    """
    found: dict[str, Any] = {
        "common_users": source.common_users(target),
        "source_events": len(source),
        "target_events": len(target),
        "training_minutes": _training_minutes(settings, source, target),
        "min_information": settings.quality.min_information,
    }

    def measured(**more: Any) -> PairMeasurement:
        return PairMeasurement(source=names[0], target=names[1], **found, **more)

    try:
        source.ensure_same_ids(target)
    except InputError as error:
        return measured(problem=f"user ids of different types: {error.found}")
    if not found["common_users"]:
        return measured(problem="no common users")
    quick = quick_settings(settings)
    log = pair_log(source, target, length=settings.histories.length, folds=settings.translator.folds, max_events=MAX_EVENTS)
    try:
        translator = fit_quick(quick, log)
    except TranslatorError as error:
        return measured(problem=f"too few events: {error.found}")
    information = translator.measure_information()
    lift = measure_lift(translator)
    if lift is None:
        return measured(
            information=information, problem="too few events: no user with a source history has a later target event"
        )
    return measured(information=information, lift=lift)


def fit_quick(settings: Settings, log: EventLog) -> QuickTranslator:
    """Fit a quick translator.

    Raises:
        TranslatorError: A domain has no events, or too few.
    """
    if not len(log.source) or not len(log.target):
        raise TranslatorError("a user has more events than a pair is measured on", where="the log", next_step="sample the log")
    return QuickTranslator.fit(settings, log)


def measure_lift(translator: QuickTranslator) -> SplitLift | None:
    """Measure the lift of a quick translator over the best list of popular items; None without a test user."""
    split, seed = translator.tested_from, translator.pairs.settings.seed
    test = _TestUsers.from_rows(translator, translator.label_rows(split), seed)
    if not len(test.users):
        return None
    half_life = _best_half_life(translator)
    real = _interactions(translator, split)
    rankings = [
        test.rank(_QuickScores(translator, test), real),
        test.rank(_fitted_list(half_life, real), real),
    ]
    own, popular = (ranking.hits() for ranking in rankings)
    comparison = TwoWayClusters(test.users, real.n_items).compare(own, popular)
    return SplitLift(
        users=len(test.users),
        translator=float(rankings[0].ndcg.mean()),
        popular=float(rankings[1].ndcg.mean()),
        half_life=half_life,
        comparison=comparison,
    )


@dataclass(frozen=True)
class _TestUsers:
    """Users whose later items are ranked.

    Attributes:
        users: int64 [V], ascending.
        first_rows: int64 [V]. Position in ``log.target`` of each one's first event of the slice.
        relevant: scipy CSR [U, N]. 1 where a user had an item in the slice.
    """

    users: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    relevant: Any

    @classmethod
    def from_rows(cls, translator: QuickTranslator, rows: NDArray[np.int64], seed: int) -> _TestUsers:
        """Take at most `MAX_TEST_USERS` users of some labels, of those with a source history."""
        from scipy import sparse

        pairs = translator.pairs
        user, item = pairs.log.target.user[rows], pairs.target_index[pairs.log.target.item[rows]]
        users, first = np.unique(user, return_index=True)  # rows are in order of user and time
        known = translator.has_history(rows[first])
        users, first_rows = users[known], rows[first[known]]
        if len(users) > MAX_TEST_USERS:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(users))[:MAX_TEST_USERS])
            users, first_rows = users[chosen], first_rows[chosen]
        shape = len(pairs.log.users), pairs.n_target
        relevant = sparse.csr_matrix((np.ones(len(user), dtype=np.float32), (user, item)), shape=shape)
        return cls(users.astype(np.int64), first_rows, relevant)

    def rank(self, model: Any, real: Interactions) -> Ranking:
        """Rank the catalogue for the users, without the items that they had."""
        is_head = np.zeros(real.n_items, dtype=bool)
        k = min(_K, real.n_items)
        return rank_users(model, self.users, relevant=self.relevant, seen=real.matrix(), is_head=is_head, k=k)


class _QuickScores:
    """A quick translator as a scorer of items."""

    def __init__(self, translator: QuickTranslator, test: _TestUsers) -> None:
        self._translator, self._test = translator, test

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probabilities of all items: [B, N]."""
        return self._translator.score(self._test.first_rows[np.searchsorted(self._test.users, users)])


def _shrunk(comparison: ArmComparison) -> GainEstimate:
    """Combine a lift with a log-normal prior."""
    ratio = 1 + comparison.lift_pct / 100
    if math.isnan(ratio):  # the list finds nothing
        return GainEstimate(100 * math.expm1(_PRIOR_SD), 0.0) if comparison.difference_ci95[0] > 0 else GainEstimate(0.0, 1.0)
    if ratio <= 0:
        return GainEstimate(comparison.lift_pct, 1.0)
    error = comparison.lift_error / 100 / ratio
    trust = _PRIOR_SD**2 / (_PRIOR_SD**2 + error**2)
    expected = trust * math.log(ratio)
    harm = math.log1p(-HARM_PCT / 100)
    probability = NormalDist(expected, error * trust**0.5).cdf(harm) if error else float(expected < harm)
    return GainEstimate(100 * math.expm1(expected), probability)


def _best_half_life(translator: QuickTranslator) -> float:
    """Return the half-life of the list that ranks best in the slice before the split; the longest of equal ones."""
    begin = translator.pairs.until
    rows = translator.label_rows(begin, translator.tested_from)
    users = _TestUsers.from_rows(translator, rows, translator.pairs.settings.seed)
    if not len(users.users):
        return HALF_LIVES[-1]
    real = _interactions(translator, begin)
    reached = {half_life: users.rank(_fitted_list(half_life, real), real).ndcg.mean() for half_life in reversed(HALF_LIVES)}
    return max(reached, key=lambda half_life: reached[half_life])


def _fitted_list(half_life: float, real: Interactions) -> RecentPopularity:
    model = RecentPopularity(half_life)
    model.fit(real, seed=0)
    return model


def _interactions(translator: QuickTranslator, until: int) -> Interactions:
    """Return the labels on known items before a time."""
    pairs, rows = translator.pairs, translator.label_rows(end=until)
    events = pairs.log.target
    return Interactions(
        user=events.user[rows],
        item=pairs.target_index[events.item[rows]],
        time=events.time[rows],
        weight=np.ones(len(rows), dtype=np.float32),
        n_users=len(pairs.log.users),
        n_items=pairs.n_target,
        until=until,
    )


def _training_minutes(settings: Settings, source: DomainLog, target: DomainLog) -> float:
    length = settings.histories.length
    counts = LogCounts(len(source), source.n_windows(length), target.n_labels(), length)
    return estimate_training_minutes(counts, settings.translator)
