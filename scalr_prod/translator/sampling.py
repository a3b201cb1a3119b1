# SPDX-License-Identifier: Apache-2.0
"""Sampling: Gumbel top-k with float64 tie resolution. All draws of the translator are made here or in the executors of `kernels`.

This is the reference in plain torch, and the fallback where the executors do not run. Both draw the same items.

Every eligible item has the key P^(1 / T) / E, with E from `counter_rng`; the items with the k largest keys are the draws, in that order.
Keys are computed in float32 over the whole catalogue, and `Mixture.rounding_bound` bounds their error. The items with the largest keys, a
few more than k, are the candidates. If the keys of two adjacent candidates differ by less than the bound, all candidates' keys are
computed again in float64. If rounding may have kept a draw out of the candidates, or may decide whether a draw passes ``min_lift``, the
row is marked in `Draws.needs_float64`; `TranslatorModule.sample` then draws all of it again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from scalr_prod.translator import counter_rng
from scalr_prod.translator.data.contexts import NO_ITEM
from scalr_prod.translator.estimators.dot_products import UNIT_ROUNDOFF

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.requests import SampleRequest
    from scalr_prod.translator.shortlist import ShortlistIndex


#: Candidates beyond the k + 1 best that are compared again in float64.
EXTRA_CANDIDATES: Final = 7
#: Largest relative rounding error of a key computed from a logit (exponential, random variate, powers, division), without that of log P.
_STEPS: Final = 32 * UNIT_ROUNDOFF
#: The same with that of log P, for P of at least 2^-100.
_ALL_STEPS: Final = 102 * UNIT_ROUNDOFF
#: Probabilities below this lose precision or underflow in float32.
_TINY: Final = 2.0**-100
#: Upper bound of the key of such a probability, for the smallest possible variate.
_TINY_KEY: Final = 2.0**-67


@dataclass(frozen=True)
class Draws:
    """K draws (fewer columns if there are fewer items) for each of B contexts.

    Attributes:
        items: int64 [B, K]. `NO_ITEM` where no item was left, or the draw fell below ``min_lift``.
        probabilities: [B, K].
        prior: [B, K].
        needs_float64: bool [B]. Rows whose result rounding may have changed.
    """

    items: torch.Tensor
    probabilities: torch.Tensor
    prior: torch.Tensor
    needs_float64: torch.Tensor


class CandidateScores(NamedTuple):
    """Probabilities of C given candidates for each of B contexts.

    Attributes:
        probabilities: float32 [B, C]. 0 where the candidate is ineligible.
        prior: float32 [B, C].
        is_inexact: bool [B]. Contexts to score again by the reference.
    """

    probabilities: NDArray[np.float32]
    prior: NDArray[np.float32]
    is_inexact: NDArray[np.bool_]


def sample_topk(
    request: SampleRequest,
    mixture: Mixture,
    contexts: Contexts,
    batch: ContextBatch,
    item_words: torch.Tensor,
    dtype: Any,
    shortlists: ShortlistIndex | None = None,
) -> Draws:
    """Draw k items for each context of a batch.

    Args:
        request: Parameters of the draw.
        mixture: The parameter set.
        contexts: B contexts.
        batch: The same contexts as tensors.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
        dtype: float32, or float64, which marks no row as `Draws.needs_float64`.
        shortlists: Index of the shortlists; None: draw among all items.
    """
    device = item_words.device
    encoded = mixture.encode(batch, request.components)
    share: dict[str, torch.Tensor] = {}
    if shortlists is not None and request.shortlist is not None:
        encoded, share = shortlists.restrict(mixture, encoded, request)
    distributions = mixture.distributions(encoded, dtype=dtype)
    p, prior = distributions[request.component], distributions["popularity"]
    low, high = (word.to(device) for word in counter_rng.key_words(contexts.noise_key))
    keys = _keys(p, counter_rng.exponential((low, high), item_words, dtype), request.temperature)
    best, chosen = keys.topk(min(request.k + 1 + EXTRA_CANDIDATES, keys.shape[1]), dim=1)
    needs_float64 = torch.zeros(len(best), dtype=torch.bool, device=device)
    if dtype == torch.float32:
        needs_float64 |= _underflowed(request, best, p, encoded.batch)
        needs_float64 |= _sort_exactly(request, mixture, encoded, p, (best, chosen), (low, high), item_words)
    valid, chosen = best[:, : request.k] > 0, chosen[:, : request.k]
    p, q = (torch.where(valid, table.gather(1, chosen), 0) for table in (p, prior))
    p, q = rescale_to_catalogue(request, share, p, q)
    if dtype == torch.float32:
        needs_float64 |= is_near_min_lift(request, mixture, encoded, valid, chosen, p, q)
    return Draws(torch.where(valid & (p >= request.min_lift * q), chosen, NO_ITEM), p, q, needs_float64)


def rescale_to_catalogue(
    request: SampleRequest, catalogue_share: dict[str, torch.Tensor], p: torch.Tensor, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale P and the prior, [B, K], from shortlists to the whole catalogue; returns them unchanged without shortlists."""
    if not catalogue_share:
        return p, prior
    component_share, prior_share = (catalogue_share[name].to(p)[:, None] for name in (request.component, "popularity"))
    return p * component_share, prior * prior_share


