"""A causal transformer over the source history: its state after an event predicts the user's next target events.

One block: every event attends to those up to it, with a bias that depends on the time between the two (as in T5 and HSTU, so
that one pass gives a state for every event of a user), then a feed-forward layer. The score is the state's product with the
target items' vectors. Training maximises the likelihood of target events given the last source event before each, on top of
their popularity at that time: the state has to explain what popularity does not. It starts from the linear estimator: event vectors
are principal components of the source domain, target vectors ridge coefficients.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.estimators.products import products
from scalr_prod.translator.estimators.windows import Windows
from scalr_prod.translator.threads import heed_stop

if TYPE_CHECKING:
    from scalr_prod.translator.batch import Batch
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["fit", "score", "share", "user", "vectors"]

logger = logging.getLogger(__name__)

LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-2
DROPPED_EVENTS: Final = 0.2
NEGATIVES: Final = 1024
#: Of the popularity that training takes as given.
INSTANTS: Final = 256
#: Upper limits of the classes of time between two events, in days: an hour, two, four … 30 years.
LIMITS_DAYS: Final = tuple(2**power / 24 for power in range(19))


def share(pairs: Pairs) -> Parameters:
    """Nothing: every parameter depends on target events."""
    del pairs
    return {}


def fit(pairs: Pairs, shared: Parameters) -> Parameters:
    """Train for ``[translator] epochs``; see `_initial` for the tensors."""
    del shared
    settings = pairs.settings
    windows = Windows.of(pairs)
    generator = torch.Generator().manual_seed(settings.seed)
    parameters = {name: tensor.requires_grad_() for name, tensor in _initial(pairs, generator).items()}
    offsets = _Popularity(pairs)
    steps = max(1, windows.batches(settings.batch_size)) * settings.epochs
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
    for _ in range(settings.epochs):
        for window in windows.epoch(settings.batch_size, generator):
            heed_stop()
            loss = _loss(parameters, window, offsets, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {name: tensor.detach() for name, tensor in parameters.items()}


def user(parameters: Parameters, batch: Batch) -> torch.Tensor:
    """The state after the last event: float64 [B, d]; 0 where the history holds no known item.

    One event asks: its query is folded into the keys' matrix, and values are mixed before they meet theirs.
    """
    p = {name: tensor.double() for name, tensor in parameters.items() if name not in {"source", "target"}}
    known = batch.items > 0
    x = parameters["source"][batch.items].double()
    heads, dim = len(p["age_bias"]), x.shape[-1]
    normed = functional.layer_norm(x, (dim,), p["norm_weight"])
    query = (normed[:, -1] @ p["query"]).unflatten(-1, (heads, -1))
    asked = torch.einsum("bhc,dhc->bhd", query, p["key"].unflatten(-1, (heads, -1)))
    bias = p["age_bias"][:, torch.bucketize(batch.ages, _limits(x.device))].transpose(0, 1)
    logits = asked @ normed.mT / query.shape[-1] ** 0.5 + bias
    logits = logits.masked_fill(~known[:, None], torch.finfo(logits.dtype).min)
    mixed = torch.einsum("bhd,dhc->bhc", logits.softmax(-1) @ x, p["value"].unflatten(-1, (heads, -1))).flatten(1)
    return _after(p, mixed) * known.any(1, keepdim=True)


def vectors(parameters: Parameters) -> torch.Tensor:
    """Each target item's vector: float32 [N, d]."""
    return parameters["target"]


def score(parameters: Parameters, batch: Batch, log_prior: torch.Tensor) -> torch.Tensor:
    """[B, N] in the dtype of ``log_prior``; 0 where the history holds no known item."""
    return products(user(parameters, batch), vectors(parameters), log_prior.dtype)


