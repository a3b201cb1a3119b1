# SPDX-License-Identifier: Apache-2.0
"""Steps of training: fit parameter sets on a slice of the log, calibrate one on the next slice, and measure it.

`training`, `evaluation` and `challenger_test` combine these steps.
"""

from __future__ import annotations

import itertools
import json
import logging
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.memory import release_memory
from scalr_prod.errors import ScalrError, TranslatorError
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.translator import information_gain, training_budget
from scalr_prod.translator.calibration import CALIBRATION_TABLES, CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.calibration_table import CalibrationLayout
from scalr_prod.translator.data import history_traits
from scalr_prod.translator.data.training_pairs import LazyContexts, TrainingSlice, contexts_and_labels
from scalr_prod.translator.devices import with_cpu_fallback
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, popularity, scored_estimators
from scalr_prod.translator.estimators.bundled_source import LoadedEstimators, bundle_sources
from scalr_prod.translator.information_gain import LabelledContexts, OverPopularity, OwnOverOthers
from scalr_prod.translator.metrics import DistributionMetrics, measure
from scalr_prod.translator.module import TrainingModule
from scalr_prod.translator.training_device import training_device
from scalr_prod.translator.worker_pool import INLINE, WorkerPool, ignore_progress, report_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.translator.data.event_log import EventLog
    from scalr_prod.translator.data.training_pairs import Parameters
    from scalr_prod.translator.estimators.bundled_source import BundledSource
    from scalr_prod.translator.module import TranslatorModule


logger = logging.getLogger(__name__)

#: Maximum number of events that metrics are measured on: the standard error of an NLL is then about .01 nats at most.
MAX_MEASURED_EVENTS: Final = 50_000
#: The same for each estimator alone, whose metrics decide nothing: a standard error of about .04 nats.
MAX_EVENTS_ALONE: Final = 2_000
#: Tables that all sets share. They are large for a long log, so they are not fitted in `fit_shared`.
_TABLES: Final[dict[str, Callable[[TrainingSlice], Parameters]]] = {"popularity": popularity.fit, "tastes": history_traits.fit}


@dataclass(frozen=True)
class FittedCalibration:
    """Calibration tables by name, usable with any parameter sets of the same recipe, and the metrics of the slice they were fitted on.

    Attributes:
        tables: Tables by name.
        layout: Layout of the tables.
        metrics: Metrics of every component, see `measure_components`.
        over_popularity: Information of source histories over popularity; None if it was not measured.
    """

    tables: dict[str, torch.Tensor]
    layout: CalibrationLayout
    metrics: dict[str, dict[str, DistributionMetrics]]
    over_popularity: OverPopularity | None = None

    def weights(self) -> dict[str, dict[str, float]]:
        """Return the mixture's weights by name, for users with and without target events in training (``all``, ``held_out``)."""
        return {
            name.rpartition("/")[2]: dict(
                zip(self.layout.weights, (round(x, 5) for x in self.tables[name][0].tolist()), strict=True)
            )
            for name in CALIBRATION_TABLES
        }


@dataclass(frozen=True)
class SharedParameters:
    """Tensors that all parameter sets of a slice share, fitted on source events only.

    Attributes:
        pairs: The slice.
        estimators: Estimators by name, those that take longest first, so that short fits fill the gaps at the end.
        parameters: Estimator → its tensors.
    """

    pairs: TrainingSlice
    estimators: LoadedEstimators
    parameters: dict[str, Parameters]


def time_quantile(time: NDArray[np.int64], fraction: float) -> int:
    """Return the time (µs) before which a share of the events lies."""
    ordered = np.sort(time)
    return int(ordered[min(int(fraction * len(ordered)), len(ordered) - 1)])


def weights_metadata(settings: Settings, pairs: TrainingSlice, folds: int) -> dict[str, str]:
    """Return the metadata of the weights' file."""
    return {
        "folds": str(folds),
        "history_length": str(settings.histories.length),
        "estimators": json.dumps(list(settings.translator.estimators)),
        "n_source": str(pairs.n_source),
        **CalibrationLayout.from_estimators(settings.translator.estimators).to_metadata(),
        **_describe_bundled(bundle_sources(settings.translator.estimators)),
    }


def _describe_bundled(estimators: Mapping[str, BundledSource]) -> dict[str, str]:
    """Describe estimators of other packages; empty if there are none, so that such versions keep the same bytes."""
    return {"carried": json.dumps({name: source.to_metadata() for name, source in estimators.items()})} if estimators else {}


