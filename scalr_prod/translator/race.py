# SPDX-License-Identifier: Apache-2.0
"""The exponential race that draws items, decided as exact arithmetic would decide it.

Every eligible item runs with the key P^(1 / T) / E, E from `noise`; the k largest keys are the draws, in their order. The race is run in
float32 over the whole catalogue, and `Mixture.rounding` bounds how far rounding may have moved a key. Where two neighbours among the
best are nearer than that, the keys of the best alone are worked out again in float64; where that cannot settle it (the bound reaches
beyond them, or a probability and its limit are too near), the row is unsure and has to be drawn in float64 as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator import noise
from scalr_prod.translator.contexts import NO_ITEM
from scalr_prod.translator.estimators.products import UNIT

if TYPE_CHECKING:
    from scalr_prod.translator.batch import Batch
    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.mixture import Mixture, Summary
    from scalr_prod.translator.shortlist import Shortlists

__all__ = ["SPARE", "Draws", "Race", "exact_order", "near_limit", "of_the_whole", "run"]

#: Candidates beyond the k + 1 best that are looked at again with them.
SPARE: Final = 7
#: What the steps from a logit to its key add to rounding, beside a unit of the logarithm of P: exponential, variate, powers, quotients.
_STEPS: Final = 32 * UNIT
#: The same with that of a P that counts, 2^-100 at the least.
_ALL_STEPS: Final = 102 * UNIT
#: A probability below 2^-100 loses digits in float32, or is 0; over the smallest variate its key is below 2^-67.
_TINY: Final = 2.0**-100
_TINY_KEY: Final = 2.0**-67


@dataclass(frozen=True)
class Race:
    """What is drawn, see `TranslatorModule.sample`."""

    k: int
    temperature: float
    min_lift: float
    member: str
    #: Items that are scored for a context; None: all.
    shortlist: int | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Whose distributions it needs."""
        return tuple(dict.fromkeys(("popularity", self.member)))


@dataclass(frozen=True)
class Draws:
    """K draws (fewer columns where there are fewer items) for each of B contexts.

    Attributes:
        items: int64 [B, K]. `NO_ITEM` where nothing was left, or the draw fell below ``min_lift``.
        probabilities: [B, K].
        prior: [B, K].
        unsure: bool [B]. Where rounding may have decided something.
    """

    items: torch.Tensor
    probabilities: torch.Tensor
    prior: torch.Tensor
    unsure: torch.Tensor


def run(
    race: Race,
    mixture: Mixture,
    contexts: Contexts,
    batch: Batch,
    numbers: torch.Tensor,
    dtype: Any,
    lists: Shortlists | None = None,
) -> Draws:
    """Draw for a batch.

    Args:
        race: What to draw.
        mixture: The parameter set.
        contexts: B of them.
        batch: The same on the device.
        numbers: int32 [N], the items' words for `noise`.
        dtype: float32, or float64, which is never unsure.
        lists: Where the race has a shortlist.
    """
    device = numbers.device
    summary = mixture.summary(batch, race.members)
    share: dict[str, torch.Tensor] = {}
    if lists is not None and race.shortlist is not None:
        summary, share = lists.shortened(mixture, summary, race)
    found = mixture.distributions(summary, dtype=dtype)
    p, prior = found[race.member], found["popularity"]
    low, high = (word.to(device) for word in noise.key_words(contexts.noise_key))
    keys = _keys(p, noise.exponential((low, high), numbers, dtype), race.temperature)
    best, chosen = keys.topk(min(race.k + 1 + SPARE, keys.shape[1]), dim=1)
    unsure = torch.zeros(len(best), dtype=torch.bool, device=device)
    if dtype == torch.float32:
        unsure |= _lost(race, best, p, summary.batch)
        unsure |= _settle(race, mixture, summary, p, (best, chosen), (low, high), numbers)
    there, chosen = best[:, : race.k] > 0, chosen[:, : race.k]
    p, q = (torch.where(there, of_all.gather(1, chosen), 0) for of_all in (p, prior))
    p, q = of_the_whole(race, share, p, q)
    if dtype == torch.float32:
        unsure |= near_limit(race, mixture, summary, there, chosen, p, q)
    return Draws(torch.where(there & (p >= race.min_lift * q), chosen, NO_ITEM), p, q, unsure)


