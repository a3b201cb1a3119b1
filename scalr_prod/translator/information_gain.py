# SPDX-License-Identifier: Apache-2.0
"""Information gain: how much a user's source history reveals about the user's target events, in nats per event.

Both measurements use users whose target events did not shape the parameters, with calibration weights fitted on other users:

- *own over others'*: the log-probability of the chosen item given the user's own history, minus that given the histories of other users
  who chose at about the same time. If the two logs are independent, the expected difference is 0, whatever else the mixture knows about
  popularity or time. Therefore events of the whole training period can be used: having seen the period helps both sides equally. A
  fold's users are measured with the fold's parameter set. If one fold has few events, all folds are measured, so that all common users
  count. Two users of different folds are then compared twice, once in the measurement of each: without information, this doubles the
  mean's variance at most. Therefore the interval is √2 times as wide as the bootstrap's.
- *over popularity*: the log-probability of the chosen item by the mixture, minus that by popularity at the time. It is measured only on
  the validation slice, which is later than all training data, because a mixture fitted on later events would beat popularity even without
  a history. The same difference is reported with others' histories.

Users whose target events shaped the parameters are excluded: a mixture can recognise them by their source history and repeat their earlier
choices. A trait that shows in both domains, such as a taste for popular or new items, counts as information.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
import torch

from scalr_prod.translator.calibration import MIN_HELD_OUT_EVENTS, CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.calibration_table import CalibrationLayout
from scalr_prod.translator.module import TrainingModule
from scalr_prod.translator.worker_pool import INLINE, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.data.training_pairs import LazyContexts
    from scalr_prod.translator.module import TranslatorModule


#: Maximum number of events of a parameter set, number of other users' histories per event, and number of bootstrap resamples.
MAX_EVENTS: Final = 4_000
HISTORY_SWAPS: Final = 2
#: Events of one fold that are enough: the other folds are not measured.
ENOUGH_EVENTS: Final = 3_000
BOOTSTRAP_RESAMPLES: Final = 2_000
#: Another user's history is taken from at most this many events before or after, in order of time; number of attempts to find one.
_NEIGHBOURS: Final = 50
_MAX_ATTEMPTS: Final = 60
#: A probability within this relative distance of the prior counts as at the prior.
_AT_PRIOR: Final = 0.05
#: Components of the calibration that are compared.
_COMPONENTS: Final = ("mixture", "popularity")
#: Events in one unit of work.
_BLOCK_ROWS: Final = 512


@dataclass(frozen=True)
class MeanCI:
    """A mean over events with its 99 % bootstrap interval: percentiles 0.5 and 99.5 of the mean over resamples of the users."""

    mean: float
    low: float
    high: float

    def widened(self, factor: float) -> MeanCI:
        """Return the mean with an interval that is wider by a factor."""
        low, high = (self.mean + factor * (bound - self.mean) for bound in (self.low, self.high))
        return MeanCI(self.mean, float(low), float(high))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"nats": round(self.mean, 6), "ci99": [round(self.low, 6), round(self.high, 6)]}


@dataclass(frozen=True)
class OwnOverOthers:
    """Information of users' own source histories, see the module docstring.

    Attributes:
        events: Number of events that it was measured on.
        users: Number of their users.
        nats: The mean, with its 99 % interval.
    """

    events: int
    users: int
    nats: MeanCI

    @classmethod
    def from_scores(cls, scores: Sequence[EventScores], rng: np.random.Generator) -> Self:
        """Average the events of one or several parameter sets.

        Several give a wider interval, since the users of each set shaped the others.
        """
        user = np.concatenate([part.user for part in scores])
        nats = bootstrap_mean(np.concatenate([part.own - part.others for part in scores]), user, rng)
        return cls(len(user), len(np.unique(user)), nats if len(scores) == 1 else nats.widened(np.sqrt(2)))

    def describe(self) -> str:
        """Describe the mean with its 99 % interval, in nats."""
        return f"{self.nats.mean:+z.3f} ({self.nats.low:+z.3f} … {self.nats.high:+z.3f})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.nats.to_json(), "events": self.events, "users": self.users}


@dataclass(frozen=True)
class OverPopularity:
    """Information over popularity, see the module docstring.

    Attributes:
        events: Number of events of the validation slice that it was measured on.
        own: With users' own histories.
        others: With other users' histories.
        expected_log_lift: Expected log(P / prior) of one draw for those contexts.
        share_at_prior: Expected share of draws whose probability is within 5 % of the prior.
    """

    events: int
    own: MeanCI
    others: MeanCI
    expected_log_lift: float
    share_at_prior: float


@dataclass(frozen=True)
class InformationGain:
    """Information gain of source histories on target events."""

    own_over_others: OwnOverOthers
    over_popularity: OverPopularity

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        own, later = self.own_over_others, self.over_popularity
        return {
            "events": own.events,
            "users": own.users,
            "own_over_others": own.nats.to_json(),
            "later_events": later.events,
            "over_popularity": later.own.to_json(),
            "others_over_popularity": later.others.to_json(),
            "draw_nats": round(later.expected_log_lift, 6),
            "draws_at_prior": round(later.share_at_prior, 6),
        }


@dataclass(frozen=True)
class LabelledContexts:
    """Target events, each with the context strictly before it.

    Attributes:
        contexts: [R], with fold -1; rows are built when they are taken.
        labels: int32 [R]. Target indices; -1 for items outside the vocabulary.
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
    def from_rows(cls, events: LabelledContexts, rows: NDArray[np.int64]) -> _HeldOutEvents:
        return cls(events.contexts.take(rows), events.labels[rows], events.user[rows])

    def take(self, mask: NDArray[np.bool_]) -> _HeldOutEvents:
        return _HeldOutEvents(self.contexts.take(mask), self.labels[mask], self.user[mask])


