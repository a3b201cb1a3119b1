# SPDX-License-Identifier: Apache-2.0
"""One attention block over a user's source events: the body of the sequential estimator.

Each event attends to itself and earlier events, with a bias by the time between the two (as in T5 and HSTU), followed by a feed-forward
layer. Because the bias is relative, one pass gives a state for every event of a user.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from scalr_prod.translator.devices import to_device
from scalr_prod.translator.estimators.compiled_kernels import load_kernels

if TYPE_CHECKING:
    from scalr_prod.translator.data.training_pairs import Parameters
    from scalr_prod.translator.estimators.compiled_kernels import TrainingKernels


#: Fraction of earlier events hidden from attention in training.
EVENT_DROPOUT: Final = 0.2
#: Upper limits of the age classes of the attention bias, in days: one hour, two, four … 30 years.
AGE_LIMITS_DAYS: Final = tuple(2**power / 24 for power in range(19))


def initial_weights(dim: int, generator: torch.Generator) -> Parameters:
    """Return initial weights of the block, float32. The feed-forward layer starts at zero."""
    heads = next(count for count in (4, 2, 1) if dim % count == 0)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[0] ** -0.5

    return {
        "query": small(dim, dim),
        "key": small(dim, dim),
        "value": torch.eye(dim),
        "age_bias": torch.zeros(heads, len(AGE_LIMITS_DAYS) + 1),
        "norm_weight": torch.ones(dim),
        "widen": small(dim, 2 * dim),
        "narrow": torch.zeros(2 * dim, dim),
    }


def window_states(
    p: Parameters,
    items: torch.Tensor,
    days: torch.Tensor,
    positions: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Compute the states after P events of W windows.

    Args:
        p: The parameters, float32, on the same device as the inputs; ``source`` [n_source + 1, d] holds the item vectors.
        items: int64 [W, L]. Source vocabulary indices; 0 is padding.
        days: float32 [W, L]. Time of each event, in days.
        positions: int64 [P] each. Window and position of each event.
        generator: Random generator on the CPU for the events to hide in training; None hides none.

    Returns:
        float32 [P, d]; 0 at padding.
    """
    visible = items > 0
    if generator is not None:
        visible &= to_device(torch.rand(items.shape, generator=generator) >= EVENT_DROPOUT, items.device)
    compiled = load_kernels() if items.device.type == "cpu" else None
    row, position = positions
    is_event = items[row, position] > 0
    if compiled is None:
        return reference_states(p, items, days, visible)[row, position] * is_event[:, None]
    if is_event.all():
        return _ragged_states(p, items, days, visible, positions, compiled)
    known = is_event.nonzero()[:, 0]
    states = _ragged_states(p, items, days, visible, (row[known], position[known]), compiled)
    return torch.zeros(len(row), states.shape[1]).index_copy(0, known, states)


