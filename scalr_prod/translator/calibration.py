"""Fit how the estimators become distributions: weights by log-likelihood of target events later than those they were fitted on.

A fold's parameter set has not seen its users' target events, nor does the table that weighs it: that is fitted on events of held-out
users of the other folds.

The likelihood's normaliser runs over the whole catalogue; it is estimated from items drawn for each event from a proposal near
the answer, each weighted by one over its expected number, so that every event of the slice can be used. An estimator's weight
may not be negative: it would speak against what its own evidence says, to make up for another's error. How far tastes may tilt is
what makes each half of the slice, in time, most likely by the weights of the other.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator import tastes
from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.mixture import MEMBERS, tilts, weight_names
from scalr_prod.translator.tastes import TASTES
from scalr_prod.translator.threads import ALONE, Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

__all__ = ["TABLES", "calibrate", "neutral", "table_of"]

#: Names of the tables in a version: for users whose target events the parameters have seen, and for held-out ones of any fold.
#: Each fold has a table of its own beside them, see `table_of`.
TABLES: Final = ("shared/calibration/all", "shared/calibration/held_out")

#: Items drawn for the normaliser of each event, and the most events used.
DRAWN: Final = 512
MOST_EVENTS: Final = 8_000
#: Events of held-out users that a table of their own needs at the least.
FEWEST_HELD_OUT: Final = 50
#: Newton steps, and the length of one that is small enough to stop.
MOST_STEPS: Final = 20
_SMALL_STEP: Final = 3e-3
#: Pulls a weight towards 0 by so many events' worth, so that a slice of a few events gives no wild weights.
PENALTY: Final = 2.0
#: The same for weights that a taste tilts by: which of these is chosen; infinity tilts nothing.
TILT_PENALTIES: Final = (8.0, 64.0, math.inf)
_CHUNK_ROWS: Final = 128
_FEATURES: Final = len(popularity.FEATURES)


def neutral() -> dict[str, torch.Tensor]:
    """For a module that is not calibrated yet: every member is plain popularity."""
    mean, spread = tastes.spread(torch.empty(0, len(TASTES)))
    return {name: _plain() for name in TABLES} | {"shared/tastes/mean": mean, "shared/tastes/spread": spread}


def calibrate(
    module: TranslatorModule,
    contexts: Contexts,
    labels: NDArray[np.int32],
    held_out: NDArray[np.bool_],
    *,
    seed: int,
    fold: NDArray[np.int32] | None = None,
    workers: Workers = ALONE,
) -> dict[str, torch.Tensor]:
    """Fit what makes distributions of scores, popularity and tastes.

    Args:
        module: Its set -1 was fitted before the slice, without the held-out users' target events.
        contexts: [R], strictly before the slice's events, with fold -1.
        labels: int32 [R]. The events' target indices; those that are not eligible are left out.
        held_out: bool [R]. Rows of held-out users.
        seed: Of the draws.
        fold: int32 [R]. Each row's user's fold; default: no fold has a table of its own.
        workers: Where units of work run: blocks of rows, then members of tables.

    Returns:
        Tensors by their names in a version: `TABLES`, float32 [len(MEMBERS), weights], for set -1 (fitted on all rows) and for
        held-out users (fitted on held-out rows, where there are enough of them); `table_of` each fold, for its own set (likewise, on
        the rows of the other folds); ``shared/tastes/mean`` and ``spread`` [T], by which tastes are measured. `neutral` where
        no label is eligible.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _usable(module, contexts, labels, generator)
    if not len(rows):
        return neutral()
    contexts, labels, held_out = contexts.take(rows), labels[rows], held_out[rows]
    told = tastes.raw(module.parameter_set(-1).tastes, Batch.of(contexts, module.first_seen))
    mean, spread = tastes.spread(told)
    values, log_q = _candidates(module, contexts, labels, generator, workers)
    # By the drawn items alone: an event must not show in other folds' tables, not even in the unit of a score.
    # Popularity alone has no scores to scale, and torch warns about the spread of nothing.
    scale = values[:, :-_FEATURES, 1:].std((0, 2)).clamp(min=1e-12) if module.estimators else values.new_ones(0)
    values[:, :-_FEATURES] /= scale[:, None]
    evidence = _Evidence(values, tastes.standard(told, mean, spread), log_q)
    everybody = np.ones(len(rows), bool)
    learnt_from = {TABLES[0]: everybody, TABLES[1]: _enough(held_out, everybody)}
    folds = np.full(len(rows), -1) if fold is None else fold[rows]
    for number in [] if fold is None else np.unique(fold).tolist():
        others = folds != number
        learnt_from[table_of(number)] = _enough(held_out & others, others)
    tables = _fit_tables(module, evidence, learnt_from, workers)
    for table in tables.values():
        table[:, [weight_names().index(name) for name in module.estimators]] /= scale
    return tables | {"shared/tastes/mean": mean, "shared/tastes/spread": spread}


