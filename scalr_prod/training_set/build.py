"""Spine → features → gate → a new version beside the old ones."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import CREATED_TIMESTAMP, PROVENANCE_COLUMNS, Table
from scalr_prod.errors import TrainingSetBusy, TrainingSetError
from scalr_prod.holdout import HELD_OUT, Holdout
from scalr_prod.progress import counting
from scalr_prod.training_set.manifest import (
    MANIFEST,
    ROWS,
    describe_files,
    fingerprint_of,
    read_manifest,
    verify,
    versions,
)
from scalr_prod.training_set.report import TrainingSetReport
from scalr_prod.training_set.spine import KEYS, LABEL_COLUMNS, Window
from scalr_prod.written import note_written

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.settings import Settings
    from scalr_prod.training_set.spine import Spine

__all__ = ["build_training_set"]

logger = logging.getLogger(__name__)

_TABLES: Final = (
    Table.TARGET_EVENTS,
    Table.SYNTHETIC_TARGET_EVENTS,
    Table.SOURCE_USER_HISTORY,
    Table.TARGET_USER_HISTORY,
    Table.TARGET_ITEM_STATS,
)
#: Raised when the same inputs would give other rows than before.
_LAYOUT: Final = 3
_LOCK_TIMEOUT_S: Final = 3600


def build_training_set(settings: Settings, *, progress: bool = False) -> TrainingSetReport:
    """Build the training set of ``[training_set]``, or find the version that the same inputs gave before.

    Positives are the real and the synthetic target events of ``[start, cutoff)`` that were known by the cutoff; negatives come
    on request. Features are those of the Feast service ``downstream_training_v1``, strictly before each label on both clocks.

    Args:
        settings: The project's settings.
        progress: Show a progress bar on stderr.

    Raises:
        TrainingSetError: The window is empty, or holds no real event.
        TrainingSetBusy: The lake changed while it was read, or another build is at work; repeat.
        QualityGateFailed: The gate said no; nothing was kept.
    """
    from filelock import FileLock, Timeout

    home = settings.home / "datasets" / settings.training_set.name
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / ".lock", timeout=_LOCK_TIMEOUT_S):
            return _build(settings, home, progress=progress)
    except Timeout as error:
        raise TrainingSetBusy(
            f"another build has held the lock for {_LOCK_TIMEOUT_S} s",
            where=str(home / ".lock"),
            next_step="wait for the other command to end, then repeat",
        ) from error


def _build(settings: Settings, home: Path, *, progress: bool) -> TrainingSetReport:
    from scalr_prod.duck import staging_folder
    from scalr_prod.policy import follow_policy

    settings, followed = follow_policy(settings)
    inputs, window = _inputs(settings)
    fingerprint = fingerprint_of(inputs)
    version = _version_with(home, fingerprint)
    created = version is None
    if version is None:
        with staging_folder(settings, "dataset") as folder:
            manifest = _stage(settings, window, inputs, folder, progress=progress)
            version = _next_version(settings, home)
            _put(folder / "version", home / f"v{version}", manifest | {"version": version})
            note_written(str(home), version)
    manifest = read_manifest(home / f"v{version}")
    _register(settings, home / f"v{version}", manifest)
    counts = {
        key: manifest[key] for key in ("rows", "real", "synthetic", "negatives", "missing_negatives", "synthetic_unknown")
    }
    if not counts["synthetic"]:
        logger.warning("training set %s v%d holds no synthetic event", settings.training_set.name, version)
    return TrainingSetReport(
        name=settings.training_set.name,
        version=version,
        path=str(home / f"v{version}"),
        created=created,
        cutoff=window.cutoff,
        start=window.start,
        fingerprint=fingerprint,
        policy=followed.to_json() if followed else None,
        **counts,
    )


def _inputs(settings: Settings) -> tuple[dict[str, Any], Window]:
    """Everything that decides the rows, as JSON values, and the window."""
    from scalr_prod.lake import Lake

    options = settings.training_set
    cutoff = (options.cutoff or _all_known(settings)).astimezone(UTC)
    start = options.start.astimezone(UTC) if options.start else None
    if start is not None and start >= cutoff:
        raise TrainingSetError(
            f"the window is empty: start {start.isoformat()} is not before the cutoff {cutoff.isoformat()}",
            where="[training_set]",
            next_step="choose an earlier start or a later cutoff",
        )
    lake = Lake.open(settings)
    lake.require(Table.SYNTHETIC_TARGET_EVENTS, "source_domain")
    held = Holdout.of(settings)
    inputs = {
        "layout": _LAYOUT,
        "name": options.name,
        "cutoff": cutoff.isoformat(),
        "start": start.isoformat() if start else None,
        "settings": options.model_dump(mode="json", exclude={"name", "cutoff", "start", "suite"})
        | ({"sparse_below": settings.downstream.sparse_below} if options.segment_weights else {})
        | (held.to_run() if held else {}),
        "versions": {table.value: lake.version(table) for table in _TABLES},
    }
    return inputs, Window(start, cutoff)


def _all_known(settings: Settings) -> datetime:
    """The first instant at which every event of the lake, real or synthetic, has happened and is known."""
    import pyarrow.compute as pc

    from scalr_prod.lake import Lake
    from scalr_prod.translator import data_end

    end: datetime = data_end(settings)
    # Synthetic events are known from their run's as_of on, which may be later than any event.
    for batch in Lake.open(settings).dataset(Table.SYNTHETIC_TARGET_EVENTS).to_batches(columns=[CREATED_TIMESTAMP]):
        latest = pc.max(batch.column(0)).as_py()
        end = max(end, latest) if latest is not None else end
    return end


def _stage(settings: Settings, window: Window, inputs: dict[str, Any], folder: Path, *, progress: bool) -> dict[str, Any]:
    """Make the whole version in the staging folder, put it before the gate, and describe it."""
    from scalr_prod.duck import open_duckdb
    from scalr_prod.lake import Lake
    from scalr_prod.quality import validate_training_set
    from scalr_prod.training_set.features import write_parts
    from scalr_prod.training_set.spine import stage_spine
    from scalr_prod.training_set.vocabulary import write_vocabulary

    (folder / "spine").mkdir()
    rows = folder / "version" / ROWS
    rows.mkdir(parents=True)
    spine = stage_spine(settings, window, folder / "spine")
    with counting("training set", show=progress, total=spine.rows) as advance:
        parts = write_parts(settings, spine, rows, advance=advance)
    with open_duckdb(settings, folder) as connection:
        write_vocabulary(connection, parts, folder / "version")
    lake = Lake.open(settings)
    moved = [name for name, version in inputs["versions"].items() if lake.version(Table(name)) != version]
    if moved:
        raise TrainingSetBusy(
            f"the lake changed while the training set was built: {', '.join(moved)}",
            where=settings.lake_url,
            next_step="repeat the command",
        )
    manifest = _describe(settings, window, inputs, folder / "version", spine)
    validate_training_set(settings, rows, manifest)
    return manifest


def _describe(settings: Settings, window: Window, inputs: dict[str, Any], folder: Path, spine: Spine) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from scalr_prod.training_set.features import FEATURE_SERVICE

    schema = pq.read_schema(folder / ROWS / "part-00000.parquet")
    features = [name for name in schema.names if name not in {*KEYS, *LABEL_COLUMNS, HELD_OUT}]
    provenance = [name for name in features if name.split("__")[-1] in PROVENANCE_COLUMNS]
    if provenance:
        raise TrainingSetError(
            f"the feature service offers provenance as features: {', '.join(provenance)}",
            where=FEATURE_SERVICE,
            next_step="take them out of the service in feature_repo",
        )
    return {
        **inputs,
        "fingerprint": fingerprint_of(inputs),
        "feature_service": FEATURE_SERVICE,
        "columns": {field.name: str(field.type) for field in schema},
        "features": features,
        "history_length": settings.histories.length,
        "rows": spine.rows,
        "real": spine.real,
        "synthetic": spine.synthetic,
        "negatives": spine.negatives,
        "missing_negatives": spine.missing_negatives,
        "synthetic_unknown": _unknown(settings, window),
        "files": describe_files(folder),
        "created_at": datetime.now(UTC).isoformat(),
    }


def _unknown(settings: Settings, window: Window) -> int:
    """Synthetic events of the window that are published, but were not known by the cutoff."""
    import pyarrow.dataset as ds

    from scalr_prod.contracts import EVENT_TIMESTAMP
    from scalr_prod.lake import Lake

    late = (ds.field(CREATED_TIMESTAMP) > window.cutoff) & (ds.field(EVENT_TIMESTAMP) < window.cutoff)
    if window.start is not None:
        late &= ds.field(EVENT_TIMESTAMP) >= window.start
    return int(Lake.open(settings).dataset(Table.SYNTHETIC_TARGET_EVENTS).count_rows(filter=late))


def _version_with(home: Path, fingerprint: str) -> int | None:
    """The version that the same inputs gave before, where its files are whole."""
    for version, folder in reversed(versions(home).items()):
        manifest = read_manifest(folder)
        if manifest.get("fingerprint") == fingerprint:
            try:
                verify(folder, manifest)
            except TrainingSetError as error:
                logger.warning("%s; building a new version", error.found)
                continue
            return version
    return None


def _next_version(settings: Settings, home: Path) -> int:
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        recorded = [record.version for record in ledger.datasets(settings.training_set.name)]
    taken = [int(path.name[1:]) for path in home.glob("v*") if path.name[1:].isdigit()]
    return max([0, *recorded, *taken]) + 1


def _put(staged: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and make the version appear, whole, under its name."""
    from scalr_prod.duck import appear

    path = staged / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in (path, *staged.rglob("*.parquet")):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    appear(staged, final)


def _register(settings: Settings, folder: Path, manifest: dict[str, Any]) -> None:
    """List the version in Feast, then in the ledger, which so knows only what is in both."""
    from scalr_prod.feast_store import save_dataset
    from scalr_prod.ledger import Ledger

    name, version = manifest["name"], manifest["version"]
    with Ledger.open(settings) as ledger:
        if any(record.version == version for record in ledger.datasets(name)):
            return
        save_dataset(settings, f"{name}_v{version}", path=folder / ROWS)
        ledger.record_dataset(
            name,
            version,
            path=str(folder),
            fingerprint=manifest["fingerprint"],
            rows=manifest["rows"],
            cutoff=datetime.fromisoformat(manifest["cutoff"]),
            manifest={key: value for key, value in manifest.items() if key != "files"},
        )
