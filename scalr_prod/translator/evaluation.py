# SPDX-License-Identifier: Apache-2.0
"""Backtest of a version's recipe: fit, calibrate on the next slice, fit again, and measure on the slice after that."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.errors import TranslatorError
from scalr_prod.translator import training_budget
from scalr_prod.translator.dask_pool import open_training_pool
from scalr_prod.translator.data.event_log import read_event_log
from scalr_prod.translator.registry import resolve_version
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    label_rows_between,
    measure_components,
    time_quantile,
)

if TYPE_CHECKING:
    from scalr_prod.config import Settings


@dataclass(frozen=True)
class BacktestReport(Jsonable):
    """Metrics of the mixture and of each estimator alone.

    Attributes:
        version: The version whose recipe and data were used.
        slices: Slice (``validation``, on which the weights were fitted; ``test``, which is later) → ``from``, ``to`` and, for each group of
            users (``all``; ``cold``: no target event before the slice; ``warm``) → component → metrics (see `metrics`);
            ``reliability``: observed rates of cold users by class of the mixture's probability (see `reliability`).
        weights: Weights of the mixture by name, for users with and without target events in training.
        seconds: Wall-clock time.
    """

    version: int
    slices: dict[str, dict[str, Any]] = field(repr=False)
    weights: dict[str, dict[str, float]]
    seconds: float


def evaluate(settings: Settings, version: int | None = None, *, progress: bool = False) -> BacktestReport:
    """Measure the recipe of a version on the latest events that it knows.

    With f the ``validation_fraction``: parameters are fitted on the target events before the last 2 f of them, the calibration on the
    next f. With that calibration frozen, the parameters are fitted again up to the last f, where they are measured. Half of
    the users, by hash, have no target event in training ("cold").

    Args:
        settings: The project's settings.
        version: The version whose ``trained_until`` is used; default: the latest.
        progress: Show a progress bar on stderr.

    Raises:
        TranslatorNotFound: The version does not exist.
        TranslatorError: Too few events for three slices.
    """
    started = time.perf_counter()
    resolved = resolve_version(settings, version)
    log = read_event_log(settings, resolved.trained_until)
    fraction = settings.translator.validation_fraction
    begin, middle, end = (
        time_quantile(log.label_times(), 1 - 2 * fraction),
        time_quantile(log.label_times(), 1 - fraction),
        to_micros(resolved.trained_until),
    )
    if not log.target.time.min() < begin < middle:
        raise TranslatorError(
            f"{len(log.target)} target events are too few to fit, calibrate and measure on three slices of time",
            where=str(resolved.path),
            next_step="ingest more target events, or raise translator.validation_fraction",
        )
    cold = log.sample_users(2)
    earlier_slice, later_slice = calibration_slice(settings, log, begin, middle), calibration_slice(settings, log, middle, end)
    rows = label_rows_between(log, middle, end)
    work = sum(training_budget.estimate_training_work(slice_, 1) for slice_ in (earlier_slice, later_slice))
    with (
        open_training_pool(settings, command="scalr translator evaluate") as pool,
        track("evaluation", show=progress, total=work, unit="") as done,
    ):
        earlier, later = fit_shared([earlier_slice, later_slice], pool, done)
        calibrated = fit_calibration(settings, earlier, cold, done, pool)
        pairs = later.pairs
        tensors = fit_parameter_sets(pairs, {-1: cold}, done, pool, shared=later) | calibrated.tables
        test = measure_components(settings, log, pairs, tensors, rows, cold, pool)
        done(training_budget.estimate_calibration_work(len(rows)))
    slices = {"validation": (begin, middle, calibrated.metrics), "test": (middle, end, test)}
    return BacktestReport(
        version=resolved.version,
        slices={
            name: {
                "from": micros_to_datetime(first).isoformat(),
                "to": micros_to_datetime(last).isoformat(),
                **{group: {component: row.to_json() for component, row in rows.items()} for group, rows in groups.items()},
                "reliability": [class_.to_json() for class_ in groups["cold"]["mixture"].reliability],
            }
            for name, (first, last, groups) in slices.items()
        },
        weights=calibrated.weights(),
        seconds=round(time.perf_counter() - started, 2),
    )