def reference_states(p: Parameters, items: torch.Tensor, days: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Compute the states after all events by tensor operations: the reference for the compiled code, and the fallback without it.

    Args:
        p: As in `window_states`.
        items: As in `window_states`.
        days: As in `window_states`.
        visible: bool [W, L]. Whether later events attend to an event.

    Returns:
        float32 [W, L, d]; undefined at padding.
    """
    known, length = items > 0, items.shape[1]
    seen = known[:, None] & (visible[:, None] | torch.eye(length, dtype=torch.bool, device=items.device))
    seen = seen & torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
    x = functional.embedding(items, p["source"])
    heads = len(p["age_bias"])
    normed = functional.layer_norm(x, x.shape[-1:], p["norm_weight"])
    q, k, v = (_split(part, heads) for part in (normed @ p["query"], normed @ p["key"], x @ p["value"]))
    ages = (days[:, :, None] - days[:, None]).clamp(min=0)
    logits = q @ k.mT / (x.shape[-1] / heads) ** 0.5 + _bias(p, ages)
    logits = logits.masked_fill(~seen[:, None], torch.finfo(logits.dtype).min)
    return _feed_forward(p, (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _ragged_states(
    p: Parameters,
    items: torch.Tensor,
    days: torch.Tensor,
    visible: torch.Tensor,
    positions: tuple[torch.Tensor, torch.Tensor],
    compiled: TrainingKernels,
) -> torch.Tensor:
    """Compute the states [P, d] after events that are no padding, from all windows' events concatenated without padding."""
    known = items > 0
    row, position = positions
    before = (known.flatten().cumsum(0) - known.flatten().long()).view(items.shape)
    first, last = before[row, 0], before[row, position]
    pairs = (last - first + 1).cumsum(0)
    x = functional.embedding(items[known], p["source"])
    size = x.shape[-1] // len(p["age_bias"])
    normed = functional.layer_norm(x, x.shape[-1:], p["norm_weight"])
    query = normed.index_select(0, last) @ (p["query"] / size**0.5)
    events = days[known].numpy(), visible[known].numpy()
    spans = first.numpy(), last.numpy(), (pairs - (last - first + 1)).numpy()
    constants = (events, spans, int(pairs[-1]) if len(pairs) else 0, compiled)
    mixed: torch.Tensor = _RaggedAttention.apply(query, normed @ p["key"], x @ p["value"], p["age_bias"], constants)
    return _feed_forward(p, mixed)


class _RaggedAttention(torch.autograd.Function):
    """Attention with an age bias over concatenated windows, see `kernels.attention`."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, constants: tuple[Any, ...]
    ) -> torch.Tensor:
        events, spans, pairs, compiled = constants
        query_key_value = tuple(x.detach().numpy() for x in (query, key, value))
        out = torch.empty(query.shape)
        classes, weights = np.empty(pairs, np.uint8), np.empty(pairs * len(bias), np.float32)
        limits = np.array(AGE_LIMITS_DAYS, np.float32)
        compiled.attention_forward(query_key_value, bias.detach().numpy(), events, spans, limits, classes, weights, out.numpy())
        ctx.saved = query_key_value, spans, classes, weights, bias.shape, compiled
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query_key_value, spans, classes, weights, shape, compiled = ctx.saved
        gradients, bias_gradient = [torch.zeros(x.shape) for x in query_key_value], torch.zeros(shape)
        arrays = tuple(x.numpy() for x in gradients)
        compiled.attention_backward(
            gradient.contiguous().numpy(), query_key_value, spans, classes, weights, arrays, bias_gradient.numpy()
        )
        return *gradients, bias_gradient, None


def last_state(p: Parameters, items: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
    """Compute the state after the last event of B histories.

    There is a single query: it is folded into the key matrix, and inputs are averaged before the value matrix is applied.

    Args:
        p: The parameters; all but ``source`` in float64.
        items: int64 [B, L]. Source vocabulary indices; 0 is padding.
        ages: [B, L]. Days from each event to the last.

    Returns:
        float64 [B, d]; 0 if the history holds no known item.
    """
    known = items > 0
    x = p["source"][items].double()
    heads, dim = len(p["age_bias"]), x.shape[-1]
    normed = functional.layer_norm(x, (dim,), p["norm_weight"])
    query = (normed[:, -1] @ p["query"]).unflatten(-1, (heads, -1))
    folded = torch.einsum("bhc,dhc->bhd", query, p["key"].unflatten(-1, (heads, -1)))
    logits = folded @ normed.mT / query.shape[-1] ** 0.5 + _bias(p, ages)
    logits = logits.masked_fill(~known[:, None], torch.finfo(logits.dtype).min)
    mixed = torch.einsum("bhd,dhc->bhc", logits.softmax(-1) @ x, p["value"].unflatten(-1, (heads, -1))).flatten(1)
    return _feed_forward(p, mixed) * known.any(1, keepdim=True)


def _bias(p: Parameters, ages: torch.Tensor) -> torch.Tensor:
    """Look up the attention bias [B, heads, ...] of ages [B, ...]."""
    classes = torch.bucketize(ages, _limits(ages.device))
    # No indexing: on a GPU its gradient would add up the many events of one class sequentially.
    return functional.embedding(classes, p["age_bias"].T).movedim(-1, 1)


@cache
def _limits(device: torch.device) -> torch.Tensor:
    return torch.tensor(AGE_LIMITS_DAYS).to(device)


def _feed_forward(p: Parameters, mixed: torch.Tensor) -> torch.Tensor:
    hidden = functional.gelu(functional.layer_norm(mixed, mixed.shape[-1:]) @ p["widen"])
    return mixed + hidden @ p["narrow"]


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
