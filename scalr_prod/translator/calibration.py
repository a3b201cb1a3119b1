# SPDX-License-Identifier: Apache-2.0
"""Calibrate the mixture: fit its weights by log-likelihood on target events later than those the estimators were fitted on.

A fold's parameter set has not seen its users' target events. The fold's calibration table has not seen them either: it is fitted on
events of held-out users of the other folds.

Contexts are as of the start of the events (`trainer.fit_calibration`), because a run asks once about all of a user's later events. Weights
fitted on contexts at the instants of the events would trust recent popularity too much.

The likelihood's normaliser runs over the whole catalogue. It is estimated from items sampled for each event from a proposal close to the
answer, each weighted by the inverse of its expected number of draws, so that every event of the slice can be used. An estimator's weight
may not be negative: a negative weight would compensate another estimator's error by contradicting this one's evidence.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT, CalibrationLayout, trait_columns
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data import history_traits
from scalr_prod.translator.data.history_traits import TRAITS
from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.multinomial_logit import ChoiceData, LogitColumns, fit_logit
from scalr_prod.translator.worker_pool import INLINE, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.data.training_pairs import LazyContexts
    from scalr_prod.translator.module import TranslatorModule


#: Names of the calibration tables in a version: for users whose target events the parameters have seen, and for held-out users of any
#: fold. Each fold has its own table as well, see `fold_table_name`.
CALIBRATION_TABLES: Final = ("shared/calibration/all", "shared/calibration/held_out")

#: Items sampled for the normaliser of each event, and the maximum number of events used.
NEGATIVES_PER_EVENT: Final = 512
MAX_EVENTS: Final = 8_000
#: Minimum number of held-out users' events for which a separate table is fitted.
MIN_HELD_OUT_EVENTS: Final = 50
#: Events whose candidates are drawn at a time: few enough that the scores of all items stay near the processor's cache.
_CHUNK_ROWS: Final = 64
_FEATURES: Final = len(popularity.FEATURES)


def uncalibrated_tables(layout: CalibrationLayout = BUILTIN_LAYOUT) -> dict[str, torch.Tensor]:
    """Return the tables of a module that is not calibrated yet: every component is plain popularity."""
    mean, spread = history_traits.trait_moments(torch.empty(0, len(TRAITS)))
    return {name: _popularity_table(layout) for name in CALIBRATION_TABLES} | {
        "shared/tastes/mean": mean,
        "shared/tastes/spread": spread,
    }


@dataclass(frozen=True)
class CalibrationEvents:
    """R target events that calibration tables are fitted on.

    Attributes:
        contexts: [R], before the events, with fold -1.
        labels: int32 [R]. The events' target indices, none of them excluded. Items not seen before their event are skipped.
        held_out: bool [R]. Rows of held-out users.
        fold: int32 [R]. Fold of each row's user; None: no fold gets its own table.
        weight: float32 [R]. Weight of each event; None: 1 each.
    """

    contexts: Contexts | LazyContexts
    labels: NDArray[np.int32]
    held_out: NDArray[np.bool_]
    fold: NDArray[np.int32] | None = None
    weight: NDArray[np.float32] | None = None


def calibrate(
    module: TranslatorModule,
    events: CalibrationEvents,
    *,
    seed: int,
    workers: WorkerPool = INLINE,
    components: Sequence[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Fit the calibration tables and the scaling of history traits.

    Args:
        module: Module whose set -1 was fitted on the events before that slice, without the held-out users' target events.
        events: Events of the next slice.
        seed: Seed of the samples.
        workers: Pool that runs the units of work: blocks of rows, then components of tables.
        components: Components whose rows of the tables are fitted; the other rows are plain popularity. Default: all.

    Returns:
        Tensors by their names in a version: `CALIBRATION_TABLES`, float32 [components, weights], for set -1 (fitted on all rows) and for
        held-out users (fitted on held-out rows if there are enough); `fold_table_name` for each fold's set (fitted likewise on the rows
        of the other folds); ``shared/tastes/mean`` and ``spread`` [T], which standardise the traits. `uncalibrated_tables` where
        no label is eligible.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _eligible_rows(module, events.contexts.event_time, events.labels, generator)
    if not len(rows):
        return uncalibrated_tables(module.layout)
    contexts, labels, held_out = events.contexts.take(rows), events.labels[rows], events.held_out[rows]
    traits = history_traits.raw_traits(
        module.parameter_set(-1).traits, ContextBatch.from_contexts(contexts, module.first_seen)
    ).cpu()
    mean, spread = history_traits.trait_moments(traits)
    # Each block takes whole rows of the catalogue. A GPU has memory for one block at a time.
    values, log_q = _candidates(module, contexts, labels, generator, workers if module.device.type == "cpu" else INLINE)
    # Scaled by the sampled items only: a fold's events must not influence other folds' tables, not even through the unit of a score.
    # Popularity alone has no scores to scale, and torch warns about the spread of nothing.
    scale = values[:, :-_FEATURES, 1:].std((0, 2)).clamp(min=1e-12) if module.estimators else values.new_ones(0)
    values[:, :-_FEATURES] /= scale[:, None]
    counts = None if events.weight is None else torch.from_numpy(events.weight[rows])[:, None]
    choices = ChoiceData.from_tensors(values, history_traits.standardize_traits(traits, mean, spread), log_q, counts)
    all_rows = np.ones(len(rows), bool)
    rows_by_table = {CALIBRATION_TABLES[0]: all_rows, CALIBRATION_TABLES[1]: _held_out_or_all(held_out, all_rows)}
    folds = np.full(len(rows), -1) if events.fold is None else events.fold[rows]
    for number in [] if events.fold is None else np.unique(events.fold).tolist():
        other_folds = folds != number
        rows_by_table[fold_table_name(number)] = _held_out_or_all(held_out & other_folds, other_folds)
    tables = _fit_tables(module, choices, rows_by_table, workers, components)
    for table in tables.values():
        table[:, [module.layout.weights.index(name) for name in module.estimators]] /= scale
    return tables | {"shared/tastes/mean": mean, "shared/tastes/spread": spread}


def fold_table_name(fold: int) -> str:
    """Return the name of a fold's own table, which is fitted without the fold's users."""
    return f"{fold}/calibration/held_out"


def _held_out_or_all(held_out: NDArray[np.bool_], all_rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the rows of held-out users if there are enough of them for a table, else all rows."""
    return held_out if held_out.sum() >= max(MIN_HELD_OUT_EVENTS, min(200, all_rows.sum() // 10)) else all_rows


def _popularity_table(layout: CalibrationLayout) -> torch.Tensor:
    table = torch.zeros(len(layout.components), len(layout.weights))
    table[:, layout.weights.index("count")] = 1
    return table


def _eligible_rows(
    module: TranslatorModule, time: NDArray[np.int64], labels: NDArray[np.int32], generator: torch.Generator
) -> NDArray[np.int64]:
    """Return at most `MAX_EVENTS` rows whose label is eligible, sorted by time: int64."""
    label = torch.from_numpy(labels.astype(np.int64))
    eligible = torch.searchsorted(module.first_seen.cpu(), torch.from_numpy(time))
    rows = torch.nonzero((label >= 0) & (label < eligible))[:, 0]
    if len(rows) > MAX_EVENTS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MAX_EVENTS].sort().values]
    selected: NDArray[np.int64] = rows.numpy()
    return selected[np.argsort(time[selected], kind="stable")]