@dataclass(frozen=True)
class EventScores:
    """Log-probabilities of R events, and the draws' expected log lift and share at the prior: float64 [R]; ``user`` int32 [R].

    ``draw`` and ``at_prior`` are 0 unless they were asked for.
    """

    user: NDArray[np.int32]
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    popularity: NDArray[np.float64]
    draw: NDArray[np.float64]
    at_prior: NDArray[np.float64]


def measure_own_over_others(
    parameter_sets: Sequence[tuple[dict[str, torch.Tensor], LabelledContexts]],
    metadata: dict[str, str],
    *,
    seed: int,
    device: str = "cpu",
    workers: WorkerPool = INLINE,
) -> OwnOverOthers:
    """Measure own over others' on the users that the first parameter set was fitted without; if they are few, of every set.

    Args:
        parameter_sets: Tensors of each set, named as set -1 and without calibration tables; and events of any time. At most `MAX_EVENTS`
            of each set's held-out users are measured.
        metadata: Metadata of the sets.
        seed: Seed of the samples, the halves of the users, the others' histories and the resampling.
        device: Device that scores.
        workers: Pool that runs the units of work: those of `calibrate`, then blocks of events.
    """
    rng = np.random.default_rng(seed)
    scores: list[EventScores] = []
    for tensors, events in parameter_sets:
        if scores and len(scores[0].user) >= ENOUGH_EVENTS:
            break
        module = _uncalibrated(tensors, metadata, device)
        scores.append(_score_cross_fitted(module, events, rng, seed, _pool_for(module, workers)))
    return OwnOverOthers.from_scores(scores, rng)


def measure_over_popularity(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    validation_events: LabelledContexts,
    *,
    seed: int,
    device: str = "cpu",
    workers: WorkerPool = INLINE,
) -> OverPopularity:
    """Measure the information over popularity with one parameter set.

    Args:
        tensors: Parameter set -1, fitted without the held-out users' target events, without calibration tables.
        metadata: Metadata of the parameter set.
        validation_events: Events from the validation slice, which is later than what the set was fitted on.
        seed: See `measure_own_over_others`.
        device: See `measure_own_over_others`.
        workers: See `measure_own_over_others`.
    """
    rng, module = np.random.default_rng(seed), _uncalibrated(tensors, metadata, device)
    scores = _score_cross_fitted(module, validation_events, rng, seed, _pool_for(module, workers), with_draws=True)
    return OverPopularity(
        events=len(scores.user),
        own=bootstrap_mean(scores.own - scores.popularity, scores.user, rng),
        others=bootstrap_mean(scores.others - scores.popularity, scores.user, rng),
        expected_log_lift=float(scores.draw.mean()) if len(scores.user) else 0.0,
        share_at_prior=float(scores.at_prior.mean()) if len(scores.user) else 1.0,
    )


