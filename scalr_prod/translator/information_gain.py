# SPDX-License-Identifier: Apache-2.0
"""Information gain: how much a user's source history says of that user's target events.

Two measurements on users whose target events did not shape the parameters, with weights fitted on other users:

- *own over others'*: by how many nats an event is the item more likely given the user's own history than given the histories of other users
  who chose at about the same time? If the two logs have nothing to do with each other, both are alike and the difference is 0 up to
  chance, whatever else the mixture knows of popularity or time. So events of the whole training period may be used, including those
  that the parameters have seen other users choose: knowledge of the time helps both sides alike.
- *over popularity*: how much more likely is the item by the mixture than by the popularity of the moment? This is measured only on the
  validation slice, which is later than everything the parameters saw, since a mixture that knows the future beats popularity without
  any history. The same is reported with others' histories.

Users whose target events shaped the parameters are left out: a mixture can recognise them by their source history and repeat what they
chose before. A trait that shows in both domains (for what is popular, or new) counts as information: it belongs to the user.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.calibration import MIN_HELD_OUT_EVENTS, CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.calibration_table import CalibrationLayout
from scalr_prod.translator.module import TranslatorModule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.data.training_pairs import LazyContexts

__all__ = ["InformationGain", "LabelledContexts", "MeanCI", "measure_information", "swap_histories"]

#: Maximum number of events, number of other users' histories for each, and resamples of the users.
MAX_EVENTS: Final = 4_000
HISTORY_SWAPS: Final = 2
BOOTSTRAP_RESAMPLES: Final = 2_000
#: Another user's history comes from one of this many events before or after, in order of time.
_NEIGHBOURS: Final = 50
_TRIES: Final = 60
#: A probability within this share of the prior's is at the prior.
_AT_PRIOR: Final = 0.05


@dataclass(frozen=True)
class MeanCI:
    """A mean over events with a 99 % interval: percentiles .5 and 99.5 of that mean over resamples of the users."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"nats": round(self.mean, 6), "ci99": [round(self.low, 6), round(self.high, 6)]}


@dataclass(frozen=True)
class InformationGain:
    """Information gain of source histories on target events.

    Attributes:
        events: Events on which own and others' histories were compared.
        users: Their users.
        own_over_others: See the module.
        later_events: Events of the validation slice on which the rest was measured.
        over_popularity: See the module.
        others_over_popularity: The same with other users' histories.
        expected_log_lift: Expected log(P / prior) of one draw for those contexts.
        share_at_prior: Expected share of draws whose probability is within 5 % of the prior.
    """

    events: int
    users: int
    own_over_others: MeanCI
    later_events: int
    over_popularity: MeanCI
    others_over_popularity: MeanCI
    expected_log_lift: float
    share_at_prior: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "events": self.events,
            "users": self.users,
            "own_over_others": self.own_over_others.to_json(),
            "later_events": self.later_events,
            "over_popularity": self.over_popularity.to_json(),
            "others_over_popularity": self.others_over_popularity.to_json(),
            "draw_nats": round(self.expected_log_lift, 6),
            "draws_at_prior": round(self.share_at_prior, 6),
        }


@dataclass(frozen=True)
class LabelledContexts:
    """Target events, each with the context strictly before it.

    Attributes:
        contexts: [R], with fold -1; rows are built when they are taken.
        labels: int32 [R]. Target indices; -1 where unknown.
        user: int32 [R]. User of each event.
        held_out: bool [R]. Whether the parameters were fitted without that user's target events.
    """

    contexts: Contexts | LazyContexts
    labels: NDArray[np.int32]
    user: NDArray[np.int32]
    held_out: NDArray[np.bool_]


@dataclass(frozen=True)
class _HeldOutEvents:
    """A sample of the events, of held-out users only."""

    contexts: Contexts
    labels: NDArray[np.int32]
    user: NDArray[np.int32]

    @classmethod
    def of(cls, asked: LabelledContexts, rows: NDArray[np.int64]) -> _HeldOutEvents:
        return cls(asked.contexts.take(rows), asked.labels[rows], asked.user[rows])

    def take(self, rows: NDArray[np.bool_]) -> _HeldOutEvents:
        return _HeldOutEvents(self.contexts.take(rows), self.labels[rows], self.user[rows])


@dataclass(frozen=True)
class _EventScores:
    """Log-probabilities of R events, and the draws' expected log lift and share at the prior: float64 [R]; ``user`` int32 [R]."""

    user: NDArray[np.int32]
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    popularity: NDArray[np.float64]
    draw: NDArray[np.float64]
    at_prior: NDArray[np.float64]


def measure_information(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    all_events: LabelledContexts,
    validation_events: LabelledContexts,
    *,
    seed: int,
    device: str = "cpu",
) -> InformationGain:
    """Measure the information gain with a parameter set.

    Args:
        tensors: A parameter set, numbered -1, without calibration and without the held-out users' target events.
        metadata: Metadata of the parameter set.
        all_events: Events of held-out users at any time.
        validation_events: All users' events from the validation slice, which is later than what the set was fitted on.
        seed: Seed of the samples, the halves of the users, the others' histories and the resampling.
        device: Device that scores.
    """

    def with_tables(tables: dict[str, torch.Tensor]) -> TranslatorModule:
        return TranslatorModule(tensors | tables, metadata, device)

    rng, module = np.random.default_rng(seed), with_tables(uncalibrated_tables(CalibrationLayout.from_metadata(metadata)))
    always = _cross_fitted(module, with_tables, all_events, rng, seed)
    after = _cross_fitted(module, with_tables, validation_events, rng, seed)
    return InformationGain(
        events=len(always.user),
        users=len(np.unique(always.user)),
        own_over_others=_bootstrap_mean(always.own - always.others, always.user, rng),
        later_events=len(after.user),
        over_popularity=_bootstrap_mean(after.own - after.popularity, after.user, rng),
        others_over_popularity=_bootstrap_mean(after.others - after.popularity, after.user, rng),
        expected_log_lift=float(after.draw.mean()) if len(after.user) else 0.0,
        share_at_prior=float(after.at_prior.mean()) if len(after.user) else 1.0,
    )


