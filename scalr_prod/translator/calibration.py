"""Fit how the estimators become distributions: weights by log-likelihood of target events later than those they were fitted on.

The likelihood's normaliser runs over the whole catalogue; it is estimated from items drawn for each event from a proposal near
the answer, each weighted by one over its expected number, so that every event of the slice can be used. An estimator's weight
may not be negative: it would speak against what its own evidence says, to make up for another's error.

Likelihood cares for every event alike, a ranking for the few items at its head, and the two do not want the same: a share ε of
popularity alone is added, the one at which the mixture ranks the slice best (`_set_share`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.metrics import gains_of, ranks_of
from scalr_prod.translator.mixture import MEMBERS, by_member, weight_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

__all__ = ["calibrate", "neutral"]

#: Items drawn for the normaliser of each event, and the most events used.
DRAWN: Final = 512
MOST_EVENTS: Final = 4_000
#: Events of held-out users that a table of their own needs at the least.
FEWEST_HELD_OUT: Final = 50
#: Newton steps, and the length of one that is small enough to stop.
MOST_STEPS: Final = 20
_SMALL_STEP: Final = 3e-3
#: Pulls a weight towards 0 by so many events' worth, so that a slice of a few events gives no wild weights.
PENALTY: Final = 2.0
#: Values of ε whose rankings are looked at, the largest first: what the user's history says keeps a share, small at the least, in any case.
SHARES: Final = tuple(1 - 0.6**step for step in range(10, -1, -1))
_CHUNK_ROWS: Final = 128
_FEATURES: Final = len(popularity.FEATURES)


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
        Tables for set -1 (fitted on all rows) and for the sets of folds (fitted on held-out rows, where there are enough of them);
        plain popularity where no label is eligible.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _usable(module, contexts, labels, generator)
    if not len(rows):
        return neutral(), neutral()
    contexts, labels, apart = contexts.take(rows), labels[rows], np.flatnonzero(held_out[rows])
    values, log_q = _candidates(module, contexts, labels, generator)
    # Popularity alone has no scores to scale, and torch warns about the spread of nothing.
    scale = values[:, :-_FEATURES].std((0, 2)).clamp(min=1e-12) if module.estimators else values.new_ones(0)
    values[:, :-_FEATURES] /= scale[:, None]

    def table(chosen: NDArray[np.int64]) -> torch.Tensor:
        found = _fit_members(module, values[chosen], log_q[chosen])
        found[:, [weight_names().index(name) for name in module.estimators]] /= scale
        if module.has_popularity and module.estimators:
            _set_share(module, found, contexts.take(chosen), labels[chosen])
        return found

    every = table(np.arange(len(rows)))
    enough = len(apart) >= max(FEWEST_HELD_OUT, min(200, len(rows) // 10))
    return every, table(apart) if enough else every.clone()


def _usable(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator
) -> NDArray[np.int64]:
    """Rows whose item was there to be chosen, ascending, at most `MOST_EVENTS` of them."""
    label = torch.from_numpy(labels.astype(np.int64))
    rows = torch.nonzero((label >= 0) & (label < Batch.of(contexts, module.first_seen).eligible))[:, 0]
    if len(rows) > MOST_EVENTS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_EVENTS].sort().values]
    usable: NDArray[np.int64] = rows.numpy()
    return usable


def _candidates(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and features of the label (first) and the drawn items: [R, E + F, 1 + M]; log expected numbers [R, 1 + M]."""
    mixture = module.parameter_set(-1)
    whole = Batch.of(contexts, module.first_seen)
    label = torch.from_numpy(labels.astype(np.int64))
    drawn = min(DRAWN, module.n_target)
    values, log_q = [], []
    with torch.inference_mode():
        for part in torch.arange(len(label)).split(_CHUNK_ROWS):
            batch = whole.take(part)
            scores = [mixture.score(name, batch) for name in mixture.estimators]
            counts = mixture.log_counts(batch)
            q = _proposal(scores, counts, batch)
            negative = torch.multinomial(q, drawn, replacement=True, generator=generator)
            chosen = torch.cat([label[part, None], negative], 1)
            log_n = torch.log(drawn * q.gather(1, chosen))
            log_n[:, 0] = 0
            log_n[:, 1:][negative == chosen[:, :1]] = torch.inf
            counts = {name: x.gather(1, chosen) for name, x in counts.items()}
            features = [popularity.feature(counts, name) for name in popularity.FEATURES]
            values.append(torch.stack([*(x.gather(1, chosen) for x in scores), *features], 1))
            log_q.append(log_n)
    return torch.cat(values).clone(), torch.cat(log_q).clone()


