# SPDX-License-Identifier: Apache-2.0
"""Build of a training set version: spine, features, quality gate, atomic publication."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import sync_folder
from scalr_prod.core.commit_events import emit_commit
from scalr_prod.core.delta_log import UNBOUNDED, files_dataset, files_in_time_range, latest_time, version_fingerprint
from scalr_prod.core.file_lock import file_lock
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.errors import TrainingSetBusy, TrainingSetError
from scalr_prod.features import open_external_features, service_sources
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, PROVENANCE_COLUMNS, SPLIT, Table
from scalr_prod.training_set.assemble import assemble_partitions, plan_assembly
from scalr_prod.training_set.input_changes import EVENT_TABLES
from scalr_prod.training_set.label_window import LabelWindow
from scalr_prod.training_set.manifest import (
    IDS_FOLDER,
    MANIFEST_FILE,
    ROWS_FOLDER,
    compute_fingerprint,
    list_versions,
    may_have_fingerprint,
    read_manifest,
    rows_files,
    verify_files,
)
from scalr_prod.training_set.row_weights import measure_real_to_synthetic
from scalr_prod.training_set.spine import KEYS, LABEL_COLUMNS
from scalr_prod.training_set.splits import describe_splits, ensure_real_events, ensure_synthetic_in_train, resolve_splits
from scalr_prod.workspace import CANARY_COLUMN, HELD_OUT_COLUMN, Canary, Holdout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import Settings
    from scalr_prod.features import ExternalFeatures
    from scalr_prod.lake import Lake
    from scalr_prod.training_set.assemble import AssembledVersion
    from scalr_prod.training_set.build_tasks import BuildTasks
    from scalr_prod.training_set.input_changes import InputTables


logger = logging.getLogger(__name__)

_TABLES: Final = (
    Table.TARGET_EVENTS,
    Table.SYNTHETIC_TARGET_EVENTS,
    Table.TARGET_USER_HISTORY,
    Table.TARGET_ITEM_STATS,
)
#: Increase this when equal inputs would give other rows than before.
_LAYOUT: Final = 5
_LOCK_TIMEOUT_S: Final = 3600
#: Warn above this many synthetic events for each real one: more slow training down, and were no better where measured (docs/adr/0090).
_MAX_SYNTHETIC_RATIO: Final = 10
#: Settings that have no effect without external features.
_EXTERNAL: Final = ("features", "features_repo", "feature_keys")
#: Settings that do not affect rows (``task`` only requires negatives), or that `_read_inputs` resolves: the window, its splits, and λ.
_NOT_HASHED: Final = (
    "name",
    "cutoff",
    "start",
    "splits",
    "suite",
    "task",
    "synthetic_weight",
    "segment_weights",
    "popularity_discount",
)


@dataclass(frozen=True)
class TrainingSetReport(Jsonable):
    """Result of a build.

    Attributes:
        name: The training set's name.
        version: Its version.
        path: Folder of the version: ``rows/*.parquet`` and ``manifest.json``.
        created: False if nothing had changed and the version existed already.
        cutoff: Labels are before this, and use only what was known by it (UTC).
        start: First instant of a label (UTC); None: from the first event on.
        rows: All rows.
        real: Real positives.
        synthetic: Synthetic positives.
        negatives: Sampled negatives.
        missing_negatives: Requested negatives that are missing: no eligible item was left, or the draw hit a synthetic row.
        synthetic_unknown: Published synthetic events of the window that are left out, because they were not known by the cutoff, or by the
            end of ``train``.
        fingerprint: SHA-256 of everything that decided the rows.
        splits: Name of each split → its start, end and counts, or None without splits.
        policy: How an evaluation's policy was applied (see `scalr_prod.generation.policy`), or None if there is no policy.
    """

    name: str
    version: int
    path: str
    created: bool
    cutoff: datetime
    start: datetime | None
    rows: int
    real: int
    synthetic: int
    negatives: int
    missing_negatives: int
    synthetic_unknown: int
    fingerprint: str
    policy: dict[str, Any] | None = None
    splits: dict[str, dict[str, Any]] | None = None


def build_training_set(settings: Settings, *, progress: bool = False) -> TrainingSetReport:
    """Build the training set of ``[training_set]``, or return the version that equal inputs gave before.

    Positives are the real and synthetic target events of ``[start, cutoff)`` that were known by the cutoff; negatives are optional.
    Features are those of the Feast service ``target_training_v1`` (with ``source_history``: ``downstream_training_v1``) and external ones
    (``features``). A value counts if both its event time and its creation time are strictly before the label. With ``splits`` each row is
    in a split by its time, and synthetic events are in ``train`` only, known by its end.

    Args:
        settings: The project's settings.
        progress: Show a progress bar on stderr.

    Raises:
        TrainingSetError: The window is empty, or has no real event; or the task is classification and there are no negatives.
        TrainingSetBusy: The lake changed during the build, or another build holds the lock; run it again.
        QualityGateFailed: The quality gate rejected the training set; nothing was kept.
        FeatureStoreError: An external feature is missing, or cannot be joined; nothing was done.
    """
    home = settings.home / "datasets" / settings.training_set.name
    home.mkdir(parents=True, exist_ok=True)
    busy = TrainingSetBusy(
        f"another build has held the lock for {_LOCK_TIMEOUT_S} s",
        where=str(home / ".lock"),
        next_step="wait for the other command to finish, then run the command again",
    )
    with file_lock(home / ".lock", busy, timeout_s=_LOCK_TIMEOUT_S):
        return _build(settings, home, progress=progress)


def _build(settings: Settings, home: Path, *, progress: bool) -> TrainingSetReport:
    from scalr_prod.generation import apply_policy
    from scalr_prod.lake import Lake
    from scalr_prod.workspace import staging_folder

    settings, policy = apply_policy(settings)
    options = settings.training_set
    if policy is None and options.synthetic_weight is None and options.segment_weights is None:
        logger.info("λ = %g (default; run `scalr evaluate` to measure it)", options.resolved_segment_weights[0])
    lake = Lake.open(settings)
    inputs = _read_inputs(settings, lake)
    window = inputs.window
    version = _version_with(home, inputs.fingerprint)
    created = version is None
    if version is None:
        with staging_folder(settings, "dataset") as folder:
            manifest = _stage(settings, lake, inputs, home, folder, progress=progress)
            version = _next_version(settings, home)
            _move_into_place(folder / "version", home / f"v{version}", manifest | {"version": version})
            emit_commit(str(home), version)
    manifest = read_manifest(home / f"v{version}")
    _check_labels(settings.training_set.task, window, manifest)
    _register(settings, home / f"v{version}", manifest)
    counts = {
        key: manifest[key] for key in ("rows", "real", "synthetic", "negatives", "missing_negatives", "synthetic_unknown")
    }
    if not counts["synthetic"]:
        logger.warning(
            "training set %s v%d has no synthetic event: %s", options.name, version, _no_synthetic_reason(lake, inputs)
        )
    else:
        _warn_of_volume(options.name, version, counts["real"], counts["synthetic"], settings.generation.events_per_source_event)
    return TrainingSetReport(
        name=settings.training_set.name,
        version=version,
        path=str(home / f"v{version}"),
        created=created,
        cutoff=window.cutoff,
        start=window.start,
        fingerprint=inputs.fingerprint,
        policy=policy.to_json() if policy else None,
        splits=manifest.get("splits"),
        **counts,
    )


def rebuild_reason(settings: Settings) -> str | None:
    """Return why `build_training_set` would build a version; None: equal inputs gave one before. Files are not verified.

    Raises:
        ScalrError: As `build_training_set`, where the inputs cannot be opened.
    """
    from scalr_prod.generation import apply_policy
    from scalr_prod.lake import Lake

    settings, _ = apply_policy(settings)
    versions = list_versions(settings.home / "datasets" / settings.training_set.name)
    if not versions:
        return "there is no version yet"
    inputs = _read_inputs(settings, Lake.open(settings))
    manifests = (read_manifest(folder) for folder in versions.values() if may_have_fingerprint(folder, inputs.fingerprint))
    if any(manifest.get("fingerprint") == inputs.fingerprint for manifest in manifests):
        return None
    former, now = read_manifest(versions[max(versions)]), inputs.values
    if reason := layout_reason(former):
        return reason
    before, after = former.get("settings", {}), now["settings"]
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    found = [f"[training_set] {', '.join('λ' if key == 'lambda' else key for key in keys)} changed"] if keys else []
    if any(former.get(name) != now[name] for name in ("start", "cutoff")):
        found.append("its labels end or begin at another time")
    tables = [name for name, files in now["contents"].items() if former.get("contents", {}).get(name) != files]
    found += [f"{', '.join(tables)} changed"] if tables else []
    return "; ".join(found) or "the features of [training_set] features changed"


def layout_reason(manifest: Mapping[str, Any]) -> str | None:
    """Return that this version of the package builds training sets otherwise than a version's, or None if it does not."""
    layout = manifest.get("layout")
    return None if layout == _LAYOUT else f"this version of the package builds it otherwise (layout {layout}, now {_LAYOUT})"


def _warn_of_volume(name: str, version: int, real: int, synthetic: int, events_per_source_event: int) -> None:
    if synthetic > _MAX_SYNTHETIC_RATIO * real:
        logger.warning(
            "training set %s v%d has %d synthetic events for %d real ones, more than %d times as many: %s (now %d)",
            name,
            version,
            synthetic,
            real,
            _MAX_SYNTHETIC_RATIO,
            "lower [generation] events_per_source_event",
            events_per_source_event,
        )


def _no_synthetic_reason(lake: Lake, inputs: _BuildInputs) -> str:
    import pyarrow.compute as pc

    if not any(inputs.values["settings"]["lambda"]):
        return "λ is 0"
    times = (batch.column(0) for batch in lake.dataset(Table.SYNTHETIC_TARGET_EVENTS).to_batches(columns=[EVENT_TIMESTAMP]))
    first = min((pc.min(column).as_py() for column in times if len(column)), default=None)
    if first is None:
        return "none is published"
    if first >= inputs.window.cutoff:
        return (
            f"those published are from {first.isoformat()} on, and its labels end at {inputs.window.cutoff.isoformat()}; for a set "
            "that ends earlier, run with [generation] end in a home of its own (docs/guides/training-sets.md)"
        )
    return (
        "each of those published is outside its labels' window, was published after its cutoff, or belongs to a user who gets none "
        "(held out, or λ is 0)"
    )


@dataclass(frozen=True)
class _BuildInputs:
    """Everything that decides the rows of a training set.

    Attributes:
        window: The labels.
        opened: The tables, at the versions that are read.
        external: External features, or None if there are none.
        values: All of it as JSON values, for the fingerprint and the manifest.
    """

    window: LabelWindow
    opened: Mapping[Table, DeltaTable]
    external: ExternalFeatures | None
    values: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Checksum of the values."""
        return compute_fingerprint(self.values)


def _read_inputs(settings: Settings, lake: Lake) -> _BuildInputs:
    """Open the tables, and resolve the settings that depend on them."""
    options = settings.training_set
    external = open_external_features(settings)
    tables = (*_TABLES, Table.SOURCE_USER_HISTORY) if options.source_history else _TABLES
    opened = lake.open_tables(tables)
    cutoff = (options.cutoff or _all_known(lake, opened)).astimezone(UTC)
    start = options.start.astimezone(UTC) if options.start else None
    if start is not None and start >= cutoff:
        raise TrainingSetError(
            f"the window is empty: start {start.isoformat()} is not before the cutoff {cutoff.isoformat()}",
            where="[training_set]",
            next_step="choose an earlier start or a later cutoff",
        )
    splits = resolve_splits(settings)
    for name, begins in splits.items():
        if begins >= cutoff or (start is not None and begins <= start):
            raise TrainingSetError(
                f"{name} begins at {begins.isoformat()}, outside of the labels, which are from "
                f"{start.isoformat() if start else 'the first event'} to {cutoff.isoformat()}",
                where="[training_set] splits",
                next_step="choose times within start and cutoff (default: the data's end)",
            )
    states = {table.value: version_fingerprint(opened[table]) for table in tables}
    holdout, canary = Holdout.from_settings(settings), Canary.from_settings(settings)
    window = LabelWindow(start, cutoff, splits)
    values = {
        "layout": _LAYOUT,
        "name": options.name,
        "cutoff": cutoff.isoformat(),
        "start": start.isoformat() if start else None,
        "settings": options.model_dump(mode="json", exclude={*_NOT_HASHED, *(_EXTERNAL if external is None else ())})
        | {
            "lambda": list(options.resolved_segment_weights),
            "real_to_synthetic": measure_real_to_synthetic(opened, window.train, options.popularity_discount)
            if any(options.resolved_segment_weights)
            else 1.0,
        }
        | ({"popularity_discount": options.popularity_discount} if options.popularity_discount else {})
        | ({"sparse_below": settings.downstream.sparse_below} if options.is_weighted_by_segment else {})
        | (holdout.to_run_settings() if holdout else {})
        | ({CANARY_COLUMN: canary.to_json()} if canary else {})
        | ({"splits": {name: begins.isoformat() for name, begins in splits.items()}} if splits else {}),
        "versions": {name: state["version"] for name, state in states.items()},
        # A table restored from a backup may reach the same version with other rows.
        "contents": {name: state["files"] for name, state in states.items()},
    } | ({"own_features": external.digest} if external is not None else {})
    return _BuildInputs(window, opened, external, values)


def _all_known(lake: Lake, opened: Mapping[Table, DeltaTable]) -> datetime:
    """Return the first instant at which every event of the lake, real or synthetic, has happened and is known."""
    from scalr_prod.translator import data_end

    tables = {**opened, **lake.open_tables({Table.SOURCE_EVENTS} - opened.keys())}
    # Synthetic events are known from their run's as_of, which may be later than any event.
    known = latest_time(tables[Table.SYNTHETIC_TARGET_EVENTS], [CREATED_TIMESTAMP])
    return max(filter(None, (data_end(lake, opened=tables), known)))


def _stage(settings: Settings, lake: Lake, inputs: _BuildInputs, home: Path, folder: Path, *, progress: bool) -> dict[str, Any]:
    """Build the version in the staging folder, run the quality gate on it, and return its manifest."""
    from scalr_prod.training_set.build_tasks import open_build_tasks
    from scalr_prod.training_set.input_changes import InputTables
    from scalr_prod.training_set.vocabulary import write_vocabulary

    if inputs.window.splits and any(inputs.values["settings"]["lambda"]):
        ensure_synthetic_in_train(inputs.opened[Table.SYNTHETIC_TARGET_EVENTS], inputs.window)
    version, staging = folder / "version", folder / "tasks"
    for new in (version / ROWS_FOLDER, version / IDS_FOLDER, staging):
        new.mkdir(parents=True)
    features = service_sources(settings, settings.training_set.feature_service)
    if inputs.external is not None:
        features = features.merge(inputs.external.sources)
        inputs.external.join(_spine(lake))  # fail early: wrong key type, missing column
    tables = InputTables({table: inputs.opened[table] for table in EVENT_TABLES}, features, inputs.external)
    states = tables.states()
    plan = plan_assembly(settings, inputs.window, inputs.values, tables, home)
    with open_build_tasks(settings, staging, tasks=plan.tasks, work_s=plan.work_s) as tasks:
        assembled = assemble_partitions(plan, tasks, version, progress=progress)
        if not sum(partition.statistics.real for partition in assembled.partitions):
            raise _no_real_events(lake, inputs.window)
        ids = sorted((version / IDS_FOLDER).glob("*.parquet"))
        vocabulary = write_vocabulary(tasks.executor, tasks.share(version, ids), tasks.folder, version)
        if changed := _changed_inputs(settings, lake, inputs, tables):
            raise TrainingSetBusy(
                f"tables changed while the training set was built: {', '.join(changed)}",
                where=settings.lake_url,
                next_step="run the command again",
            )
        manifest = _describe(
            inputs,
            version,
            replace(assembled, files=dict(sorted([*assembled.files.items(), *vocabulary.items()]))),
            tables,
            feature_service=settings.training_set.feature_service,
            history_length=settings.histories.length,
            negatives_per_event=settings.training_set.negatives_per_event,
        ) | {"tables": states}
        _check_labels(settings.training_set.task, inputs.window, manifest)
        ensure_real_events(manifest.get("splits", {}))
        return manifest | {"judged_by": _validate(settings, tasks, assembled, version, manifest)}


def _validate(
    settings: Settings, tasks: BuildTasks, assembled: AssembledVersion, version: Path, manifest: Mapping[str, Any]
) -> str:
    """Run the quality gate on the partitions that it has not passed yet by the same rules, and return the digest of these."""
    from scalr_prod.quality import ValidatedPart, row_rules_digest, validate_training_set

    digest, previous = row_rules_digest(manifest), assembled.previous
    known = assembled.reused if previous is not None and previous.manifest["judged_by"] == digest else []
    validated = {name for part in known for name in part.files}
    files = [version / name for name in rows_files(manifest["files"]) if name not in validated]
    parts = [
        ValidatedPart(part.statistics.rows, part.statistics.synthetic, part.statistics.first, part.statistics.last)
        for part in known
    ]
    validate_training_set(settings, files, tasks.share(version, files), manifest, tasks.executor, validated=parts)
    return digest


def _changed_inputs(settings: Settings, lake: Lake, inputs: _BuildInputs, tables: InputTables) -> list[str]:
    """Return the names of tables and sources that changed since they were opened."""
    latest = lake.open_tables(inputs.opened)
    changed = [table.value for table, delta in latest.items() if delta.version() != inputs.values["versions"][table.value]]
    changed += [name for name in tables.changed_tables(lake.storage_options, latest.values()) if name not in changed]
    if inputs.external is not None:
        current = open_external_features(settings)
        if current is not None and current.digest != inputs.external.digest:
            changed.append("the sources of [training_set] features")
    return changed


def _spine(lake: Lake) -> pa.Table:
    """Return an empty spine, to check that external features can be joined."""
    import pyarrow as pa

    events = lake.schema(Table.TARGET_EVENTS)
    return pa.schema([events.field(key) for key in KEYS]).empty_table()


def _describe(
    inputs: _BuildInputs,
    folder: Path,
    assembled: AssembledVersion,
    tables: InputTables,
    *,
    feature_service: str,
    history_length: int,
    negatives_per_event: int,
) -> dict[str, Any]:
    import pyarrow.parquet as pq

    schema = pq.read_schema(folder / assembled.partitions[0].files[0])
    features = [name for name in schema.names if name not in {*KEYS, *LABEL_COLUMNS, HELD_OUT_COLUMN, CANARY_COLUMN, SPLIT}]
    provenance = [name for name in features if name.split("__")[-1] in PROVENANCE_COLUMNS]
    if provenance:
        raise TrainingSetError(
            f"the feature service offers provenance as features: {', '.join(provenance)}",
            where=feature_service,
            next_step="remove them from the service in feature_repo",
        )
    counts = {
        count: sum(getattr(partition.statistics, count) for partition in assembled.partitions)
        for count in ("rows", "real", "synthetic", "negatives")
    }
    return {
        **inputs.values,
        "fingerprint": inputs.fingerprint,
        "shape": assembled.shape,
        "feature_service": feature_service,
        "columns": {field.name: str(field.type) for field in schema},
        "features": features,
        "history_length": history_length,
        **counts,
        "missing_negatives": counts["real"] * negatives_per_event - counts["negatives"],
        "synthetic_unknown": _count_unknown(tables.events[Table.SYNTHETIC_TARGET_EVENTS], inputs.window),
        "parts": [partition.to_json() for partition in assembled.partitions],
        "files": dict(assembled.files),
        "created_at": datetime.now(UTC).isoformat(),
    } | ({"splits": describe_splits(folder, rows_files(assembled.files), inputs.window)} if inputs.window.splits else {})


def _no_real_events(lake: Lake, window: LabelWindow) -> TrainingSetError:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    known = (ds.field(CREATED_TIMESTAMP) <= window.cutoff) & (ds.field(EVENT_TIMESTAMP) < window.cutoff)
    times = lake.read(Table.TARGET_EVENTS, columns=[EVENT_TIMESTAMP], where=known).column(0)
    since = f" from {window.start.isoformat()} on" if window.start else ""
    first, last = pc.min_max(times).as_py().values()
    known_span = f"; the events known then are from {first.isoformat()} to {last.isoformat()}" if first else ""
    return TrainingSetError(
        f"no real target event{since} happened before the cutoff {window.cutoff.isoformat()} and was known then{known_span}",
        where=lake.uri(Table.TARGET_EVENTS),
        next_step="choose an earlier [training_set] start" if first else "choose a later [training_set] cutoff",
    )


def _check_labels(task: str, window: LabelWindow, manifest: Mapping[str, Any]) -> None:
    """Ensure that a training set for classification has both labels."""
    if task == "classification" and not manifest["negatives"]:
        since = f"from {window.start.isoformat()} on and " if window.start else ""
        raise TrainingSetError(
            f"the training set for classification would have one label: no negative could be drawn for the {manifest['real']} real "
            f"events {since}before {window.cutoff.isoformat()}, because their users had consumed every item seen before",
            where="[training_set]",
            next_step='choose a longer window by start and cutoff, or task = "ranking" for a model that needs positives only',
        )


def _count_unknown(synthetic: DeltaTable, window: LabelWindow) -> int:
    """Count published synthetic events of the window that were not known by the end of ``train``, or are from after it."""
    import pyarrow.dataset as ds

    end = window.train.cutoff
    late = (ds.field(CREATED_TIMESTAMP) > end) & (ds.field(EVENT_TIMESTAMP) < window.cutoff)
    if window.start is not None:
        late &= ds.field(EVENT_TIMESTAMP) >= window.start
    names = files_in_time_range(synthetic, CREATED_TIMESTAMP, to_micros(end) + 1, UNBOUNDED[1])
    return int(files_dataset(synthetic, names).count_rows(filter=late)) if names else 0


def _version_with(home: Path, fingerprint: str) -> int | None:
    """Return the version that equal inputs gave before, if its files are intact."""
    for version, folder in reversed(list_versions(home).items()):
        if not may_have_fingerprint(folder, fingerprint):
            continue
        try:
            manifest = read_manifest(folder)
            if manifest.get("fingerprint") == fingerprint:
                verify_files(folder, manifest)
                return version
        except TrainingSetError as error:
            logger.warning("%s; building a new version", error.found)
    return None


def _next_version(settings: Settings, home: Path) -> int:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        recorded = [record.version for record in ledger.datasets.find(settings.training_set.name)]
    on_disk = [int(path.name[1:]) for path in home.glob("v*") if path.name[1:].isdigit()]
    return max([0, *recorded, *on_disk]) + 1


def _move_into_place(staged: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and move the version to its name, atomically."""
    from scalr_prod.workspace import move_into_place

    path = staged / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in (path, *staged.rglob("*.parquet")):
        if file.stat().st_nlink > 1:  # hard link to a previous version's file, which is synced already
            continue
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    move_into_place(staged, final)
    sync_folder(final.parent)


def _register(settings: Settings, folder: Path, manifest: dict[str, Any]) -> None:
    """Register the version in Feast, then in the ledger, so that the ledger lists only versions that are in both."""
    from scalr_prod.features import save_dataset
    from scalr_prod.ledger import Ledger

    name, version = manifest["name"], manifest["version"]
    with Ledger.open(settings) as ledger:
        if any(record.version == version for record in ledger.datasets.find(name)):
            return
        ends = (min(part["first"] for part in manifest["parts"]), max(part["last"] for part in manifest["parts"]))
        save_dataset(
            settings,
            f"{name}_v{version}",
            path=folder / ROWS_FOLDER,
            service=manifest["feature_service"],
            time_range=(micros_to_datetime(ends[0]), micros_to_datetime(ends[1])),
        )
        ledger.datasets.record(
            name,
            version,
            path=str(folder),
            fingerprint=manifest["fingerprint"],
            rows=manifest["rows"],
            cutoff=datetime.fromisoformat(manifest["cutoff"]),
            manifest={key: value for key, value in manifest.items() if key not in {"files", "parts", "tables"}},
        )
