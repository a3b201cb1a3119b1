# SPDX-License-Identifier: Apache-2.0
"""Measure how much a user's source history says of that user's target events: whether there is anything to translate.

Two questions, asked of users whose target events did not shape the parameters, with weights fitted on other users:

- *own over others'*: how much more likely, in nats an event, is the user's own history to name the item than the histories of other users
  who chose at about the same time? This is what histories say. If the two logs have nothing to do with each other, own and others'
  histories are alike, and the difference is 0 but for chance, whatever else the mixture knows of popularity or time. So events from
  the whole training period may be used, also those that the parameters have seen other users choose: what the parameters know
  of the time helps both sides alike.
- *over popularity*: how much more likely is the item by the mixture than by the popularity of the moment? Asked on the validation slice
  only, which is later than everything the parameters saw, since a mixture that knows the future beats popularity without
  any history. The same with others' histories stands beside it.

Users whose target events shaped the parameters are left out: a mixture can recognise them by their source history and repeat what they
chose before. A taste that shows in both domains (for what is popular, or new) counts as information: it belongs to the user.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.calibration import FEWEST_HELD_OUT, calibrate, neutral
from scalr_prod.translator.layout import Layout
from scalr_prod.translator.module import TranslatorModule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.pairs import ContextSource

__all__ = ["Asked", "Information", "Nats", "measure_information", "with_histories_of_others"]

#: Most events measured, histories of others that each is asked with, and resamples of their users.
MOST_EVENTS: Final = 4_000
OTHERS: Final = 2
RESAMPLES: Final = 2_000
#: Another user's history is taken from one of so many events before or after, in order of time.
_NEIGHBOURS: Final = 50
_TRIES: Final = 60
#: A probability within this share of the prior's is at the prior.
_AT_PRIOR: Final = 0.05


@dataclass(frozen=True)
class Nats:
    """A mean over events, and a 99 % interval: the percentiles .5 and 99.5 of that mean over resamples of the users."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"nats": round(self.mean, 6), "ci99": [round(self.low, 6), round(self.high, 6)]}


@dataclass(frozen=True)
class Information:
    """What source histories say of target events.

    Attributes:
        events: Events on which own and others' histories were compared.
        users: Their users.
        own_over_others: See the module.
        later_events: Events of the validation slice on which the rest was measured.
        over_popularity: See the module.
        others_over_popularity: The same with other users' histories.
        draw: Expected log(P / prior) of one draw for those contexts.
        at_prior: Expected share of draws whose probability is within 5 % of the prior's.
    """

    events: int
    users: int
    own_over_others: Nats
    later_events: int
    over_popularity: Nats
    others_over_popularity: Nats
    draw: float
    at_prior: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "events": self.events,
            "users": self.users,
            "own_over_others": self.own_over_others.to_json(),
            "later_events": self.later_events,
            "over_popularity": self.over_popularity.to_json(),
            "others_over_popularity": self.others_over_popularity.to_json(),
            "draw_nats": round(self.draw, 6),
            "draws_at_prior": round(self.at_prior, 6),
        }


@dataclass(frozen=True)
class Asked:
    """Target events and what came strictly before each.

    Attributes:
        contexts: [R], with fold -1; those that are looked at are taken.
        labels: int32 [R]. Target indices; -1 where unknown.
        user: int32 [R]. Whose events they are.
        held_out: bool [R]. Whether that user's target events were kept from the parameters.
    """

    contexts: Contexts | ContextSource
    labels: NDArray[np.int32]
    user: NDArray[np.int32]
    held_out: NDArray[np.bool_]


@dataclass(frozen=True)
class _Measured:
    """Some of the events: as `Asked`, of held-out users alone."""

    contexts: Contexts
    labels: NDArray[np.int32]
    user: NDArray[np.int32]

    @classmethod
    def of(cls, asked: Asked, rows: NDArray[np.int64]) -> _Measured:
        return cls(asked.contexts.take(rows), asked.labels[rows], asked.user[rows])

    def take(self, rows: NDArray[np.bool_]) -> _Measured:
        return _Measured(self.contexts.take(rows), self.labels[rows], self.user[rows])


@dataclass(frozen=True)
class _Said:
    """What the members said of R events of some users: float64 [R] each, ``user`` int32 [R]."""

    user: NDArray[np.int32]
    own: NDArray[np.float64]
    others: NDArray[np.float64]
    popularity: NDArray[np.float64]
    draw: NDArray[np.float64]
    at_prior: NDArray[np.float64]


