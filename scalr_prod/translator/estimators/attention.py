# SPDX-License-Identifier: Apache-2.0
"""One block of attention over a user's source events: the sequential estimator's body.

Every event attends to those up to it, with a bias that depends on the time between the two (as in T5 and HSTU, so that one pass gives
a state for every event of a user), then a feed-forward layer.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from scalr_prod.translator.devices import sent
from scalr_prod.translator.estimators.kernels import kernels

if TYPE_CHECKING:
    from scalr_prod.translator.estimators.kernels import Kernels
    from scalr_prod.translator.pairs import Parameters

__all__ = ["initial", "last_state", "plain_states", "states"]

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


def states(
    p: Parameters,
    items: torch.Tensor,
    days: torch.Tensor,
    asked: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The states after P events of W windows.

    Args:
        p: The parameters, float32, all on one device, as the rest; ``source`` [n_source + 1, d] holds the events' vectors.
        items: int64 [W, L]. Source vocabulary indices; 0 where there is no event.
        days: float32 [W, L]. When each event happened.
        asked: int64 [P] each. Windows and places of the events.
        generator: Of the events to hide in training, on the CPU; None hides none.

    Returns:
        float32 [P, d]; 0 where there is no event.
    """
    kept = items > 0
    if generator is not None:
        kept &= sent(torch.rand(items.shape, generator=generator) >= DROPPED_EVENTS, items.device)
    compiled = kernels() if items.device.type == "cpu" else None
    row, place = asked
    there = items[row, place] > 0
    if compiled is None:
        return plain_states(p, items, days, kept)[row, place] * there[:, None]
    if there.all():
        return _asked_states(p, items, days, kept, asked, compiled)
    known = there.nonzero()[:, 0]
    found = _asked_states(p, items, days, kept, (row[known], place[known]), compiled)
    return torch.zeros(len(row), found.shape[1]).index_copy(0, known, found)


def plain_states(p: Parameters, items: torch.Tensor, days: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The states after all events, by tensor operations alone: what compiled code is compared with, and what runs without it.

    Args:
        p: As in `states`, and so the next two.
        items: See there.
        days: See there.
        kept: bool [W, L]. Whether later events see an event.

    Returns:
        float32 [W, L, d]; anything where there is no event.
    """
    known, length = items > 0, items.shape[1]
    seen = known[:, None] & (kept[:, None] | torch.eye(length, dtype=torch.bool, device=items.device))
    seen = seen & torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    x = functional.embedding(items, p["source"])
    heads = len(p["age_bias"])
    normed = functional.layer_norm(x, x.shape[-1:], p["norm_weight"])
    q, k, v = (_split(part, heads) for part in (normed @ p["query"], normed @ p["key"], x @ p["value"]))
    ages = (days[:, :, None] - days[:, None]).clamp(min=0)
    logits = q @ k.mT / (x.shape[-1] / heads) ** 0.5 + _bias(p, ages)
    logits = logits.masked_fill(~seen[:, None], torch.finfo(logits.dtype).min)
    return _fed_forward(p, (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _asked_states(
    p: Parameters,
    items: torch.Tensor,
    days: torch.Tensor,
    kept: torch.Tensor,
    asked: tuple[torch.Tensor, torch.Tensor],
    compiled: Kernels,
) -> torch.Tensor:
    """The states after events that are there, [P, d]: all events stand one after another, without padding."""
    known = items > 0
    row, place = asked
    before = (known.flatten().cumsum(0) - known.flatten().long()).view(items.shape)
    first, last = before[row, 0], before[row, place]
    pairs = (last - first + 1).cumsum(0)
    x = functional.embedding(items[known], p["source"])
    size = x.shape[-1] // len(p["age_bias"])
    normed = functional.layer_norm(x, x.shape[-1:], p["norm_weight"])
    query = normed.index_select(0, last) @ (p["query"] / size**0.5)
    when = days[known].numpy(), kept[known].numpy()
    places = first.numpy(), last.numpy(), (pairs - (last - first + 1)).numpy()
    told = (when, places, int(pairs[-1]) if len(pairs) else 0, compiled)
    mixed: torch.Tensor = _Attended.apply(query, normed @ p["key"], x @ p["value"], p["age_bias"], told)
    return _fed_forward(p, mixed)


class _Attended(torch.autograd.Function):
    """Values mixed by softmax of queries · keys and bias by age, by `fused.attended`."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, told: tuple[Any, ...]
    ) -> torch.Tensor:
        when, places, pairs, compiled = told
        parts = tuple(x.detach().numpy() for x in (query, key, value))
        out = torch.empty(query.shape)
        classes, weights = np.empty(pairs, np.uint8), np.empty(pairs * len(bias), np.float32)
        limits = np.array(LIMITS_DAYS, np.float32)
        compiled.attended(parts, bias.detach().numpy(), when, places, limits, classes, weights, out.numpy())
        ctx.kept = parts, places, classes, weights, bias.shape, compiled
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        parts, places, classes, weights, shape, compiled = ctx.kept
        of_parts, of_bias = [torch.zeros(x.shape) for x in parts], torch.zeros(shape)
        found = tuple(x.numpy() for x in of_parts)
        compiled.gradients(gradient.contiguous().numpy(), parts, places, classes, weights, found, of_bias.numpy())
        return *of_parts, of_bias, None


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


def _bias(p: Parameters, ages: torch.Tensor) -> torch.Tensor:
    """[B, heads, ...] of ages [B, ...]."""
    classes = torch.bucketize(ages, _limits(ages.device))
    # Not by an index: on a GPU its gradient adds up events of one class one by one, and most are of a few.
    return functional.embedding(classes, p["age_bias"].T).movedim(-1, 1)


@cache
def _limits(device: torch.device) -> torch.Tensor:
    return torch.tensor(LIMITS_DAYS).to(device)


def _fed_forward(p: Parameters, mixed: torch.Tensor) -> torch.Tensor:
    hidden = functional.gelu(functional.layer_norm(mixed, mixed.shape[-1:]) @ p["widen"])
    return mixed + hidden @ p["narrow"]


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