def fit_shared(
    slices: Sequence[TrainingSlice], workers: WorkerPool = INLINE, on_progress: Callable[[float], None] = ignore_progress
) -> list[SharedParameters]:
    """Fit the tensors that all parameter sets of a slice share, on source events only. Each estimator of each slice is a unit of work.

    The longest unit, the sequential estimator's pretraining, has one thread; those of several slices run concurrently.

    Args:
        slices: The slices.
        workers: Pool that runs the units.
        on_progress: Called, in any thread, with the work done since its last call, see `training_budget`.
    """
    # Each slice has its own instances, since an instance may cache data of its slice.
    instances = [LoadedEstimators.from_names(reversed(scored_estimators(pairs.settings.estimators))) for pairs in slices]
    units = list(itertools.product(instances[0], range(len(slices))))
    fitted = workers.map(_fit_shared, list(zip(slices, instances, strict=True)), units, on_progress)
    parameters_by_unit = dict(zip(units, fitted, strict=True))
    return [
        SharedParameters(pairs, instances[n], {name: parameters_by_unit[name, n] for name in instances[n]})
        for n, pairs in enumerate(slices)
    ]


def _fit_shared(inputs: Sequence[tuple[TrainingSlice, LoadedEstimators]], unit: tuple[str, int]) -> Parameters:
    name, number = unit
    pairs, estimators = inputs[number]
    with _name_in_errors(name), report_progress(training_budget.estimate_shared_work(name, pairs)):
        parameters: Parameters = estimators[name].share(pairs)
        release_memory()
        return parameters


def fit_parameter_sets(
    pairs: TrainingSlice,
    held_out: dict[int, NDArray[np.bool_]],
    on_progress: Callable[[float], None],
    workers: WorkerPool = INLINE,
    *,
    shared: SharedParameters | None = None,
) -> dict[str, torch.Tensor]:
    """Fit parameter sets on one slice. Popularity, tastes, and each estimator of each set are units of work.

    Args:
        pairs: The slice.
        held_out: Set number → bool [U], users whose target events must not shape it. Popularity as of an event is no parameter of a
            set: it counts all users' earlier events.
        on_progress: Called, in any thread, with the work done since its last call, see `training_budget`.
        workers: Pool that runs the units.
        shared: Result of `fit_shared` for the slice; default: it is fitted here.

    Returns:
        Tensors named as `Mixture.from_tensors` expects them, without calibration.
    """
    import torch

    tensors = {"shared/first_seen": torch.from_numpy(pairs.first_seen)}
    shared = shared or fit_shared([pairs], workers)[0]
    slices = {number: pairs.without_users(users) for number, users in held_out.items()}
    tensors |= {f"{number}/popularity/prior": popularity.log_popularity(slice_) for number, slice_ in slices.items()}

    units = [*itertools.product(slices, shared.estimators), *((None, name) for name in _TABLES)]
    for parameters in workers.map(_fit_parameters, (shared, slices), units, on_progress):
        tensors |= parameters
    # Shared tensors that the sets override were only initial values.
    overridden = {name.partition("/")[2] for name in tensors if not name.startswith("shared/")}
    for name, parts in shared.parameters.items():
        tensors |= {
            key: x for key, x in _prefixed(f"shared/{name}", parts).items() if key.removeprefix("shared/") not in overridden
        }
    return tensors


def _fit_parameters(
    inputs: tuple[SharedParameters, dict[int, TrainingSlice]], unit: tuple[int | None, str]
) -> dict[str, torch.Tensor]:
    """Fit an estimator of one set, or a table that all sets share."""
    (shared, slices), (number, name) = inputs, unit
    pairs = shared.pairs
    if number is None:
        with report_progress(training_budget.estimate_shared_work(name, pairs)):
            parameters = _prefixed(f"shared/{name}", _TABLES[name](pairs))
    else:
        with _name_in_errors(name), report_progress(training_budget.estimate_fit_work(name, pairs)):
            parameters = _prefixed(f"{number}/{name}", shared.estimators[name].fit(slices[number], shared.parameters[name]))
    release_memory()
    return parameters