def measure_information(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    everything: Asked,
    later: Asked,
    *,
    seed: int,
    device: str = "cpu",
) -> Information:
    """Measure a parameter set.

    Args:
        tensors: A parameter set, numbered -1, without calibration and without the held-out users' target events.
        metadata: Of it.
        everything: Events of held-out users at any time.
        later: All users' events from the validation slice, which is later than what the set was fitted on.
        seed: Of the samples, the halves of the users, the others' histories and the resampling.
        device: Where the set is asked.
    """

    def with_tables(tables: dict[str, torch.Tensor]) -> TranslatorModule:
        return TranslatorModule(tensors | tables, metadata, device)

    rng, module = np.random.default_rng(seed), with_tables(neutral(Layout.stored(metadata)))
    always = _cross_fitted(module, with_tables, everything, rng, seed)
    after = _cross_fitted(module, with_tables, later, rng, seed)
    return Information(
        events=len(always.user),
        users=len(np.unique(always.user)),
        own_over_others=_nats(always.own - always.others, always.user, rng),
        later_events=len(after.user),
        over_popularity=_nats(after.own - after.popularity, after.user, rng),
        others_over_popularity=_nats(after.others - after.popularity, after.user, rng),
        draw=float(after.draw.mean()) if len(after.user) else 0.0,
        at_prior=float(after.at_prior.mean()) if len(after.user) else 1.0,
    )


def _cross_fitted(
    module: TranslatorModule,
    with_tables: Callable[[dict[str, torch.Tensor]], TranslatorModule],
    asked: Asked,
    rng: np.random.Generator,
    seed: int,
) -> _Said:
    """Each half of the held-out users, with weights fitted on the other half.

    If that half has fewer than 50 events, the weights are fitted on everybody else, as a version's own weights are.
    """
    rows = _measurable(module, asked, rng)
    measured = _Measured.of(asked, rows[np.argsort(asked.contexts.event_time[rows], kind="stable")])
    whose = np.unique(measured.user)
    first = rng.permutation(whose)[: len(whose) // 2]
    found = [np.zeros(len(rows)) for _ in range(5)]
    for half in (True, False):
        chosen = np.isin(measured.user, first) == half
        if not chosen.any():
            continue
        contexts, labels = asked.contexts, np.where(np.isin(asked.user, measured.user[chosen]), -1, asked.labels)
        if np.count_nonzero(~chosen) >= FEWEST_HELD_OUT:
            contexts, labels = measured.contexts, np.where(chosen, -1, measured.labels)
        tables = calibrate(module, contexts, labels, np.zeros(len(labels), dtype=bool), seed=seed)
        calibrated = with_tables(tables)
        mine = measured.take(chosen)
        # Others of the same half: to histories of the other half the weights have been fitted.
        others = [with_histories_of_others(mine.contexts, mine.user, rng) for _ in range(OTHERS)]
        said = _say(calibrated, mine, others)
        for kept, new in zip(found, said, strict=True):
            kept[chosen] = new
    return _Said(measured.user, *found)


def with_histories_of_others(contexts: Contexts, user: NDArray[np.int32], rng: np.random.Generator) -> Contexts:
    """Each context with the history of another user's context, one of the fifty before or after it if that is possible.

    Args:
        contexts: [R], in order of event time.
        user: int32 [R]. Whose they are.
        rng: Chooses.

    Returns:
        The contexts; if there is no other user, with their own histories.
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


def _measurable(module: TranslatorModule, asked: Asked, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of held-out users with a known source item, whose own item was there to be chosen; at most `MOST_EVENTS`."""
    first_seen = module.first_seen.cpu().numpy()
    there = (asked.labels >= 0) & (first_seen[asked.labels.clip(min=0)] < asked.contexts.event_time)
    rows = np.flatnonzero(asked.held_out & there & asked.contexts.known())
    return rows if len(rows) <= MOST_EVENTS else np.sort(rng.permutation(rows)[:MOST_EVENTS])


def _say(module: TranslatorModule, asked: _Measured, others: Sequence[Contexts]) -> list[NDArray[np.float64]]:
    """The fields of `_Said` after ``user``."""
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


def _nats(difference: NDArray[np.float64], user: NDArray[np.int32], rng: np.random.Generator) -> Nats:
    users, place = np.unique(user, return_inverse=True)
    if not len(users):
        return Nats(0.0, 0.0, 0.0)
    total, events = np.bincount(place, difference), np.bincount(place)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = rng.integers(0, len(users), len(users))
        means[number] = total[chosen].sum() / events[chosen].sum()
    low, high = np.quantile(means, (0.005, 0.995))
    return Nats(float(difference.mean()), float(low), float(high))