def _proposal(scores: list[torch.Tensor], counts: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """A blend of rough distributions: popularity, lately popular, and each estimator on top of popularity."""
    hidden = torch.arange(counts["count"].shape[1]) >= batch.eligible[:, None]
    lately = 0.2 * counts["count"] + 0.4 * counts["days_90"] + 0.3 * counts["days_20"]
    logits = [0.5 * counts["count"], lately + 0.3 * counts["days_3"]]
    logits += [lately + 0.3 * (s - s.mean()) / s.std().clamp(min=1e-12) for s in scores]
    return torch.stack([x.masked_fill(hidden, -torch.inf).softmax(1) for x in logits]).mean(0)


def _fit_members(module: TranslatorModule, values: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Every member's weights, on standardised scores."""
    names = weight_names()
    scored = list(module.estimators)
    known = list(popularity.FEATURES if module.has_popularity else popularity.FEATURES[:1])
    columns = {name: column for column, name in enumerate([*scored, *popularity.FEATURES])}
    table = neutral()
    members: dict[str, list[str]] = {name: [name, "count"] for name in scored}
    members |= {"popularity": known, "mixture": [*scored, *known]}
    for member, used in members.items():
        row = table[MEMBERS.index(member)]
        row.zero_()
        row[[names.index(name) for name in used]] = _fit(
            values[:, [columns[name] for name in used]], log_q, [name in scored for name in used]
        )
    return table


def _weighted(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ_f weights[f] x values[:, f]: [R, 1 + M]."""
    return weights @ values


def _fit(values: torch.Tensor, log_q: torch.Tensor, positive: list[bool]) -> torch.Tensor:
    """Weights [W] that maximise Σ log P(label).

    Weights that must be positive and would not be are left out, one fit after the other.
    """
    used = list(range(values.shape[1]))
    while True:
        found = _maximise(values[:, used], log_q)
        kept = [column for column, weight in zip(used, found.tolist(), strict=True) if weight >= 0 or not positive[column]]
        if kept == used:
            weights = torch.zeros(values.shape[1])
            weights[used] = found
            return weights
        used = kept


def _maximise(values: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The weights, by Newton's method: what they maximise is concave."""
    count = values.shape[1]
    weights = torch.full((count,), 1.0 / count, dtype=torch.float64)
    for _ in range(MOST_STEPS if len(values) else 0):
        gradient, curvature = -2 * PENALTY * weights, 2 * PENALTY * torch.eye(count, dtype=torch.float64)
        for rows in torch.arange(len(values)).split(_CHUNK_ROWS):
            x = values[rows]
            p = (_weighted(x, weights.float()) - log_q[rows]).softmax(1)
            mean = (x @ p[:, :, None])[:, :, 0]
            gradient += (x[:, :, 0] - mean).sum(0).double()
            curvature += (((x * p[:, None]) @ x.mT).sum(0) - mean.T @ mean).double()
        step = torch.linalg.solve(curvature, gradient)
        weights += step / max(1.0, float(step.norm()))
        if float(step.norm()) < _SMALL_STEP:
            break
    return weights.float()


def _set_share(module: TranslatorModule, table: torch.Tensor, contexts: Contexts, labels: NDArray[np.int32]) -> None:
    """Give the mixture, in place, the ε at which it ranks the slice best; of equals the largest."""
    place = MEMBERS.index("mixture"), weight_names().index("backoff")
    mixture = replace(module.parameter_set(-1), calibration=by_member(table, weight_names()))
    whole = Batch.of(contexts, module.first_seen)
    label = torch.from_numpy(labels.astype(np.int64))
    gains = torch.zeros(len(SHARES), dtype=torch.float64)
    with torch.inference_mode():
        for part in torch.arange(len(label)).split(_CHUNK_ROWS):
            own, prior, _ = mixture.parts(whole.take(part))
            gains += torch.stack([gains_of(ranks_of(own.lerp(prior, share), label[part])).sum() for share in SHARES])
    table[place] = SHARES[int(gains.argmax())]