def _cross_fitted(
    module: TranslatorModule,
    with_tables: Callable[[dict[str, torch.Tensor]], TranslatorModule],
    asked: LabelledContexts,
    rng: np.random.Generator,
    seed: int,
) -> _EventScores:
    """Measure each half of the held-out users with weights fitted on the other half.

    If the other half has fewer than 50 events, the weights are fitted on all other users, as a version's own weights are.
    """
    rows = _measurable(module, asked, rng)
    measured = _HeldOutEvents.of(asked, rows[np.argsort(asked.contexts.event_time[rows], kind="stable")])
    whose = np.unique(measured.user)
    first = rng.permutation(whose)[: len(whose) // 2]
    found = [np.zeros(len(rows)) for _ in range(5)]
    for half in (True, False):
        chosen = np.isin(measured.user, first) == half
        if not chosen.any():
            continue
        contexts, labels = asked.contexts, np.where(np.isin(asked.user, measured.user[chosen]), -1, asked.labels)
        if np.count_nonzero(~chosen) >= MIN_HELD_OUT_EVENTS:
            contexts, labels = measured.contexts, np.where(chosen, -1, measured.labels)
        tables = calibrate(module, CalibrationEvents(contexts, labels, np.zeros(len(labels), dtype=bool)), seed=seed)
        calibrated = with_tables(tables)
        mine = measured.take(chosen)
        # Others of the same half, since the weights have been fitted to histories of the other half.
        others = [swap_histories(mine.contexts, mine.user, rng) for _ in range(HISTORY_SWAPS)]
        scores = _score_events(calibrated, mine, others)
        for kept, new in zip(found, scores, strict=True):
            kept[chosen] = new
    return _EventScores(measured.user, *found)


def swap_histories(contexts: Contexts, user: NDArray[np.int32], rng: np.random.Generator) -> Contexts:
    """Replace each history by that of another user's context, if possible one of the fifty before or after it.

    Args:
        contexts: [R], in order of event time.
        user: int32 [R]. User of each context.
        rng: Random generator.

    Returns:
        The contexts; with their own histories if there is no other user.
    """
    many = len(contexts.event_time)
    own = np.arange(many)
    other = own.copy()
    for number in range(_TRIES):  # further away where one user makes nearly all events of a time
        same = np.flatnonzero(user[other] == user)
        reach = min(_NEIGHBOURS * 2 ** (number // 10), max(many - 1, 0))
        other[same] = (own[same] + rng.integers(-reach, reach + 1, len(same))).clip(0, max(many - 1, 0))
    return replace(
        contexts,
        history_items=contexts.history_items[other],
        history_ages=contexts.history_ages[other],
        history_end=np.minimum(contexts.history_end[other], contexts.event_time),
    )


def _measurable(module: TranslatorModule, asked: LabelledContexts, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most `MAX_EVENTS` rows of held-out users with a known source item whose label could be proposed."""
    first_seen = module.first_seen.cpu().numpy()
    there = (asked.labels >= 0) & (first_seen[asked.labels.clip(min=0)] < asked.contexts.event_time)
    rows = np.flatnonzero(asked.held_out & there & asked.contexts.has_known_items())
    return rows if len(rows) <= MAX_EVENTS else np.sort(rng.permutation(rows)[:MAX_EVENTS])


def _score_events(module: TranslatorModule, asked: _HeldOutEvents, others: Sequence[Contexts]) -> list[NDArray[np.float64]]:
    """Return the fields of `_EventScores` after ``user``."""
    own, other, popular, draw, at_prior = (np.zeros(len(asked.labels)) for _ in range(5))
    tiny = torch.finfo(torch.float32).tiny

    def log_of(rows: NDArray[np.int64], p: torch.Tensor) -> NDArray[np.float32]:
        label = torch.from_numpy(asked.labels[rows].astype(np.int64)).to(p.device)
        found: NDArray[np.float32] = p.gather(1, label[:, None])[:, 0].clamp(min=tiny).log().cpu().numpy()
        return found

    for rows, (p, prior) in module.distributions(asked.contexts, ("mixture", "popularity")):
        own[rows], popular[rows] = log_of(rows, p), log_of(rows, prior)
        lift = p.clamp(min=tiny).log() - prior.clamp(min=tiny).log()
        draw[rows] = (p * lift).sum(1).cpu().numpy()
        at_prior[rows] = (p * (lift.abs() < np.log1p(_AT_PRIOR))).sum(1).cpu().numpy()
    for contexts in others:
        for rows, (p,) in module.distributions(contexts):
            other[rows] += log_of(rows, p) / len(others)
    return [own, other, popular, draw, at_prior]


def _bootstrap_mean(difference: NDArray[np.float64], user: NDArray[np.int32], rng: np.random.Generator) -> MeanCI:
    users, place = np.unique(user, return_inverse=True)
    if not len(users):
        return MeanCI(0.0, 0.0, 0.0)
    total, events = np.bincount(place, difference), np.bincount(place)
    means = np.empty(BOOTSTRAP_RESAMPLES)
    for number in range(BOOTSTRAP_RESAMPLES):
        chosen = rng.integers(0, len(users), len(users))
        means[number] = total[chosen].sum() / events[chosen].sum()
    low, high = np.quantile(means, (0.005, 0.995))
    return MeanCI(float(difference.mean()), float(low), float(high))