def _candidates(
    module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32], generator: torch.Generator, workers: WorkerPool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and features of the label and the sampled items [R, E + F, 1 + M], and log expected draws [R, 1 + M]."""
    all_contexts = ContextBatch.from_contexts(contexts, module.first_seen)
    label = torch.from_numpy(labels.astype(np.int64))
    n_drawn = min(NEGATIVES_PER_EVENT, module.n_target)
    blocks = torch.arange(len(label)).split(_CHUNK_ROWS)
    # Each block has its own seed, so that it depends on no other block.
    seeds = torch.randint(2**62, (len(blocks),), generator=generator).tolist()
    inputs = _CandidateInputs(module, all_contexts, label, n_drawn)

    # At most a quarter of a GB; each block writes to its own rows.
    values = torch.empty(len(label), len(module.estimators) + _FEATURES, 1 + n_drawn)
    log_q = torch.empty(len(label), 1 + n_drawn)

    drawn = workers.map(_draw_candidates, inputs, zip(blocks, seeds, strict=True))
    for block, (block_values, block_log_q) in zip(blocks, drawn, strict=True):
        values[block], log_q[block] = block_values, block_log_q
    return values, log_q


@dataclass(frozen=True)
class _CandidateInputs:
    """What candidates are drawn for.

    Attributes:
        module: The module.
        contexts: [R].
        label: int64 [R].
        n_drawn: M.
    """

    module: TranslatorModule
    contexts: ContextBatch
    label: torch.Tensor
    n_drawn: int


@torch.inference_mode()
def _draw_candidates(inputs: _CandidateInputs, unit: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `_candidates` of a block of rows, drawn with a seed."""
    (block, seed), n_drawn, device = unit, inputs.n_drawn, inputs.module.device
    mixture, batch = inputs.module.parameter_set(-1), inputs.contexts.take(block.to(device))
    scores = [mixture.estimator_scores(name, batch) for name in mixture.estimators]
    times, at = torch.unique(batch.time, return_inverse=True)
    counts = mixture.log_counts(times)
    # On the CPU, so that every device draws the same items up to rounding.
    q = _proposal(scores, counts, at, batch).cpu()
    negative = torch.multinomial(q, n_drawn, replacement=True, generator=torch.Generator().manual_seed(seed))
    candidates = torch.cat([inputs.label[block, None], negative], 1)
    log_n = torch.log(n_drawn * q.gather(1, candidates))
    log_n[:, 0] = 0
    log_n[:, 1:][negative == candidates[:, :1]] = torch.inf
    device_candidates = candidates.to(device)
    counts = {name: x[at[:, None], device_candidates] for name, x in counts.items()}
    features = [popularity.feature_values(counts, name) for name in popularity.FEATURES]
    return torch.stack([*(x.gather(1, device_candidates) for x in scores), *features], 1).cpu(), log_n


