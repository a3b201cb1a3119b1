# SPDX-License-Identifier: Apache-2.0
"""Gumbel top-k sampling with float64 tie resolution.

Every eligible item has the key P^(1 / T) / E, with E from `noise`; the items with the k largest keys are the draws, in that order. Keys
are computed in float32 over the whole catalogue, and `Mixture.rounding` bounds their error. Where two neighbours among the best are closer
than that, the keys of the best are computed again in float64. Where that cannot decide (the bound reaches beyond the best, or a
probability and its limit are too close), the row is unsure and must be drawn in float64 as a whole.
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
    from scalr_prod.translator.sample_request import Race
    from scalr_prod.translator.shortlist import Shortlists

__all__ = ["SPARE", "Draws", "exact_order", "near_limit", "of_the_whole", "run"]

#: Candidates beyond the k + 1 best that are compared again in float64.
SPARE: Final = 7
#: Rounding error of the steps from a logit to its key, without that of the logarithm of P: exponential, variate, powers, quotients.
_STEPS: Final = 32 * UNIT
#: The same including the logarithm of P, for P of at least 2^-100.
_ALL_STEPS: Final = 102 * UNIT
#: Below 2^-100 a probability loses digits in float32, or is 0; even with the smallest variate its key is below 2^-67.
_TINY: Final = 2.0**-100
_TINY_KEY: Final = 2.0**-67


@dataclass(frozen=True)
class Draws:
    """K draws (fewer columns where there are fewer items) for each of B contexts.

    Attributes:
        items: int64 [B, K]. `NO_ITEM` where no item was left, or the draw fell below ``min_lift``.
        probabilities: [B, K].
        prior: [B, K].
        unsure: bool [B]. Rows whose result rounding may have changed.
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
    """Draw k items for each context of a batch.

    Args:
        race: Parameters of the draw.
        mixture: The parameter set.
        contexts: B of them.
        batch: The same contexts as tensors.
        numbers: int32 [N], the items' words for `noise`.
        dtype: float32, or float64, with which no row is unsure.
        lists: Shortlists, where the draw uses them.
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
        unsure |= _underflowed(race, best, p, summary.batch)
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
    """Scale P and the prior, [B, K], from shortlists to the whole catalogue, see `shortlist.Lists`; a no-op without shortlists."""
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
    """Mark rows where rounding may decide whether P of a valid draw [B, K] reaches ``min_lift`` times the prior: bool [B]."""
    if race.min_lift == 0 or race.member == "popularity":
        return torch.zeros(len(there), dtype=torch.bool, device=there.device)
    excess = (p - race.min_lift * q).abs()
    # A normaliser's relative error is at most that of its terms.
    widest = sum(2 * mixture.rounding(summary, member) for member in race.members)
    near = (there & (excess <= (widest + 4 * _ALL_STEPS) * p)).any(1)
    rows = near.nonzero()[:, 0]
    if len(rows):
        some, items = summary.take(rows), chosen[rows]
        band = sum(mixture.rounding(some, member) + mixture.rounding(some, member, items) for member in race.members)
        near[rows] = (there[rows] & (excess[rows] <= (band + 4 * _ALL_STEPS) * p[rows])).any(1)
    return near


def _keys(p: torch.Tensor, variates: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return keys in the order of P^(1 / T) / E, in a form that neither overflows nor vanishes; may overwrite ``variates``."""
    if temperature > 1:
        return p.pow(1 / temperature) / variates
    return p / (variates if temperature == 1 else variates.pow_(temperature))


def _underflowed(race: Race, best: torch.Tensor, p: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mark rows where a probability too small for float32 may have mattered: bool [B]."""
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
    """Sort the best by their keys in float64, in place, where rounding may have changed the order.

    Returns:
        bool [B]. Rows where rounding may have changed which items are among the best.
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
    """Return the order of candidates' keys in float64, absent ones last: int64 [R, C].

    Args:
        race: Parameters of the draw.
        mixture: The parameter set.
        summary: Of B contexts.
        rows: int64 [R]. Rows to sort.
        candidates: int64 [R, C] items, and bool [R, C], whether each is present.
        words: Words of the contexts' keys, see `noise.key_words`.
        numbers: The items' words.
    """
    items, there = candidates
    logits = mixture.logits(summary.take(rows), race.member, items)
    variates = noise.exponential((words[0][rows], words[1][rows]), numbers[items], torch.float64).log_()
    exact = logits / max(race.temperature, 1) - min(race.temperature, 1) * variates
    return exact.masked_fill_(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
