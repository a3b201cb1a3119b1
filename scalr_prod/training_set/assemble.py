# SPDX-License-Identifier: Apache-2.0
"""Assembly of a new version: reuse the unchanged partitions of a previous version, build the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.progress import track
from scalr_prod.training_set.input_changes import detect_changes
from scalr_prod.training_set.manifest import compute_fingerprint
from scalr_prod.training_set.periods import uncovered_spans
from scalr_prod.training_set.previous_version import (
    DatasetPartition,
    find_previous_version,
    group_days,
    hardlink_files,
    reusable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scalr_prod.config import SegmentWeights, Settings
    from scalr_prod.training_set.build_tasks import BuildTasks
    from scalr_prod.training_set.input_changes import InputChanges, InputTables
    from scalr_prod.training_set.label_window import LabelWindow
    from scalr_prod.training_set.manifest import FileEntry
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.previous_version import PreviousVersion
    from scalr_prod.training_set.spine_build import SpinePlan


logger = logging.getLogger(__name__)

#: Processor time of a row in all tasks, with histories of 50 events.
_SECONDS_PER_ROW: Final = 20e-6


@dataclass(frozen=True)
class AssembledVersion:
    """The assembled partitions of a version.

    Attributes:
        partitions: All partitions, in time order.
        reused: Those of the previous version.
        files: File name → its entry in the manifest.
        previous: The version that files are reused from; None: none.
        shape: Digest of schema and definitions; partitions of versions with an equal one are compatible.
    """

    partitions: list[DatasetPartition]
    reused: list[DatasetPartition]
    files: Mapping[str, FileEntry]
    previous: PreviousVersion | None
    shape: str


@dataclass(frozen=True)
class AssemblyPlan:
    """What is reused of a previous version, and which rows are built.

    Attributes:
        settings: The project's settings.
        tables: The input tables.
        shape: See `AssembledVersion`.
        previous: See `AssembledVersion`.
        changes: Changes since that version; None: there is none.
        unchanged: Partitions that can be reused without reading rows.
        spine: The rows to build.
        multipliers: Factors of the synthetic rows' confidence, by segment.
        limit: Maximum rows of a file.
        cutoff: All labels are before this, µs.
    """

    settings: Settings
    tables: InputTables
    shape: str
    previous: PreviousVersion | None
    changes: InputChanges | None
    unchanged: Mapping[Period, DatasetPartition]
    spine: SpinePlan
    multipliers: SegmentWeights
    limit: int
    cutoff: int

    @property
    def tasks(self) -> int:
        """Number of tasks of the largest round."""
        return max(self.spine.tasks, -(-self.spine.rows // self.limit))

    @property
    def work_s(self) -> float:
        """Estimate of the tasks' processor time, in seconds."""
        return self.spine.rows * _SECONDS_PER_ROW


def plan_assembly(
    settings: Settings, window: LabelWindow, inputs: Mapping[str, Any], tables: InputTables, home: Path
) -> AssemblyPlan:
    """Plan a new version.

    Args:
        settings: The project's settings.
        window: The labels.
        inputs: What decides the rows, as JSON values.
        tables: The input tables.
        home: Folder of the previous versions.
    """
    from scalr_prod.training_set.features import max_partition_rows
    from scalr_prod.training_set.row_weights import confidence_multipliers
    from scalr_prod.training_set.spine_build import plan_spine

    limit, (start, cutoff) = max_partition_rows(settings.histories.length), window.span
    shape = _shape(inputs, tables)
    previous = None if tables.features.untraceable_reason else find_previous_version(home, shape)
    changes = (
        None
        if previous is None
        else detect_changes(
            settings.training_set, tables, inputs, previous.manifest, storage_options=settings.project.storage_options
        )
    )
    unchanged = {} if previous is None or changes is None else reusable(previous, changes, cutoff=cutoff, limit=limit)
    return AssemblyPlan(
        settings=settings,
        tables=tables,
        shape=shape,
        previous=previous,
        changes=changes,
        unchanged=unchanged,
        spine=plan_spine(settings, window, tables.events, uncovered_spans(unchanged, start, cutoff)),
        multipliers=confidence_multipliers(
            settings.training_set.resolved_segment_weights, inputs["settings"]["real_to_synthetic"]
        ),
        limit=limit,
        cutoff=cutoff,
    )


def assemble_partitions(plan: AssemblyPlan, tasks: BuildTasks, folder: Path, *, progress: bool) -> AssembledVersion:
    """Write the files of a new version.

    Args:
        plan: The version.
        tasks: Runs the tasks.
        folder: Folder of the version.
        progress: Show a progress bar on stderr.

    Raises:
        TrainingSetError: The join returned other rows than requested.
        ComputeError: A task failed.
    """
    from scalr_prod.training_set.features import write_partitions
    from scalr_prod.training_set.grouped_join import FeatureJob
    from scalr_prod.training_set.spine_build import stage_spine

    options, external = plan.settings.training_set, plan.tables.external
    previous, changes, unchanged = plan.previous, plan.changes, dict(plan.unchanged)
    spine = stage_spine(plan.settings, plan.spine, plan.multipliers, tasks)
    found = group_days(spine.day_statistics, unchanged, cutoff=plan.cutoff, limit=plan.limit)
    for period, figures in found.items():
        part = previous.partitions.get(period) if previous else None
        if part and changes and part.statistics == figures and figures.last <= changes.features_unchanged_until:
            unchanged[period] = part
    wanted = [period for period in found if period not in unchanged]
    with track("training set", show=progress, total=spine.row_count) as advance:
        files, entries = write_partitions(
            tasks,
            FeatureJob(tasks.store, options.feature_service, external.join if external else None, plan.limit, tasks.folder),
            spine,
            {period: figures.rows for period, figures in found.items()},
            wanted,
            folder,
            advance=advance,
        )
    reused: dict[str, FileEntry] = {}
    if previous is not None:
        reused = {name: previous.manifest["files"][name] for part in unchanged.values() for name in part.files}
        hardlink_files(reused, previous.folder, folder)
    parts = sorted(
        [*unchanged.values(), *(DatasetPartition(period, found[period], files[period]) for period in wanted)],
        key=lambda part: part.period,
    )
    _log_reuse(options.name, previous, changes, parts, len(unchanged), plan.tables)
    return AssembledVersion(parts, [*unchanged.values()], reused | entries, previous, plan.shape)


def _shape(inputs: Mapping[str, Any], tables: InputTables) -> str:
    """Hash what two versions must have in common to share a file: schema, definitions and layout."""
    import pyarrow as pa

    from scalr_prod.core.delta_log import arrow_schema

    spine = [str(arrow_schema(delta)) for delta in tables.events.values()]
    common = {
        "layout": inputs["layout"],
        "features": tables.features.digest,
        "spine": spine,
        "held out": inputs["settings"].get("experiment"),
        "pyarrow": pa.__version__,
    } | {name: inputs["settings"][name] for name in ("canary", "splits") if name in inputs["settings"]}
    return compute_fingerprint(common)


def _log_reuse(
    name: str,
    previous: PreviousVersion | None,
    changes: InputChanges | None,
    parts: list[DatasetPartition],
    reused: int,
    tables: InputTables,
) -> None:
    if previous is None or changes is None:
        reason = tables.features.untraceable_reason or "no previous version has compatible rows"
        logger.info("training set %s: building all %d partitions: %s", name, len(parts), reason)
        return
    reason = f": {changes.reason}" if changes.reason else ""
    logger.info("training set %s: reused %d of %d partitions of %s%s", name, reused, len(parts), previous.folder.name, reason)