def is_near_min_lift(
    request: SampleRequest,
    mixture: Mixture,
    encoded: EncodedBatch,
    valid: torch.Tensor,
    chosen: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
) -> torch.Tensor:
    """Mark rows where rounding may decide whether P of a valid draw [B, K] reaches ``min_lift`` times the prior: bool [B]."""
    if request.min_lift == 0 or request.component == "popularity":
        return torch.zeros(len(valid), dtype=torch.bool, device=valid.device)
    excess = (p - request.min_lift * q).abs()
    # A normaliser's relative error is at most that of its terms.
    max_bound = sum(2 * mixture.rounding_bound(encoded, component) for component in request.components)
    near = (valid & (excess <= (max_bound + 4 * _ALL_STEPS) * p)).any(1)
    rows = near.nonzero()[:, 0]
    if len(rows):
        subset, items = encoded.take(rows), chosen[rows]
        bound = sum(
            mixture.rounding_bound(subset, component) + mixture.rounding_bound(subset, component, items)
            for component in request.components
        )
        near[rows] = (valid[rows] & (excess[rows] <= (bound + 4 * _ALL_STEPS) * p[rows])).any(1)
    return near


def _keys(p: torch.Tensor, variates: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return keys in the order of P^(1 / T) / E, in a form that neither overflows nor vanishes; may overwrite ``variates``."""
    if temperature > 1:
        return p.pow(1 / temperature) / variates
    return p / (variates if temperature == 1 else variates.pow_(temperature))


def _underflowed(request: SampleRequest, best: torch.Tensor, p: torch.Tensor, batch: ContextBatch) -> torch.Tensor:
    """Mark rows where a probability too small for float32 may have mattered: bool [B]."""
    floor = _TINY_KEY if request.temperature <= 1 else torch.inf
    is_tiny = best[:, : request.k][:, -1] <= floor
    rows = is_tiny.nonzero()[:, 0]
    is_tiny[rows] = (~batch.take(rows).ineligible_mask(p.shape[1]) & (p[rows] < _TINY)).any(1)
    return is_tiny


def _sort_exactly(
    request: SampleRequest,
    mixture: Mixture,
    encoded: EncodedBatch,
    p: torch.Tensor,
    ranking: tuple[torch.Tensor, torch.Tensor],
    words: tuple[torch.Tensor, torch.Tensor],
    item_words: torch.Tensor,
) -> torch.Tensor:
    """Sort the best by their keys in float64, in place, where rounding may have changed the order.

    Returns:
        bool [B]. Rows where rounding may have changed which items are among the best.
    """
    best, chosen = ranking
    depth = p.gather(1, chosen).clamp(min=_TINY).log().neg()
    error = 1.01 * (mixture.rounding_bound(encoded, request.component, chosen) + _STEPS + UNIT_ROUNDOFF * depth)
    lower, upper = best * (1 - error), best * (1 + error)
    # For each position, the largest upper bound at this or a later one.
    reach = torch.where(best > 0, upper, -1.0).flip(1).cummax(1).values.flip(1)
    close = (reach[:, 1:] >= lower[:, :-1])[:, : request.k].any(1)
    rows = close.nonzero()[:, 0]
    if len(rows):
        order = float64_order(request, mixture, encoded, rows, (chosen[rows], best[rows] > 0), words, item_words)
        chosen[rows] = chosen[rows].gather(1, order)
    others = best[:, -1] * (1 + 1.01 * (mixture.rounding_bound(encoded, request.component)[:, 0] + _ALL_STEPS))
    beyond = (others >= lower[:, : request.k].amin(1)) & (best[:, -1] > 0)
    return beyond & (best.shape[1] < len(item_words))


def float64_order(
    request: SampleRequest,
    mixture: Mixture,
    encoded: EncodedBatch,
    rows: torch.Tensor,
    candidates: tuple[torch.Tensor, torch.Tensor],
    words: tuple[torch.Tensor, torch.Tensor],
    item_words: torch.Tensor,
) -> torch.Tensor:
    """Return the order of candidates' keys in float64, absent ones last: int64 [R, C].

    Args:
        request: Parameters of the draw.
        mixture: The parameter set.
        encoded: Of B contexts.
        rows: int64 [R]. Rows to sort.
        candidates: int64 [R, C] items, and bool [R, C], whether each is present.
        words: Words of the contexts' keys, see `counter_rng.key_words`.
        item_words: Hash words of the items' ids.
    """
    items, present = candidates
    logits = mixture.logits(encoded.take(rows), request.component, items)
    variates = counter_rng.exponential((words[0][rows], words[1][rows]), item_words[items], torch.float64).log_()
    exact = logits / max(request.temperature, 1) - min(request.temperature, 1) * variates
    return exact.masked_fill_(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
