# SPDX-License-Identifier: Apache-2.0
"""Entry point of training: `train` builds a version, or reuses the one with the same inputs.

A version is calibrated on the latest events with parameters fitted on the earlier ones. Then every parameter set is fitted on all events
(`trainer`), and the version is written to the `registry` and recorded in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from scalr_prod.core.calendar import add_days
from scalr_prod.core.memory import release_memory
from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator import training_budget
from scalr_prod.translator.data.event_log import EventLog, data_end, event_type_weights, read_event_log
from scalr_prod.translator.data.training_pairs import TrainingSlice, VocabularyCoverage
from scalr_prod.translator.devices import describe_device
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, scored_estimators
from scalr_prod.translator.estimators.bundled_source import bundle_sources, load_estimator
from scalr_prod.translator.registry import ItemVocabulary, TranslatorVersion, find_by_fingerprint, write_version
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    label_rows_between,
    time_quantile,
    weights_metadata,
)
from scalr_prod.translator.training_device import training_device
from scalr_prod.translator.worker_pool import WorkerPool, open_worker_pool
from scalr_prod.workspace import staging_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from scalr_prod.config import Settings

__all__ = ["TrainReport", "compute_fingerprint", "default_trained_until", "table_versions", "train", "training_inputs"]

logger = logging.getLogger(__name__)

#: Version of the recipe. Raise it whenever the same data and settings give other tensors, or other metrics that the quality gate reads.
RECIPE_VERSION: Final = 14


@dataclass(frozen=True)
class TrainReport:
    """Result of `train`.

    Attributes:
        version: Number of the version.
        path: Folder of the version.
        sha256: Checksum of the weights' file.
        trained_until: End of the training data, exclusive (ISO 8601, UTC).
        reused: Whether an existing version with the same inputs was returned.
        seconds: Wall-clock time.
        metrics: Metrics of the manifest: user group → component → metric.
        vocabulary: Domain → fields of `VocabularyCoverage`.
    """

    version: int
    path: str
    sha256: str
    trained_until: str
    reused: bool
    seconds: float
    metrics: dict[str, Any] = field(repr=False)
    vocabulary: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_version(cls, version: TranslatorVersion, *, reused: bool, seconds: float = 0.0) -> Self:
        """Report on a version."""
        return cls(
            version=version.version,
            path=str(version.path),
            sha256=version.sha256,
            trained_until=version.trained_until.isoformat(),
            reused=reused,
            seconds=seconds,
            metrics=version.manifest["metrics"],
            vocabulary=version.manifest.get("vocabulary", {}),  # former packages did not count
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))


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
        with open_worker_pool(settings.translator.threads) as pool:
            version = _train(settings, until, fingerprint, inputs, data_versions, pool, progress=progress)
    _record(settings, version)
    return TrainReport.from_version(version, reused=reused, seconds=round(time.perf_counter() - started, 2))


def default_trained_until(settings: Settings) -> datetime:
    """Return the ``trained_until`` that a run with these settings needs.

    In ``backfill`` mode it is ``[generation] as_of``, else ``end``, else the end of the data. In ``causal`` mode it is ``start``, else a
    calendar day before the end of the data.
    """
    generation = settings.generation
    if generation.mode == "causal":
        return generation.start or add_days(data_end(Lake.open(settings)), -1, settings.project.timezone)
    return generation.as_of or generation.end or data_end(Lake.open(settings))


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
    log = read_event_log(settings, until, versions=data_versions)
    release_memory()
    folds = settings.translator.folds
    end = to_micros(until)
    pairs = TrainingSlice.from_log(log, end, settings.translator, device=training_device(settings.compute.device))
    coverage = pairs.coverage()
    _warn_if_vocabulary_limited(coverage)
    # Calibrate under the conditions of a run: hold out the target events of as many users as one fold has.
    begin = time_quantile(log.label_times(), 1 - settings.translator.validation_fraction)
    before = calibration_slice(settings, log, begin, end)
    measured_events = len(label_rows_between(log, begin, end))
    work = training_budget.estimate_training_work(
        before, 1, measured_events=measured_events
    ) + training_budget.estimate_training_work(pairs, folds + 1)
    with track("translator", show=progress, total=work, unit="") as done:
        shared_before, shared = fit_shared([before, pairs], pool, done)
        calibrated = fit_calibration(settings, shared_before, log.sample_users(folds), done, pool, with_information=True)
        del shared_before
        release_memory()
        held_out = {fold: log.fold == fold for fold in range(-1, folds)}
        tensors = fit_parameter_sets(pairs, held_out, done, pool, shared=shared) | calibrated.tables
    metrics: dict[str, Any] = {
        "slice": "validation",
        "from": micros_to_datetime(begin).isoformat(),
        "to": until.isoformat(),
        **{group: {name: row.to_json() for name, row in rows.items()} for group, rows in calibrated.metrics.items()},
    }
    # Like the calibration curve, of users whose target events shaped neither the parameters nor the calibration weights.
    metrics["reliability"] = [class_.to_json() for class_ in calibrated.metrics["cold"]["mixture"].reliability]
    sources = bundle_sources(settings.translator.estimators)
    if calibrated.information is not None:
        metrics["information"] = calibrated.information.to_json()
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
        # Rounding depends on the device.
        **({} if pairs.device == "cpu" else {"device": describe_device(pairs.device)}),
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
        version: Delta version of the catalogue; None: there is no catalogue.
    """
    import pyarrow.compute as pc

    if version is not None:
        items = Lake.open(settings).read(Table.TARGET_ITEMS, columns=["item_id", "value"], version=version)
        values = items["value"].combine_chunks().take(pc.index_in(ids, items["item_id"].combine_chunks().cast(ids.type)))
        if values.null_count <= 0.05 * len(ids) and len(values) > values.null_count:
            median = pc.quantile(values, 0.5)[0].as_py()
            return pc.fill_null(values, median).to_numpy(zero_copy_only=False)
    return count.astype(np.float64)