def _states(p: Parameters, query: torch.Tensor, x: torch.Tensor, days: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """States after Q events.

    Args:
        p: The parameters.
        query: [B, Q, d] vectors of the events asked about.
        x: [B, L, d] vectors of all events.
        days: [B, Q, L] from each event to the one asked about.
        visible: bool [B, Q, L]. Which events count.

    Returns:
        [B, Q, d].
    """
    heads = len(p["age_bias"])
    width = (x.shape[-1],)
    q = _split(functional.layer_norm(query, width, p["norm_weight"]) @ p["query"], heads)
    k = _split(functional.layer_norm(x, width, p["norm_weight"]) @ p["key"], heads)
    v = _split(x @ p["value"], heads)
    bias = p["age_bias"][:, torch.bucketize(days, _limits(x.device))].transpose(0, 1)
    logits = q @ k.mT / q.shape[-1] ** 0.5 + bias
    logits = logits.masked_fill(~visible[:, None], torch.finfo(logits.dtype).min)
    return _after(p, (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _after(p: Parameters, mixed: torch.Tensor) -> torch.Tensor:
    """The feed-forward layer."""
    hidden = functional.gelu(functional.layer_norm(mixed, mixed.shape[-1:]) @ p["widen"])
    return mixed + hidden @ p["narrow"]


def _limits(device: torch.device) -> torch.Tensor:
    return torch.tensor(LIMITS_DAYS, device=device)


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _initial(pairs: Pairs, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """``source`` [n_source + 1, d], ``target`` [n_target, d], attention and feed-forward weights; all float32."""
    from scalr_prod.translator.estimators import linear

    dim = pairs.settings.dim
    heads = next(count for count in (4, 2, 1) if dim % count == 0)
    basis = torch.from_numpy(linear.source_basis(pairs, dim))
    coefficients = linear.fit(pairs, {"basis": basis})["coefficients"]
    found = basis.shape[1]  # fewer than dim where there are few items or users
    source = functional.pad(basis, (0, dim - found))
    target = functional.pad(coefficients.T, (0, dim - found))
    scale = 1 / source[1:].std().clamp(min=1e-12)
    source = source * scale
    target = target / (target.norm(dim=1).mean().clamp(min=1e-12) * dim**0.5)

    def small(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[0] ** -0.5

    return {
        "source": source.contiguous(),
        "target": target.contiguous(),
        "query": small(dim, dim),
        "key": small(dim, dim),
        "value": torch.eye(dim),
        "age_bias": torch.zeros(heads, len(LIMITS_DAYS) + 1),
        "norm_weight": torch.ones(dim),
        "widen": small(dim, 2 * dim),
        "narrow": torch.zeros(2 * dim, dim),
    }


class _Popularity:
    """Log popularity of target items as of an event, roughly: the estimator's own part is what this leaves open."""

    def __init__(self, pairs: Pairs) -> None:
        self.instants = popularity.instants(pairs, INSTANTS)
        lately = 0.8 if "popularity" in pairs.settings.estimators else 0.0
        self.table = popularity.at_instants(
            popularity.fit(pairs), self.instants, {"count": 0.5, "days_20": lately}
        ).T.contiguous()
        chosen = popularity.prior(pairs).exp()
        self.drawn = 0.5 * chosen + 0.5 / len(chosen)

    def of_each(self, time: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """[P, M] of items [M] at times [P]."""
        return self.table[items].T.contiguous()[self._row(time)]

    def of_own(self, time: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """[P, 1] of items [P] at times [P]."""
        return self.table[items, self._row(time)][:, None]

    def _row(self, time: torch.Tensor) -> torch.Tensor:
        return (torch.searchsorted(self.instants, time, right=True) - 1).clamp(min=0)


def _loss(p: Parameters, window: Any, popular: _Popularity, generator: torch.Generator) -> torch.Tensor:
    """Sampled softmax: negatives shared by the batch, each weighted by one over its expected number."""
    kept = torch.rand(window.items.shape, generator=generator) >= DROPPED_EVENTS
    known = window.items > 0
    length = window.items.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)
    visible = earlier & known[:, None] & (kept[:, None] | own)
    x = functional.embedding(window.items, p["source"])
    days = (window.days[:, :, None] - window.days[:, None]).clamp(min=0)
    states = _states(p, x, x, days, visible)[window.row, window.place]
    states = states * known[window.row, window.place, None]
    negative = torch.multinomial(popular.drawn, NEGATIVES, replacement=True, generator=generator)
    logits = states @ functional.embedding(negative, p["target"]).T
    logits = logits + popular.of_each(window.time, negative) - (NEGATIVES * popular.drawn[negative]).log()
    logits = logits.masked_fill(negative == window.item[:, None], -torch.inf)
    positive = (states * functional.embedding(window.item, p["target"])).sum(1, keepdim=True)
    positive = positive + popular.of_own(window.time, window.item)
    return (torch.cat([positive, logits], 1).logsumexp(1) - positive[:, 0]).mean()