def table_of(fold: int) -> str:
    """Name of a fold's own table, which no event of its users has shaped."""
    return f"{fold}/calibration/held_out"


def _enough(held_out: NDArray[np.bool_], everybody: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of held-out users where there are enough of them for a table, else everybody's."""
    return held_out if held_out.sum() >= max(FEWEST_HELD_OUT, min(200, everybody.sum() // 10)) else everybody


def _plain() -> torch.Tensor:
    table = torch.zeros(len(MEMBERS), len(weight_names()))
    table[:, weight_names().index("count")] = 1
    return table


def _usable(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator
) -> NDArray[np.int64]:
    """Rows whose item was there to be chosen, in order of time, at most `MOST_EVENTS` of them."""
    label = torch.from_numpy(labels.astype(np.int64))
    rows = torch.nonzero((label >= 0) & (label < Batch.of(contexts, module.first_seen).eligible))[:, 0]
    if len(rows) > MOST_EVENTS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_EVENTS].sort().values]
    usable: NDArray[np.int64] = rows.numpy()
    return usable[np.argsort(contexts.event_time[usable], kind="stable")]


@dataclass(frozen=True)
class _Evidence:
    """Rows, in order of time, with a choice among items: the label (first) and M that were drawn.

    Attributes:
        values: [R, E + F, 1 + M]. Standardised scores, and features.
        tastes: [R, T], standardised.
        log_q: [R, 1 + M]. Logarithms of the expected numbers of draws.
    """

    values: torch.Tensor
    tastes: torch.Tensor
    log_q: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: torch.Tensor) -> _Evidence:
        return _Evidence(self.values[rows], self.tastes[rows], self.log_q[rows])

    def with_one(self, rows: torch.Tensor, many: int) -> torch.Tensor:
        """The first of 1 and the tastes: [r, many]."""
        tastes_ = self.tastes[rows]
        return torch.cat([tastes_.new_ones(len(rows), 1), tastes_], 1)[:, :many]