def table_versions(settings: Settings) -> dict[str, int]:
    """Return the Delta versions of the tables that a training reads."""
    lake = Lake.open(settings)
    tables = [Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY]
    tables += [Table.TARGET_ITEMS] if lake.exists(Table.TARGET_ITEMS) else []
    return {table.value: lake.version(table) for table in tables}


def training_inputs(settings: Settings, until: datetime) -> dict[str, Any]:
    """Return everything that decides a version, except the rows of the tables, as plain JSON values."""
    content: dict[str, Any] = {"recipe": RECIPE_VERSION, "until": until.isoformat()}
    content["histories"] = settings.histories.model_dump(mode="json", include={"length", "late_step_s"})
    content["generation"] = settings.generation.model_dump(mode="json", include={"exclude_consumed"})
    content["settings"] = settings.translator.recipe()
    # The recipe version covers version 1 of each built-in estimator.
    builtin_versions = {
        name: load_estimator(name).version
        for name in scored_estimators(settings.translator.estimators)
        if name in BUILTIN_ESTIMATORS
    }
    plugins = {name: [source.version, source.sha256] for name, source in bundle_sources(settings.translator.estimators).items()}
    estimators = plugins | {name: version for name, version in builtin_versions.items() if version > 1}
    content |= {"estimators": estimators} if estimators else {}
    type_weights = event_type_weights(settings)
    content |= {"types": type_weights} if type_weights else {}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def compute_fingerprint(
    settings: Settings, inputs: Mapping[str, Any], versions: Mapping[str, int], until: datetime, folder: Path
) -> str:
    """Return a hash of everything that decides a version. Reads all rows of the logs.

    Args:
        settings: The project's settings.
        inputs: See `training_inputs`.
        versions: See `table_versions`.
        until: Nothing from this instant on is read.
        folder: Folder for data that does not fit in memory.
    """
    lake, content = Lake.open(settings), dict(inputs)
    for name, version in versions.items():
        if name != Table.SOURCE_USER_HISTORY:  # derived from the events, which training checks
            content[name] = _digest(settings, lake, Table(name), version, until, folder)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(settings: Settings, lake: Lake, table: Table, version: int, until: datetime, folder: Path) -> list[str]:
    """Return the number of rows known by ``until`` and the sum of their hashes, which do not depend on row order or commits."""
    from scalr_prod.workspace import create_delta_view, open_duckdb

    is_catalogue = table is Table.TARGET_ITEMS
    row = "item_id, value" if is_catalogue else "user_id, item_id, epoch_us(event_timestamp), epoch_us(created_timestamp)"
    row += ", event_type" if table is Table.TARGET_EVENTS and event_type_weights(settings) else ""
    known = "" if is_catalogue else " WHERE event_timestamp < $1 AND created_timestamp <= $1"
    query = f"SELECT count(*), sum(md5_number_lower(concat_ws('|', {row}))::HUGEINT) FROM events{known}"
    with open_duckdb(settings, folder) as duck:
        create_delta_view(duck, "events", lake.open_table(table, version=version))
        totals = duck.execute(query, None if is_catalogue else [until]).fetchall()[0]
    return [str(value) for value in totals]


def _record(settings: Settings, version: TranslatorVersion) -> None:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        ledger.models.record(
            version.version,
            path=str(version.path),
            sha256=version.sha256,
            fingerprint=version.manifest["fingerprint"],
            trained_until=version.trained_until,
            metrics=version.manifest["metrics"],
        )
