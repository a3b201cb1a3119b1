# SPDX-License-Identifier: Apache-2.0
"""Fit how the estimators become distributions: weights by log-likelihood of target events later than those they were fitted on.

A fold's parameter set has not seen its users' target events, nor does the table that weighs it: that is fitted on events of held-out
users of the other folds.

The likelihood's normaliser runs over the whole catalogue; it is estimated from items drawn for each event from a proposal near
the answer, each weighted by one over its expected number, so that every event of the slice can be used. An estimator's weight
may not be negative: it would speak against what its own evidence says, to make up for another's error.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator import tastes
from scalr_prod.translator.batch import Batch
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.layout import OURS, Layout, tilts
from scalr_prod.translator.likelihood import Columns, Evidence, fitted
from scalr_prod.translator.tastes import TASTES
from scalr_prod.translator.threads import ALONE, Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule
    from scalr_prod.translator.pairs import ContextSource

__all__ = ["TABLES", "calibrate", "neutral", "table_of"]

#: Names of the tables in a version: for users whose target events the parameters have seen, and for held-out ones of any fold.
#: Each fold has a table of its own beside them, see `table_of`.
TABLES: Final = ("shared/calibration/all", "shared/calibration/held_out")

#: Items drawn for the normaliser of each event, and the most events used.
DRAWN: Final = 512
MOST_EVENTS: Final = 8_000
#: Events of held-out users that a table of their own needs at the least.
FEWEST_HELD_OUT: Final = 50
_CHUNK_ROWS: Final = 128
_FEATURES: Final = len(popularity.FEATURES)


def neutral(layout: Layout = OURS) -> dict[str, torch.Tensor]:
    """For a module that is not calibrated yet: every member is plain popularity."""
    mean, spread = tastes.spread(torch.empty(0, len(TASTES)))
    return {name: _plain(layout) for name in TABLES} | {"shared/tastes/mean": mean, "shared/tastes/spread": spread}


def calibrate(
    module: TranslatorModule,
    contexts: Contexts | ContextSource,
    labels: NDArray[np.int32],
    held_out: NDArray[np.bool_],
    *,
    seed: int,
    fold: NDArray[np.int32] | None = None,
    weight: NDArray[np.float32] | None = None,
    workers: Workers = ALONE,
) -> dict[str, torch.Tensor]:
    """Fit what makes distributions of scores, popularity and tastes.

    Args:
        module: Its set -1 was fitted before the slice, without the held-out users' target events.
        contexts: [R], strictly before the slice's events, with fold -1.
        labels: int32 [R]. The events' target indices, none of them excluded; those that had not been seen yet are left out.
        held_out: bool [R]. Rows of held-out users.
        seed: Of the draws.
        fold: int32 [R]. Each row's user's fold; default: no fold has a table of its own.
        weight: float32 [R]. How much each event counts; None: one.
        workers: Where units of work run: blocks of rows, then members of tables.

    Returns:
        Tensors by their names in a version: `TABLES`, float32 [members, weights], for set -1 (fitted on all rows) and for
        held-out users (fitted on held-out rows, where there are enough of them); `table_of` each fold, for its own set (likewise, on
        the rows of the other folds); ``shared/tastes/mean`` and ``spread`` [T], by which tastes are measured. `neutral` where
        no label is eligible.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _usable(module, contexts.event_time, labels, generator)
    if not len(rows):
        return neutral(module.layout)
    chosen, labels, held_out = contexts.take(rows), labels[rows], held_out[rows]
    told = tastes.raw(module.parameter_set(-1).tastes, Batch.of(chosen, module.first_seen)).cpu()
    mean, spread = tastes.spread(told)
    # Each block holds whole rows: a GPU's memory is for one of them at a time.
    values, log_q = _candidates(module, chosen, labels, generator, workers if module.device.type == "cpu" else ALONE)
    # By the drawn items alone: an event must not show in other folds' tables, not even in the unit of a score.
    # Popularity alone has no scores to scale, and torch warns about the spread of nothing.
    scale = values[:, :-_FEATURES, 1:].std((0, 2)).clamp(min=1e-12) if module.estimators else values.new_ones(0)
    values[:, :-_FEATURES] /= scale[:, None]
    counts = None if weight is None else torch.from_numpy(weight[rows])[:, None]
    evidence = Evidence.of(values, tastes.standard(told, mean, spread), log_q, counts)
    everybody = np.ones(len(rows), bool)
    learnt_from = {TABLES[0]: everybody, TABLES[1]: _enough(held_out, everybody)}
    folds = np.full(len(rows), -1) if fold is None else fold[rows]
    for number in [] if fold is None else np.unique(fold).tolist():
        others = folds != number
        learnt_from[table_of(number)] = _enough(held_out & others, others)
    tables = _fit_tables(module, evidence, learnt_from, workers)
    for table in tables.values():
        table[:, [module.layout.weights.index(name) for name in module.estimators]] /= scale
    return tables | {"shared/tastes/mean": mean, "shared/tastes/spread": spread}