@contextmanager
def _name_in_errors(name: str) -> Iterator[None]:
    """Name an estimator of another package in the errors of its fit.

    Raises:
        TranslatorError: The estimator failed.
    """
    try:
        yield
    except (ScalrError, CancelledError):
        raise
    except Exception as error:
        if name in BUILTIN_ESTIMATORS:
            raise
        raise TranslatorError(
            f"the estimator {name} could not be fitted: {type(error).__name__}: {error}",
            where=ESTIMATORS.setting,
            next_step="correct its share and fit: see scalr_prod.translator.Estimator",
        ) from error


def _prefixed(prefix: str, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Copied, since numpy's memory begins anywhere and torch's at multiples of 64 bytes: a product's rounding may depend on the alignment.
    # One at a time, so that a large array is freed as soon as it is copied.
    remaining = dict(parameters)
    del parameters
    return {f"{prefix}/{key}": remaining.pop(key).clone() for key in list(remaining)}


def calibration_slice(settings: Settings, log: EventLog, begin: int, end: int) -> TrainingSlice:
    """Build the slice before ``begin``, for `fit_calibration` on ``[begin, end)``.

    Raises:
        TranslatorError: There is too little data.
    """
    label_rows_between(log, begin, end)  # before any work
    device = training_device(settings.compute.device)
    return TrainingSlice.from_log(log, begin, settings.translator, popularity_until=end, device=device)


def fit_calibration(
    settings: Settings,
    shared: SharedParameters,
    held_out: NDArray[np.bool_],
    on_progress: Callable[[float], None],
    workers: WorkerPool = INLINE,
    *,
    with_information: bool = False,
) -> FittedCalibration:
    """Fit one set on a slice without the held-out users' target events, and its calibration on the slice after it.

    Held-out users are drawn from every fold, so that each fold's mixture weights can be fitted on held-out users of the other folds.

    Args:
        settings: The project's settings.
        shared: Result of `fit_shared` for a `calibration_slice`.
        held_out: bool [U].
        on_progress: See `fit_parameter_sets`.
        workers: Pool that runs the units.
        with_information: Also measure the information over popularity.

    Raises:
        TranslatorError: One of the two slices is empty.
    """
    pairs = shared.pairs
    log, begin, end = pairs.log, pairs.until, pairs.popularity_until
    tensors = fit_parameter_sets(pairs, {-1: held_out}, on_progress, workers, shared=shared)
    rows = label_rows_between(log, begin, end)
    contexts = LazyContexts(log, rows, pairs.source_index, pairs.target_index, asked_at=begin)
    user = log.target.user[rows]
    layout, metadata = CalibrationLayout.from_estimators(settings.translator.estimators), weights_metadata(settings, pairs, 0)
    weights, seed = log.label_weights(end), settings.translator.seed
    events = CalibrationEvents(
        contexts, contexts.labels, held_out[user], log.fold[user], None if weights is None else weights[rows]
    )

    def tables_on(device: str) -> dict[str, torch.Tensor]:
        module = TrainingModule(tensors | uncalibrated_tables(layout), metadata, device)
        release_memory()
        return calibrate(module, events, seed=seed, workers=workers)

    tables = with_cpu_fallback(pairs.device, tables_on)
    metrics = measure_components(settings, log, pairs, tensors | tables, rows, held_out, workers)
    over_popularity = None
    if with_information:
        later_events = _labelled_contexts(pairs, log.sample_by_weight(rows, end, seed), held_out)
        over_popularity = with_cpu_fallback(
            pairs.device,
            lambda device: information_gain.measure_over_popularity(
                tensors, metadata, later_events, seed=seed, device=device, workers=workers
            ),
        )
    on_progress(training_budget.estimate_calibration_work(len(rows)))
    return FittedCalibration(tables, layout, metrics, over_popularity)


def measure_own_over_others(
    settings: Settings,
    pairs: TrainingSlice,
    tensors: dict[str, torch.Tensor],
    held_out: dict[int, NDArray[np.bool_]],
    workers: WorkerPool = INLINE,
) -> OwnOverOthers:
    """Measure the information of own over others' histories with the parameter sets of a slice.

    Args:
        settings: The project's settings.
        pairs: The slice.
        tensors: Result of `fit_parameter_sets`.
        held_out: Set number → bool [U], users whose target events did not shape it. No user is held out from two sets.
        workers: Pool that runs the units.
    """
    log, end, seed = pairs.log, pairs.popularity_until, settings.translator.seed
    parameter_sets = []
    for number, users in held_out.items():
        rows = np.flatnonzero(log.is_label & users[log.target.user] & (log.target.time < end))
        events = _labelled_contexts(pairs, log.sample_by_weight(rows, end, seed), users)
        parameter_sets.append((_only_set(tensors, number), events))
    metadata = weights_metadata(settings, pairs, 0)
    return with_cpu_fallback(
        pairs.device,
        lambda device: information_gain.measure_own_over_others(
            parameter_sets, metadata, seed=seed, device=device, workers=workers
        ),
    )


def _only_set(tensors: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Return the shared tensors, and those of one set as set -1."""
    shared = {name: tensor for name, tensor in tensors.items() if name.startswith("shared/")}
    own = {name.removeprefix(f"{number}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{number}/")}
    return shared | {f"-1/{name}": tensor for name, tensor in own.items()}


def _labelled_contexts(pairs: TrainingSlice, rows: NDArray[np.int64], held_out: NDArray[np.bool_]) -> LabelledContexts:
    """Collect the events at positions in ``log.target``."""
    log = pairs.log
    contexts, user = LazyContexts(log, rows, pairs.source_index, pairs.target_index), log.target.user[rows]
    return LabelledContexts(contexts, contexts.labels, user, held_out[user])


def label_rows_between(log: EventLog, begin: int, end: int) -> NDArray[np.int64]:
    """Return the positions of the labels with ``begin <= time < end``.

    Raises:
        TranslatorError: There are none.
    """
    rows = np.flatnonzero(log.is_label & (log.target.time >= begin) & (log.target.time < end))
    if not len(rows):
        raise TranslatorError(
            f"no target event is in [{np.datetime64(begin, 'us')}, {np.datetime64(end, 'us')})",
            where="the validation slice",
            next_step="ingest more target events, or raise translator.validation_fraction",
        )
    return rows


def measure_components(
    settings: Settings,
    log: EventLog,
    pairs: TrainingSlice,
    tensors: dict[str, torch.Tensor],
    rows: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    workers: WorkerPool = INLINE,
) -> dict[str, dict[str, DistributionMetrics]]:
    """Measure every component: group of users (``all``, ``cold`` = held out, ``warm``) → component → metrics.

    Events with different weights are sampled in proportion to them. At most `MAX_MEASURED_EVENTS` events are used, and at most
    `MAX_EVENTS_ALONE` of them for each estimator alone.

    Events are scored as in a run: all as of the slice's end, without knowing when they will happen; held-out users with parameters that
    never saw them, and their fold's own table.
    """
    folds = settings.translator.folds
    parameters = {name.removeprefix("-1/"): tensor for name, tensor in tensors.items() if name.startswith("-1/")}
    fold_parameters = {f"{fold}/{name}": tensor for fold in range(folds) for name, tensor in parameters.items()}
    seed = settings.translator.seed
    rows = log.sample_by_weight(rows, int(log.target.time[rows].max()) + 1, seed)
    rng = np.random.default_rng(seed)
    if len(rows) > MAX_MEASURED_EVENTS:
        rows = np.sort(rng.choice(rows, MAX_MEASURED_EVENTS, replace=False))
    user = log.target.user[rows]
    cold = held_out[user]
    fold = np.where(cold, log.fold[user], -1).astype(np.int32)
    contexts, labels = contexts_and_labels(
        log, rows, source_index=pairs.source_index, target_index=pairs.target_index, fold=fold, asked_at=pairs.until
    )
    groups = {"all": np.ones(len(rows), bool), "cold": cold, "warm": ~cold}
    few = np.sort(rng.permutation(len(rows))[:MAX_EVENTS_ALONE])

    def figures_on(device: str) -> dict[str, dict[str, DistributionMetrics]]:
        module = TrainingModule(tensors | fold_parameters, weights_metadata(settings, pairs, folds), device)
        names = component_names(module)
        alone = [name for name in names if name in module.estimators]
        found = measure(module, contexts, labels, groups, [name for name in names if name not in alone], workers)
        if not alone:
            return found
        of_few = {group: mask[few] for group, mask in groups.items()}
        found_alone = measure(module, contexts.take(few), labels[few], of_few, alone, workers)
        return {group: {name: (found[group] | found_alone[group])[name] for name in names} for group in groups}

    return with_cpu_fallback(pairs.device, figures_on)


def component_names(module: TranslatorModule) -> list[str]:
    """Return the names of the mixture and of its components."""
    return [component for component in module.layout.components if component in {"mixture", "popularity", *module.estimators}]