def of_the_whole(
    race: Race, share: dict[str, torch.Tensor], p: torch.Tensor, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """P and the prior, [B, K], of shortlists as shares of the whole catalogue, see `shortlist.Lists`; nothing is changed without."""
    if not share:
        return p, prior
    of_member, of_prior = (share[name].to(p)[:, None] for name in (race.member, "popularity"))
    return p * of_member, prior * of_prior


def near_limit(
    race: Race,
    mixture: Mixture,
    summary: Summary,
    there: torch.Tensor,
    chosen: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
) -> torch.Tensor:
    """Rows in which rounding may have decided whether P, of what is there [B, K], reaches ``min_lift`` times the prior: bool [B]."""
    if race.min_lift == 0 or race.member == "popularity":
        return torch.zeros(len(there), dtype=torch.bool, device=there.device)
    excess = (p - race.min_lift * q).abs()
    # A normaliser is off by no more than what it sums.
    widest = sum(2 * mixture.rounding(summary, member) for member in race.members)
    near = (there & (excess <= (widest + 4 * _ALL_STEPS) * p)).any(1)
    rows = near.nonzero()[:, 0]
    if len(rows):
        some, items = summary.take(rows), chosen[rows]
        band = sum(mixture.rounding(some, member) + mixture.rounding(some, member, items) for member in race.members)
        near[rows] = (there[rows] & (excess[rows] <= (band + 4 * _ALL_STEPS) * p[rows])).any(1)
    return near


def _keys(p: torch.Tensor, variates: torch.Tensor, temperature: float) -> torch.Tensor:
    """The order of P^(1 / T) / E, in the form whose powers neither overflow nor vanish; ``variates`` may be overwritten."""
    if temperature > 1:
        return p.pow(1 / temperature) / variates
    return p / (variates if temperature == 1 else variates.pow_(temperature))


def _lost(race: Race, best: torch.Tensor, p: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Rows in which a probability that float32 cannot hold may have mattered: bool [B]."""
    floor = _TINY_KEY if race.temperature <= 1 else torch.inf
    lost = best[:, : race.k][:, -1] <= floor
    rows = lost.nonzero()[:, 0]
    lost[rows] = (~batch.take(rows).hidden(p.shape[1]) & (p[rows] < _TINY)).any(1)
    return lost


def _settle(
    race: Race,
    mixture: Mixture,
    summary: Summary,
    p: torch.Tensor,
    ranking: tuple[torch.Tensor, torch.Tensor],
    words: tuple[torch.Tensor, torch.Tensor],
    numbers: torch.Tensor,
) -> torch.Tensor:
    """Put the best in the order of their keys in float64, in place, where rounding may have decided it.

    Returns:
        bool [B]. Rows in which it may have decided who is among the best.
    """
    best, chosen = ranking
    depth = p.gather(1, chosen).clamp(min=_TINY).log().neg()
    off = 1.01 * (mixture.rounding(summary, race.member, chosen) + _STEPS + UNIT * depth)
    least, most = best * (1 - off), best * (1 + off)
    reach = torch.where(best > 0, most, -1.0).flip(1).cummax(1).values.flip(1)  # of this and all that follow
    close = (reach[:, 1:] >= least[:, :-1])[:, : race.k].any(1)
    rows = close.nonzero()[:, 0]
    if len(rows):
        order = exact_order(race, mixture, summary, rows, (chosen[rows], best[rows] > 0), words, numbers)
        chosen[rows] = chosen[rows].gather(1, order)
    others = best[:, -1] * (1 + 1.01 * (mixture.rounding(summary, race.member)[:, 0] + _ALL_STEPS))
    beyond = (others >= least[:, : race.k].amin(1)) & (best[:, -1] > 0)
    return beyond & (best.shape[1] < len(numbers))


def exact_order(
    race: Race,
    mixture: Mixture,
    summary: Summary,
    rows: torch.Tensor,
    candidates: tuple[torch.Tensor, torch.Tensor],
    words: tuple[torch.Tensor, torch.Tensor],
    numbers: torch.Tensor,
) -> torch.Tensor:
    """The order of candidates' keys in float64, what is not there last: int64 [R, C].

    Args:
        race: What is drawn.
        mixture: The parameter set.
        summary: Of B contexts.
        rows: int64 [R]. Which of them.
        candidates: int64 [R, C] items, and bool [R, C], which of these are there.
        words: Of the contexts' keys, see `noise.key_words`.
        numbers: The items' words.
    """
    items, there = candidates
    logits = mixture.logits(summary.take(rows), race.member, items)
    variates = noise.exponential((words[0][rows], words[1][rows]), numbers[items], torch.float64).log_()
    exact = logits / max(race.temperature, 1) - min(race.temperature, 1) * variates
    return exact.masked_fill_(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