def _candidates(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator, workers: Workers
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and features of the label and the drawn items: [R, E + F, 1 + M]; log expected numbers of draws [R, 1 + M]."""
    mixture = module.parameter_set(-1)
    whole = Batch.of(contexts, module.first_seen)
    label = torch.from_numpy(labels.astype(np.int64))
    drawn = min(DRAWN, module.n_target)
    parts = torch.arange(len(label)).split(_CHUNK_ROWS)
    # Each block draws by a seed of its own, so that it depends on no other.
    seeds = torch.randint(2**62, (len(parts),), generator=generator).tolist()

    @torch.inference_mode()
    def draw(unit: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, torch.Tensor]:
        part, seed = unit
        batch = whole.take(part)
        scores = [mixture.score(name, batch) for name in mixture.estimators]
        counts = mixture.log_counts(batch)
        q = _proposal(scores, counts, batch)
        negative = torch.multinomial(q, drawn, replacement=True, generator=torch.Generator().manual_seed(seed))
        chosen = torch.cat([label[part, None], negative], 1)
        log_n = torch.log(drawn * q.gather(1, chosen))
        log_n[:, 0] = 0
        log_n[:, 1:][negative == chosen[:, :1]] = torch.inf
        counts = {name: x.gather(1, chosen) for name, x in counts.items()}
        features = [popularity.feature(counts, name) for name in popularity.FEATURES]
        return torch.stack([*(x.gather(1, chosen) for x in scores), *features], 1), log_n

    values, log_q = zip(*workers.map(draw, zip(parts, seeds, strict=True)), strict=True)
    return torch.cat(values).clone(), torch.cat(log_q).clone()


def _proposal(scores: list[torch.Tensor], counts: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """A blend of rough distributions: popularity, lately popular, and each estimator on top of popularity."""
    hidden = torch.arange(counts["count"].shape[1]) >= batch.eligible[:, None]
    lately = 0.2 * counts["count"] + 0.4 * counts["days_90"] + 0.3 * counts["days_20"]
    logits = [0.5 * counts["count"], lately + 0.3 * counts["days_3"]]
    logits += [lately + 0.3 * (s - s.mean()) / s.std().clamp(min=1e-12) for s in scores]
    return torch.stack([x.masked_fill(hidden, -torch.inf).softmax(1) for x in logits]).mean(0)


def _fit_tables(
    module: TranslatorModule, evidence: _Evidence, learnt_from: dict[str, NDArray[np.bool_]], workers: Workers
) -> dict[str, torch.Tensor]:
    """Tables by name, on standardised scores, each fitted on its rows of the evidence. A unit of work is one member of one table."""
    scored = list(module.estimators)
    known = list(popularity.FEATURES if module.has_popularity else popularity.FEATURES[:1])
    members: dict[str, tuple[list[str], list[str]]] = {"mixture": ([*scored, *known], known), "popularity": (known, [])}
    members |= {name: ([name, "count"], []) for name in scored}
    # Tables of the same rows are fitted once.
    apart = {rows.tobytes(): evidence.take(torch.from_numpy(np.flatnonzero(rows))) for rows in learnt_from.values()}

    def fit(unit: tuple[bytes, str]) -> torch.Tensor:
        rows, member = unit
        return _fit_member(apart[rows], *members[member], scored)

    units = list(itertools.product(apart, members))
    found = {rows: _plain() for rows in apart}
    for (rows, member), weights in zip(units, workers.map(fit, units), strict=True):
        found[rows][MEMBERS.index(member)] = weights
    return {name: found[rows.tobytes()].clone() for name, rows in learnt_from.items()}


def _fit_member(evidence: _Evidence, plain: list[str], tilted: list[str], scored: Sequence[str]) -> torch.Tensor:
    """One member's row of a table."""
    names = weight_names()
    columns = {name: column for column, name in enumerate([*scored, *popularity.FEATURES])}
    which = _Columns([columns[x] for x in plain], [columns[x] for x in tilted], [x in scored for x in plain])
    found = _fit(evidence, which, _tilt_penalty(evidence, which))
    row = torch.zeros(len(names))
    row[[names.index(name) for name in plain]] = found[0]
    for taste, tilt in zip(TASTES, found[1:], strict=False):  # nothing where no taste tilts
        row[[names.index(tilts(taste)[popularity.FEATURES.index(name)]) for name in tilted]] = tilt[-len(tilted) :]
    return row


@dataclass(frozen=True)
class _Columns:
    """What a member weighs.

    Attributes:
        plain: Columns of the evidence.
        tilted: Those of them that tastes tilt.
        positive: Whether the weight of each of ``plain`` must be.
    """

    plain: list[int]
    tilted: list[int]
    positive: list[bool]


def _tilt_penalty(evidence: _Evidence, columns: _Columns) -> float:
    """The one of `TILT_PENALTIES` by which either half of the rows is most likely with the weights of the other."""
    if not columns.tilted:
        return math.inf
    earlier, later = torch.arange(len(evidence)).chunk(2) if len(evidence) > 1 else [torch.arange(0)] * 2
    halves = evidence.take(earlier), evidence.take(later)

    def loss(penalty: float) -> float:
        return sum(_loss(asked, columns.plain, _fit(learnt, columns, penalty)) for asked, learnt in (halves, halves[::-1]))

    return min(reversed(TILT_PENALTIES), key=loss)  # of equals the one that tilts least


def _loss(evidence: _Evidence, plain: list[int], weights: torch.Tensor) -> float:
    """-Σ log P(label)."""
    total = 0.0
    for rows in torch.arange(len(evidence)).split(_CHUNK_ROWS):
        logits = ((evidence.with_one(rows, len(weights)) @ weights)[:, None] @ evidence.values[rows][:, plain])[:, 0]
        total -= float((logits - evidence.log_q[rows]).log_softmax(1)[:, 0].sum())
    return total


def _fit(evidence: _Evidence, columns: _Columns, tilt_penalty: float) -> torch.Tensor:
    """Weights that maximise Σ log P(label): [1 + T, columns], or [1, columns] where nothing is tilted.

    Weights that must be positive and would not be are left out, one fit after the other.
    """
    plain, tilted = columns.plain, columns.tilted if math.isfinite(tilt_penalty) else []
    used = list(range(len(plain)))
    while True:
        found = _maximise(evidence, [plain[place] for place in used], tilted, tilt_penalty)
        kept = [
            place for place, weight in zip(used, found[0].tolist(), strict=True) if weight >= 0 or not columns.positive[place]
        ]
        if kept == used:
            weights = found.new_zeros(len(found), len(plain))
            weights[:, used] = found
            return weights
        used = kept


def _maximise(evidence: _Evidence, plain: list[int], tilted: list[int], tilt_penalty: float) -> torch.Tensor:
    """The weights, by Newton's method: what they maximise is concave.

    A row of the evidence weighs column c by Σ_a D[a, c] z_a, with z_0 = 1 and its tastes behind; D is 0 where no taste tilts. So the
    curvature is the sum over the rows of z zᵀ (Kronecker) the columns' covariance.
    """
    many = 1 + evidence.tastes.shape[1] if tilted else 1
    free = torch.tensor([[not a or column in tilted for column in plain] for a in range(many)])
    penalty = torch.full(free.shape, tilt_penalty if tilted else 0.0, dtype=torch.float64)
    penalty[0] = PENALTY
    weights = torch.zeros(free.shape, dtype=torch.float64)
    weights[0] = 1.0 / len(plain)
    for _ in range(MOST_STEPS if len(evidence) else 0):
        gradient, curvature = -2 * penalty * weights, (2 * penalty).flatten().diag()
        for rows in torch.arange(len(evidence)).split(_CHUNK_ROWS):
            x = evidence.values[rows][:, plain]
            z = evidence.with_one(rows, many)
            p = (((z @ weights.float())[:, None] @ x)[:, 0] - evidence.log_q[rows]).softmax(1)
            mean = (x @ p[:, :, None])[:, :, 0]
            covariance = (x * p[:, None]) @ x.mT - mean[:, :, None] * mean[:, None]
            gradient += (z.T @ (x[:, :, 0] - mean)).double()
            of_pairs = (z[:, :, None] * z[:, None]).flatten(1).T @ covariance.flatten(1)
            of_pairs = of_pairs.view(many, many, len(plain), len(plain)).transpose(1, 2)
            curvature += of_pairs.reshape(curvature.shape).double()
        kept = free.flatten()
        step = torch.zeros_like(weights)
        step[free] = torch.linalg.solve(curvature[kept][:, kept], gradient[free])
        weights += step / max(1.0, float(step.norm()))
        if float(step.norm()) < _SMALL_STEP:
            break
    return weights.float()