def _proposal(
    scores: list[torch.Tensor], counts: dict[str, torch.Tensor], at: torch.Tensor, batch: ContextBatch
) -> torch.Tensor:
    """Blend rough distributions to sample from: popularity, recent popularity, and each estimator on top of recent popularity.

    Args:
        scores: Each [B, N].
        counts: Logarithms of the counts as of U times: each [U, N].
        at: int64 [B]. Number of each row's time.
        batch: B contexts.
    """
    ineligible = batch.ineligible_mask(counts["count"].shape[1])
    recent = 0.2 * counts["count"] + 0.4 * counts["days_90"] + 0.3 * counts["days_20"]
    total = (0.5 * counts["count"])[at].masked_fill_(ineligible, -torch.inf).softmax(1)
    total += (recent + 0.3 * counts["days_3"])[at].masked_fill_(ineligible, -torch.inf).softmax(1)
    recent = recent[at]
    for s in scores:
        centred = s - s.mean()
        scale = 0.3 * math.sqrt(s.numel()) / centred.norm().clamp(min=1e-12)
        total += torch.addcmul(recent, centred, scale).masked_fill_(ineligible, -torch.inf).softmax(1)
    return total.div_(2 + len(scores))


def _fit_tables(
    module: TranslatorModule,
    choices: ChoiceData,
    rows_by_table: dict[str, NDArray[np.bool_]],
    workers: WorkerPool,
    components: Sequence[str] | None,
) -> dict[str, torch.Tensor]:
    """Fit the named tables on standardised scores, each on its own rows. A unit of work is one component of one table."""
    scored = list(module.estimators)
    features = list(popularity.FEATURES if module.has_popularity else popularity.FEATURES[:1])
    terms: dict[str, tuple[list[str], list[str]]] = {"mixture": ([*scored, *features], features), "popularity": (features, [])}
    terms |= {name: ([name, "count"], []) for name in scored}
    if components is not None:
        terms = {name: terms[name] for name in components}
    # Tables of the same rows are fitted once.
    choices_by_rows = {rows.tobytes(): choices.take(torch.from_numpy(np.flatnonzero(rows))) for rows in rows_by_table.values()}

    inputs = _TableInputs(choices_by_rows, module.layout, terms, scored)
    units = list(itertools.product(choices_by_rows, terms))
    tables = {rows: _popularity_table(module.layout) for rows in choices_by_rows}
    for (rows, component), weights in zip(units, workers.map(_fit_component, inputs, units), strict=True):
        tables[rows][module.layout.components.index(component)] = weights
    return {name: tables[rows.tobytes()].clone() for name, rows in rows_by_table.items()}


@dataclass(frozen=True)
class _TableInputs:
    """What tables are fitted on.

    Attributes:
        choices: Rows → the choices in them.
        layout: Layout of the tables.
        terms: Component → names with a weight, and those among them whose weight the traits modify.
        scored: Names of the estimators.
    """

    choices: dict[bytes, ChoiceData]
    layout: CalibrationLayout
    terms: dict[str, tuple[list[str], list[str]]]
    scored: list[str]


def _fit_component(inputs: _TableInputs, unit: tuple[bytes, str]) -> torch.Tensor:
    """Fit one component's row of the table of some rows."""
    (rows, component), scored = unit, inputs.scored
    choices, names, (plain, tilted) = inputs.choices[rows], inputs.layout.weights, inputs.terms[component]
    columns = {name: column for column, name in enumerate([*scored, *popularity.FEATURES])}
    logit_columns = LogitColumns([columns[x] for x in plain], [columns[x] for x in tilted], [x in scored for x in plain])
    weights = fit_logit(choices, logit_columns)
    row = torch.zeros(len(names))
    row[[names.index(name) for name in plain]] = weights[0]
    for trait, tilt in zip(TRAITS, weights[1:], strict=False):  # empty if no trait modifies a weight
        row[[names.index(trait_columns(trait)[popularity.FEATURES.index(name)]) for name in tilted]] = tilt[-len(tilted) :]
    return row
