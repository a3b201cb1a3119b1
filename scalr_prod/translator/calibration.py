"""Fit how the estimators become distributions: weights by log-likelihood of target events later than those they were fitted on.

The likelihood's normaliser runs over the whole catalogue; it is estimated from items drawn for each event from a proposal near
the answer, each weighted by one over its expected number, so that every event of the slice can be used. For ε = 0 the likelihood
of the mixture is concave in its weights and contains each single estimator as a special case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.mixture import MEMBERS, weight_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

__all__ = ["calibrate", "neutral"]

#: Items drawn for the normaliser of each event, and the most events used.
DRAWN: Final = 2048
MOST_EVENTS: Final = 12_000
#: Pulls a weight towards 0 by so many events' worth, so that a slice of a few events gives no wild weights.
PENALTY: Final = 2.0
_CHUNK_ROWS: Final = 64


def neutral() -> torch.Tensor:
    """A table for a module that is not calibrated yet: every member is plain popularity."""
    table = torch.zeros(len(MEMBERS), len(weight_names()))
    table[:, weight_names().index("count")] = 1
    return table


def calibrate(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], held_out: NDArray[np.bool_], *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit two tables (float32 [len(MEMBERS), weights]): for users whose target events the parameters have seen, and for held-out ones.

    Args:
        module: Its set -1 was fitted before the slice, without the held-out users' target events.
        contexts: [R], strictly before the slice's events, with fold -1.
        labels: int32 [R]. The events' target indices; those that are not eligible are left out.
        held_out: bool [R]. Rows of held-out users.
        seed: Of the draws.

    Returns:
        Tables for set -1 (fitted on all rows) and for the sets of folds (fitted on held-out rows, where there are enough of them).
    """
    generator = torch.Generator().manual_seed(seed)
    values, log_q, rows = _candidates(module, contexts, labels, generator)
    # Popularity alone has no scores to scale, and torch warns about the spread of nothing.
    scale = values[..., :-2].flatten(0, 1).std(0).clamp(min=1e-12) if module.estimators else values.new_ones(0)
    values[..., :-2] /= scale
    every = _fit_members(module, values, log_q)
    apart = torch.from_numpy(held_out)[rows]
    enough = int(apart.sum()) >= min(200, len(rows) // 10)
    held = _fit_members(module, values[apart], log_q[apart]) if enough else every.clone()
    names = [weight_names().index(name) for name in module.estimators]
    for table in (every, held):
        table[:, names] /= scale
    return every, held


def _candidates(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and features of the label (first) and the drawn items: [R, 1 + M, E + F]; log expected numbers [R, 1 + M]; rows."""
    import numpy as np

    mixture = module.parameter_set(-1)
    whole = Batch.of(contexts, module.first_seen)
    label = torch.from_numpy(labels.astype(np.int64))
    rows = torch.nonzero((label >= 0) & (label < whole.eligible))[:, 0]
    if len(rows) > MOST_EVENTS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_EVENTS].sort().values]
    drawn = min(DRAWN, module.n_target)
    values, log_q = [], []
    with torch.inference_mode():
        for part in rows.split(_CHUNK_ROWS):
            batch = whole.take(part)
            parts = [*(mixture.score(name, batch) for name in mixture.estimators), *mixture.features(batch)]
            q = _proposal(parts, batch)
            negative = torch.multinomial(q, drawn, replacement=True, generator=generator)
            chosen = torch.cat([label[part, None], negative], 1)
            log_n = torch.log(drawn * q.gather(1, chosen))
            log_n[:, 0] = 0
            log_n[:, 1:][negative == chosen[:, :1]] = torch.inf
            values.append(torch.stack([x.gather(1, chosen) for x in parts], 2))
            log_q.append(log_n)
    return torch.cat(values).clone(), torch.cat(log_q).clone(), rows


def _proposal(parts: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """A blend of rough distributions: popularity, lately popular, and each estimator on top of popularity."""
    features = len(popularity.FEATURES)
    hidden = torch.arange(parts[0].shape[1]) >= batch.eligible[:, None]
    count, trend = parts[-features:]
    logits = [0.5 * count, 0.3 * count + trend]
    logits += [0.3 * count + 0.5 * trend + 0.3 * (s - s.mean()) / s.std().clamp(min=1e-12) for s in parts[:-features]]
    return torch.stack([x.masked_fill(hidden, -torch.inf).softmax(1) for x in logits]).mean(0)


def _fit_members(module: TranslatorModule, values: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Every member's weights, on standardised scores."""
    names = weight_names()
    features = [names.index(name) for name in popularity.FEATURES]
    scored = list(module.estimators)
    trend = [len(scored) + i for i in range(len(features))] if module.has_popularity else [len(scored)]
    table = neutral()
    for member in ("popularity", *scored, "mixture"):
        used = {
            "mixture": [*range(len(scored)), *trend],
            "popularity": trend,
        }.get(member) or [list[str](scored).index(member), len(scored)]
        weights = _fit(values[..., used], log_q)
        row = table[MEMBERS.index(member)]
        row.zero_()
        for column, weight in zip(used, weights.tolist(), strict=True):
            name = scored[column] if column < len(scored) else popularity.FEATURES[column - len(scored)]
            row[names.index(name)] = weight
    return table


def _fit(values: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Weights [W] that maximise Σ log P(label), by L-BFGS."""
    weights = torch.full((values.shape[-1],), 1.0 / values.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = values @ weights
        total = ((logits - log_q).logsumexp(1) - logits[:, 0]).mean() + PENALTY / len(values) * (weights**2).sum()
        total.backward()
        return total

    if len(values):
        optimizer.step(loss)
    return weights.detach()