def table_of(fold: int) -> str:
    """Name of a fold's own table, which no event of its users has shaped."""
    return f"{fold}/calibration/held_out"


def _enough(held_out: NDArray[np.bool_], everybody: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of held-out users where there are enough of them for a table, else everybody's."""
    return held_out if held_out.sum() >= max(FEWEST_HELD_OUT, min(200, everybody.sum() // 10)) else everybody


def _plain(layout: Layout) -> torch.Tensor:
    table = torch.zeros(len(layout.members), len(layout.weights))
    table[:, layout.weights.index("count")] = 1
    return table


def _usable(
    module: TranslatorModule, time: NDArray[np.int64], labels: NDArray[np.int32], generator: torch.Generator
) -> NDArray[np.int64]:
    """Rows whose item was there to be chosen, in order of time, at most `MOST_EVENTS` of them."""
    label = torch.from_numpy(labels.astype(np.int64))
    eligible = torch.searchsorted(module.first_seen.cpu(), torch.from_numpy(time))
    rows = torch.nonzero((label >= 0) & (label < eligible))[:, 0]
    if len(rows) > MOST_EVENTS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_EVENTS].sort().values]
    usable: NDArray[np.int64] = rows.numpy()
    return usable[np.argsort(time[usable], kind="stable")]


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

    # A quarter of a GB for the most events, so that each block writes to its place.
    values = torch.empty(len(label), len(mixture.estimators) + _FEATURES, 1 + drawn)
    log_q = torch.empty(len(label), 1 + drawn)

    @torch.inference_mode()
    def draw(unit: tuple[torch.Tensor, int]) -> None:
        part, seed = unit
        batch = whole.take(part.to(module.device))
        scores = [mixture.score(name, batch) for name in mixture.estimators]
        counts = mixture.log_counts(batch)
        # On the CPU, so that every device draws the same but where rounding decides.
        q = _proposal(scores, counts, batch).cpu()
        negative = torch.multinomial(q, drawn, replacement=True, generator=torch.Generator().manual_seed(seed))
        chosen = torch.cat([label[part, None], negative], 1)
        log_n = torch.log(drawn * q.gather(1, chosen))
        log_n[:, 0] = 0
        log_n[:, 1:][negative == chosen[:, :1]] = torch.inf
        asked = chosen.to(module.device)
        counts = {name: x.gather(1, asked) for name, x in counts.items()}
        features = [popularity.feature(counts, name) for name in popularity.FEATURES]
        values[part] = torch.stack([*(x.gather(1, asked) for x in scores), *features], 1).cpu()
        log_q[part] = log_n

    for _ in workers.map(draw, zip(parts, seeds, strict=True)):
        pass
    return values, log_q


def _proposal(scores: list[torch.Tensor], counts: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """A blend of rough distributions: popularity, lately popular, and each estimator on top of popularity."""
    hidden = batch.hidden(counts["count"].shape[1])
    lately = 0.2 * counts["count"] + 0.4 * counts["days_90"] + 0.3 * counts["days_20"]
    total = (0.5 * counts["count"]).masked_fill_(hidden, -torch.inf).softmax(1)
    total += (lately + 0.3 * counts["days_3"]).masked_fill_(hidden, -torch.inf).softmax(1)
    for s in scores:
        scale = 0.3 / s.std().clamp(min=1e-12)
        total += torch.addcmul(lately - s.mean() * scale, s, scale).masked_fill_(hidden, -torch.inf).softmax(1)
    return total.div_(2 + len(scores))


def _fit_tables(
    module: TranslatorModule, evidence: Evidence, learnt_from: dict[str, NDArray[np.bool_]], workers: Workers
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
        return _fit_member(apart[rows], module.layout, *members[member], scored)

    units = list(itertools.product(apart, members))
    found = {rows: _plain(module.layout) for rows in apart}
    for (rows, member), weights in zip(units, workers.map(fit, units), strict=True):
        found[rows][module.layout.members.index(member)] = weights
    return {name: found[rows.tobytes()].clone() for name, rows in learnt_from.items()}


def _fit_member(evidence: Evidence, layout: Layout, plain: list[str], tilted: list[str], scored: Sequence[str]) -> torch.Tensor:
    """One member's row of a table."""
    names = layout.weights
    columns = {name: column for column, name in enumerate([*scored, *popularity.FEATURES])}
    which = Columns([columns[x] for x in plain], [columns[x] for x in tilted], [x in scored for x in plain])
    found = fitted(evidence, which)
    row = torch.zeros(len(names))
    row[[names.index(name) for name in plain]] = found[0]
    for taste, tilt in zip(TASTES, found[1:], strict=False):  # nothing where no taste tilts
        row[[names.index(tilts(taste)[popularity.FEATURES.index(name)]) for name in tilted]] = tilt[-len(tilted) :]
    return row