def _pool_for(module: TranslatorModule, workers: WorkerPool) -> WorkerPool:
    """Return the pool; on a GPU, inline."""
    return workers if module.device.type == "cpu" else INLINE


def score_held_out_events(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], events: LabelledContexts, *, seed: int, max_events: int
) -> EventScores:
    """Score events of held-out users, as `measure_own_over_others` does.

    Args:
        tensors: See `measure_over_popularity`.
        metadata: See `measure_over_popularity`.
        events: Events of held-out users at any time.
        seed: See `measure_own_over_others`.
        max_events: Largest number of events; more are sampled.
    """
    rng, module = np.random.default_rng(seed), _uncalibrated(tensors, metadata)
    return _score_cross_fitted(module, events, rng, seed, INLINE, max_events)


def _uncalibrated(tensors: dict[str, torch.Tensor], metadata: dict[str, str], device: str = "cpu") -> TrainingModule:
    return TrainingModule(tensors | uncalibrated_tables(CalibrationLayout.from_metadata(metadata)), metadata, device)


def _score_cross_fitted(
    module: TrainingModule,
    events: LabelledContexts,
    rng: np.random.Generator,
    seed: int,
    workers: WorkerPool,
    max_events: int = MAX_EVENTS,
    *,
    with_draws: bool = False,
) -> EventScores:
    """Score the events of each half of the held-out users with calibration weights fitted on the other half.

    If the other half has fewer than 50 events, the weights are fitted on all other users, as a version's own weights are. The draws'
    figures take the whole distribution of each event, so they are computed only ``with_draws``.
    """
    rows = _sample_rows(module, events, rng, max_events)
    measured = _HeldOutEvents.from_rows(events, rows[np.argsort(events.contexts.event_time[rows], kind="stable")])
    users = np.unique(measured.user)
    first_half = rng.permutation(users)[: len(users) // 2]
    halves = [np.isin(measured.user, first_half) == in_first_half for in_first_half in (True, False)]
    # Histories are swapped within a half, since the weights are fitted to histories of the other one.
    swapped = [
        [swap_histories(half.contexts, half.user, rng) for _ in range(HISTORY_SWAPS)] for half in map(measured.take, halves)
    ]

    def score(number: int) -> list[NDArray[np.float64]]:
        mask = halves[number]
        if not mask.any():
            return [np.zeros(0)] * 5
        contexts, labels = events.contexts, np.where(np.isin(events.user, measured.user[mask]), -1, events.labels)
        if np.count_nonzero(~mask) >= MIN_HELD_OUT_EVENTS:
            contexts, labels = measured.contexts, np.where(mask, -1, measured.labels)
        calibration_events = CalibrationEvents(contexts, labels, np.zeros(len(labels), dtype=bool))
        tables = calibrate(module, calibration_events, seed=seed, workers=workers, components=_COMPONENTS)
        inputs = _ScoredEvents(module.with_tensors(tables), measured.take(mask), tuple(swapped[number]), with_draws)
        return _score_events(inputs, workers)

    columns = [np.zeros(len(rows)) for _ in range(5)]
    # Each calibration ends with one long unit: those of the halves run side by side.
    for mask, scored in zip(halves, workers.run_concurrently(lambda: score(0), lambda: score(1)), strict=True):
        for column, values in zip(columns, scored, strict=True):
            column[mask] = values
    return EventScores(measured.user, *columns)


def swap_histories(contexts: Contexts, user: NDArray[np.int32], rng: np.random.Generator) -> Contexts:
    """Replace each history by that of another user's context, preferably one of the 50 before or after it.

    Args:
        contexts: [R], in order of event time.
        user: int32 [R]. User of each context.
        rng: Random generator.

    Returns:
        The contexts with other users' histories; a context keeps its own if no other user was found.
    """
    n_contexts = len(contexts.event_time)
    own = np.arange(n_contexts)
    other = own.copy()
    for attempt in range(_MAX_ATTEMPTS):
        same = np.flatnonzero(user[other] == user)
        # The range doubles every ten attempts, for times at which one user has nearly all events.
        reach = min(_NEIGHBOURS * 2 ** (attempt // 10), max(n_contexts - 1, 0))
        other[same] = (own[same] + rng.integers(-reach, reach + 1, len(same))).clip(0, max(n_contexts - 1, 0))
    return replace(
        contexts,
        history_items=contexts.history_items[other],
        history_ages=contexts.history_ages[other],
        history_end=np.minimum(contexts.history_end[other], contexts.event_time),
    )


def _sample_rows(
    module: TranslatorModule, events: LabelledContexts, rng: np.random.Generator, max_events: int
) -> NDArray[np.int64]:
    """Sample at most ``max_events`` rows of held-out users whose history has a known item and whose label is eligible: int64."""
    first_seen = module.first_seen.cpu().numpy()
    eligible = (events.labels >= 0) & (first_seen[events.labels.clip(min=0)] < events.contexts.event_time)
    rows = np.flatnonzero(events.held_out & eligible & events.contexts.has_known_items())
    return rows if len(rows) <= max_events else np.sort(rng.permutation(rows)[:max_events])


class _ScoredEvents(NamedTuple):
    """Events to score, their contexts with others' histories, and whether to compute the draws' figures."""

    module: TranslatorModule
    events: _HeldOutEvents
    swapped: tuple[Contexts, ...]
    with_draws: bool


def _score_events(inputs: _ScoredEvents, workers: WorkerPool) -> list[NDArray[np.float64]]:
    """Return the fields of `EventScores` after ``user``: float64 [R] each. A unit of work is a block of events."""
    n_events = len(inputs.events.labels)
    blocks = np.split(np.arange(n_events), range(_BLOCK_ROWS, n_events, _BLOCK_ROWS))
    return [np.concatenate(columns) for columns in zip(*workers.map(_score_block, inputs, blocks), strict=True)]


def _score_block(inputs: _ScoredEvents, block: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Return `_score_events` of a block of events."""
    module, events, swapped, with_draws = inputs
    label, contexts = events.labels[block, None], events.contexts.take(block)
    own, popular = (_log(p[:, 0]) for p in module.score(contexts, label))
    others = np.mean([_log(module.score(other.take(block), label)[0][:, 0]) for other in swapped], axis=0)
    draw, at_prior = _expected_draw(module, contexts) if with_draws else np.zeros((2, len(block)))
    return [own, others, popular, draw, at_prior]


def _log(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return logarithms of probabilities, of which 0 counts as the smallest normal number."""
    log_p: NDArray[np.float64] = np.log(p.clip(min=np.finfo(np.float32).tiny), dtype=np.float64)
    return log_p


@torch.inference_mode()
def _expected_draw(module: TranslatorModule, contexts: Contexts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the expected log(P / prior) of one draw for each context, and the probability that a draw is at the prior: float64 [R]."""
    log_lifts, at_prior = np.zeros((2, len(contexts)))
    tiny = torch.finfo(torch.float32).tiny
    for rows, (p, prior) in module.distributions(contexts, _COMPONENTS):
        log_lift = p.clamp(min=tiny).log_().sub_(prior.clamp_(min=tiny).log_())
        log_lifts[rows] = (p * log_lift).sum(1).cpu().numpy()
        at_prior[rows] = p.mul_(log_lift.abs_() < np.log1p(_AT_PRIOR)).sum(1).cpu().numpy()
    return log_lifts, at_prior


def bootstrap_mean(difference: NDArray[np.float64], user: NDArray[np.int32], rng: np.random.Generator) -> MeanCI:
    """Bootstrap the mean of the events' differences, float64 [R], over users, int32 [R]."""
    users, row = np.unique(user, return_inverse=True)
    if not len(users):
        return MeanCI(0.0, 0.0, 0.0)
    total, events = np.bincount(row, difference), np.bincount(row)
    means = np.empty(BOOTSTRAP_RESAMPLES)
    for number in range(BOOTSTRAP_RESAMPLES):
        resample = rng.integers(0, len(users), len(users))
        means[number] = total[resample].sum() / events[resample].sum()
    low, high = np.quantile(means, (0.005, 0.995))
    return MeanCI(float(difference.mean()), float(low), float(high))
