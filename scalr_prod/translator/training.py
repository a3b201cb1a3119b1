# SPDX-License-Identifier: Apache-2.0
"""Entry point of training: `train` builds a version, or reuses the one with the same inputs.

A version is calibrated on the latest events with parameters fitted on the earlier ones. Then every parameter set is fitted on all events
(`trainer`), and the version is written to the `registry` and recorded in the ledger.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.core.memory import release_memory
from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator import training_budget
from scalr_prod.translator.dask_pool import open_training_pool
from scalr_prod.translator.data.event_log import EventLog, read_event_log, target_weighting, training_consent
from scalr_prod.translator.data.training_pairs import TrainingSlice, VocabularyCoverage
from scalr_prod.translator.devices import describe_device
from scalr_prod.translator.estimators.bundled_source import bundle_sources
from scalr_prod.translator.information_gain import InformationGain
from scalr_prod.translator.registry import (
    ItemVocabulary,
    TranslatorVersion,
    find_by_fingerprint,
    record_version,
    write_version,
)
from scalr_prod.translator.train_report import TrainReport
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    measure_own_over_others,
    time_quantile,
    weights_metadata,
)
from scalr_prod.translator.training_device import training_device
from scalr_prod.translator.training_inputs import (
    compute_fingerprint,
    count_events,
    default_trained_until,
    table_versions,
    training_inputs,
)
from scalr_prod.workspace import staging_folder

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.translator.worker_pool import WorkerPool


logger = logging.getLogger(__name__)


def train(settings: Settings, *, trained_until: datetime | None = None, progress: bool = False) -> TrainReport:
    """Train a version, or return the existing one that was trained from the same inputs.

    Args:
        settings: The project's settings.
        trained_until: Only events that had happened and were known before this time are read. Default: see `default_trained_until`.
        progress: Show a progress bar on stderr.

    Raises:
        NoCommonUsers: The domains share no user.
        TranslatorError: There is too little data; or an estimator of another package cannot be loaded, which is checked first.
        TableNotFound: Nothing was ingested yet.
    """
    started = time.perf_counter()
    until = (trained_until or default_trained_until(settings)).astimezone(UTC)
    inputs, data_versions = training_inputs(settings, until), table_versions(settings)
    with staging_folder(settings, "translator") as folder:
        fingerprint = compute_fingerprint(settings, inputs, data_versions, until, folder)
    version = find_by_fingerprint(settings, fingerprint)
    reused = version is not None
    if version is None:
        with open_training_pool(settings, command="scalr translator train") as pool:
            version = _train(settings, until, fingerprint, inputs, data_versions, pool, progress=progress)
    record_version(settings, version)
    return TrainReport.from_version(version, reused=reused, seconds=round(time.perf_counter() - started, 2))


def _train(
    settings: Settings,
    until: datetime,
    fingerprint: str,
    inputs: dict[str, Any],
    data_versions: dict[str, int],
    pool: WorkerPool,
    *,
    progress: bool,
) -> TranslatorVersion:
    consent = training_consent(settings)
    log = read_event_log(settings, until, versions=data_versions)
    release_memory()
    recommended = _count_dropped(settings, log)
    folds = settings.translator.folds
    end = to_micros(until)
    pairs = TrainingSlice.from_log(log, end, settings.translator, device=training_device(settings.compute.device))
    coverage = pairs.coverage()
    _warn_if_vocabulary_limited(coverage)
    # Calibrate under the conditions of a run: hold out the target events of as many users as one fold has.
    begin = time_quantile(log.label_times(), 1 - settings.translator.validation_fraction)
    before = calibration_slice(settings, log, begin, end)
    work = training_budget.estimate_training_work(before, 1) + training_budget.estimate_training_work(pairs, folds + 1)
    with track("translator", show=progress, total=work, unit="") as done:
        shared_before, shared = fit_shared([before, pairs], pool, done)
        held_out = {fold: log.fold == fold for fold in range(-1, folds)}
        calibrated, tensors = pool.run_concurrently(
            lambda: fit_calibration(settings, shared_before, log.sample_users(folds), done, pool, with_information=True),
            lambda: fit_parameter_sets(pairs, held_out, done, pool, shared=shared),
        )
        folds_held_out = {fold: users for fold, users in held_out.items() if fold >= 0}
        own_over_others = measure_own_over_others(settings, pairs, tensors, folds_held_out, pool)
        tensors |= calibrated.tables
    metrics: dict[str, Any] = {
        "slice": "validation",
        "from": micros_to_datetime(begin).isoformat(),
        "to": until.isoformat(),
        **{group: {name: row.to_json() for name, row in rows.items()} for group, rows in calibrated.metrics.items()},
    }
    # Like the calibration curve, of users whose target events shaped neither the parameters nor the calibration weights.
    metrics["reliability"] = [class_.to_json() for class_ in calibrated.metrics["cold"]["mixture"].reliability]
    sources = bundle_sources(settings.translator.estimators)
    if calibrated.over_popularity is not None:
        metrics["information"] = InformationGain(own_over_others, calibrated.over_popularity).to_json()
    manifest = {
        "fingerprint": fingerprint,
        "inputs": inputs,
        "trained_until": until.isoformat(),
        "folds": folds,
        "history_length": settings.histories.length,
        "n_source": pairs.n_source,
        "n_target": pairs.n_target,
        "estimators": list(settings.translator.estimators),
        "exclude_consumed": log.exclude_consumed,
        "metrics": metrics,
        # Measured on users whose target events shaped neither the parameters nor the calibration weights.
        "calibration_curve": [bin_.to_json() for bin_ in calibrated.metrics["cold"]["mixture"].calibration_curve],
        "vocabulary": {domain: asdict(counts) for domain, counts in coverage.items()},
        "data_versions": data_versions,
        "events": count_events(settings, until, data_versions),
        **({} if consent is None else consent.to_run_settings()),
        # Rounding depends on the device.
        **({} if pairs.device == "cpu" else {"device": describe_device(pairs.device)}),
        **({"recommended_events": recommended} if recommended is not None else {}),
        **({"carried": {name: source.to_metadata() for name, source in sources.items()}} if sources else {}),
    }
    return write_version(
        settings,
        tensors=tensors,
        metadata=weights_metadata(settings, pairs, folds),
        manifest=manifest,
        vocabulary=_vocabulary(settings, log, pairs, data_versions),
        sources={source.file_name: source.source for source in sources.values()},
    )


def _count_dropped(settings: Settings, log: EventLog) -> int | None:
    """Count and log the target events that training leaves out because a recommendation led to them; None: the log does not mark them."""
    if not target_weighting(settings).drops_recommended or log.target.weight is None:
        return None
    count = int((log.target.weight == 0).sum())
    logger.info("%d of %d target events are left out of training: a recommendation led to them", count, len(log.target))
    return count


def _warn_if_vocabulary_limited(coverage: dict[str, VocabularyCoverage]) -> None:
    for domain, counts in coverage.items():
        if not counts.is_complete:
            logger.warning(
                "the %s vocabulary leaves out %d of %d items, the least frequent ones, with %.2f %% of the events: "
                "they are neither translated nor proposed; raise [translator] max_%s_items to include them",
                domain,
                counts.items - counts.kept,
                counts.items,
                100 * (1 - counts.events_kept / counts.events),
                domain,
            )


def _vocabulary(settings: Settings, log: EventLog, pairs: TrainingSlice, data_versions: dict[str, int]) -> ItemVocabulary:
    source = np.argsort(np.where(pairs.source_index > 0, pairs.source_index, np.iinfo(np.int32).max), kind="stable")
    target = np.argsort(np.where(pairs.target_index >= 0, pairs.target_index, np.iinfo(np.int32).max), kind="stable")
    ids = log.target.ids.take(target[: pairs.n_target])
    count = pairs.target_matrix().getnnz(axis=0).astype(np.int64)
    return ItemVocabulary(
        source_ids=log.source.ids.take(source[: pairs.n_source]),
        all_target_ids=ids,
        first_seen=pairs.first_seen,
        count=count,
        value=_values(settings, ids, count, data_versions.get(Table.TARGET_ITEMS.value)),
    )


def _values(settings: Settings, ids: Any, count: Any, version: int | None) -> Any:
    """Return the catalogue's value of each item, with the median for missing ones; the items' counts if over 5 % of values are missing.

    Args:
        settings: The project's settings.
        ids: Arrow array [n_target].
        count: int64 [n_target].
        version: Delta version of the catalogue, or None if there is no catalogue.
    """
    import pyarrow.compute as pc

    if version is not None:
        items = Lake.open(settings).read(Table.TARGET_ITEMS, columns=["item_id", "value"], version=version)
        values = items["value"].combine_chunks().take(pc.index_in(ids, items["item_id"].combine_chunks().cast(ids.type)))
        if values.null_count <= 0.05 * len(ids) and len(values) > values.null_count:
            median = pc.quantile(values, 0.5)[0].as_py()
            return pc.fill_null(values, median).to_numpy(zero_copy_only=False)
    return count.astype(np.float64)
