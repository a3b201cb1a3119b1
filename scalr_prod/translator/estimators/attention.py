# SPDX-License-Identifier: Apache-2.0
"""One block of attention over a user's source events: the sequential estimator's body.

Every event attends to those up to it, with a bias that depends on the time between the two (as in T5 and HSTU, so that one pass gives
a state for every event of a user), then a feed-forward layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from scalr_prod.translator.estimators.kernels import kernels

if TYPE_CHECKING:
    from scalr_prod.translator.estimators.kernels import Kernels
    from scalr_prod.translator.pairs import Parameters

__all__ = ["initial", "last_state", "states"]

#: Share of the earlier events that training hides from each event.
DROPPED_EVENTS: Final = 0.2
#: Upper limits of the classes of time between two events, in days: an hour, two, four … 30 years.
LIMITS_DAYS: Final = tuple(2**power / 24 for power in range(19))


def initial(dim: int, generator: torch.Generator) -> Parameters:
    """Weights of the block, float32, to start from; its feed-forward layer adds nothing yet."""
    heads = next(count for count in (4, 2, 1) if dim % count == 0)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[0] ** -0.5

    return {
        "query": small(dim, dim),
        "key": small(dim, dim),
        "value": torch.eye(dim),
        "age_bias": torch.zeros(heads, len(LIMITS_DAYS) + 1),
        "norm_weight": torch.ones(dim),
        "widen": small(dim, 2 * dim),
        "narrow": torch.zeros(2 * dim, dim),
    }


def states(p: Parameters, items: torch.Tensor, days: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """The state after every event of W windows.

    Args:
        p: The parameters; ``source`` [n_source + 1, d] holds the events' vectors.
        items: int64 [W, L]. Source vocabulary indices; 0 where there is no event.
        days: float32 [W, L]. When each event happened.
        generator: Of the events to hide in training; None hides none.

    Returns:
        [W, L, d].
    """
    known, length = items > 0, items.shape[1]
    seen = known[:, None].expand(-1, length, -1)
    if generator is not None:
        kept = torch.rand(items.shape, generator=generator) >= DROPPED_EVENTS
        seen = seen & (kept[:, None] | torch.eye(length, dtype=torch.bool))
    seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    x = functional.embedding(items, p["source"])
    heads = len(p["age_bias"])
    normed = functional.layer_norm(x, x.shape[-1:], p["norm_weight"])
    q, k, v = (_split(part, heads) for part in (normed @ p["query"], normed @ p["key"], x @ p["value"]))
    logits = _biased(p, q @ k.mT, days, seen)
    return _fed_forward(p, (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def last_state(p: Parameters, items: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
    """The state after the last event of B histories.

    One event asks: its query is folded into the keys' matrix, and values are mixed before they meet theirs.

    Args:
        p: The parameters; all but ``source`` in float64.
        items: int64 [B, L]. Source vocabulary indices; 0 where there is no event.
        ages: [B, L]. Days from each event to the last.

    Returns:
        float64 [B, d]; 0 where the history holds no known item.
    """
    known = items > 0
    x = p["source"][items].double()
    heads, dim = len(p["age_bias"]), x.shape[-1]
    normed = functional.layer_norm(x, (dim,), p["norm_weight"])
    query = (normed[:, -1] @ p["query"]).unflatten(-1, (heads, -1))
    asked = torch.einsum("bhc,dhc->bhd", query, p["key"].unflatten(-1, (heads, -1)))
    logits = asked @ normed.mT / query.shape[-1] ** 0.5 + _bias(p, ages)
    logits = logits.masked_fill(~known[:, None], torch.finfo(logits.dtype).min)
    mixed = torch.einsum("bhd,dhc->bhc", logits.softmax(-1) @ x, p["value"].unflatten(-1, (heads, -1))).flatten(1)
    return _fed_forward(p, mixed) * known.any(1, keepdim=True)


def _biased(p: Parameters, products: torch.Tensor, days: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Logits [W, heads, L, L] of the products of queries and keys, which are written over."""
    size = len(p["norm_weight"]) / len(p["age_bias"])
    compiled = kernels()
    if compiled is not None:
        logits: torch.Tensor = _Biased.apply(products, p["age_bias"], days, seen, size**0.5, compiled)
        return logits
    ages = (days[:, :, None] - days[:, None]).clamp(min=0)
    logits = products.div_(size**0.5).add_(_bias(p, ages))
    return logits.masked_fill_(~seen[:, None], torch.finfo(logits.dtype).min)


class _Biased(torch.autograd.Function):
    """What `_biased` says, by `fused.ages`."""

    @staticmethod
    def forward(
        ctx: Any,
        products: torch.Tensor,
        bias: torch.Tensor,
        days: torch.Tensor,
        seen: torch.Tensor,
        scale: float,
        compiled: Kernels,
    ) -> torch.Tensor:
        ctx.mark_dirty(products)
        ctx.scale, ctx.compiled, ctx.shape = np.float32(scale), compiled, bias.shape
        ctx.classes = np.empty(seen.shape, np.uint8)
        told = (x.detach().contiguous().numpy() for x in (days, seen, bias))
        compiled.biased(products.detach().numpy(), *told, np.array(LIMITS_DAYS, np.float32), ctx.scale, ctx.classes)
        return products

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        of_products, of_bias = torch.empty(gradient.shape), torch.zeros(ctx.shape)
        out = of_products.numpy(), of_bias.numpy()
        ctx.compiled.gradients(gradient.contiguous().numpy(), ctx.classes, ctx.scale, *out)
        return of_products, of_bias, None, None, None, None


def _bias(p: Parameters, ages: torch.Tensor) -> torch.Tensor:
    """[B, heads, ...] of ages [B, ...]."""
    limits = torch.tensor(LIMITS_DAYS, device=ages.device)
    return p["age_bias"][:, torch.bucketize(ages, limits)].transpose(0, 1)


def _fed_forward(p: Parameters, mixed: torch.Tensor) -> torch.Tensor:
    hidden = functional.gelu(functional.layer_norm(mixed, mixed.shape[-1:]) @ p["widen"])
    return mixed + hidden @ p["narrow"]


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
