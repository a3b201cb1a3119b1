# SPDX-License-Identifier: Apache-2.0
"""Partitions of a training set, and which partitions of a previous version can be reused."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from scalr_prod.core.file_systems import link_or_copy
from scalr_prod.core.timestamps import DAY_US, iso_to_micros, micros_to_datetime
from scalr_prod.errors import TrainingSetError
from scalr_prod.training_set.manifest import check_file, list_versions, read_manifest
from scalr_prod.training_set.periods import Period, enclosing_periods, merge_horizon, merge_periods

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scalr_prod.training_set.input_changes import InputChanges


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartitionStatistics:
    """Statistics of a period's spine rows; periods with equal statistics have the same rows.

    Attributes:
        rows: All rows.
        real: Real positives.
        synthetic: Synthetic positives.
        first: The first label, µs.
        last: The last label, µs.
        digest: Sum of 64 bits of each row's MD5, modulo 2^64.
    """

    rows: int
    real: int
    synthetic: int
    first: int
    last: int
    digest: int

    @property
    def negatives(self) -> int:
        """Number of sampled negatives."""
        return self.rows - self.real - self.synthetic

    def __add__(self, other: PartitionStatistics) -> PartitionStatistics:
        return PartitionStatistics(
            self.rows + other.rows,
            self.real + other.real,
            self.synthetic + other.synthetic,
            min(self.first, other.first),
            max(self.last, other.last),
            (self.digest + other.digest) % 2**64,
        )


@dataclass(frozen=True)
class DatasetPartition:
    """One partition of a version: the rows of one period.

    Attributes:
        period: Its label times.
        statistics: Statistics of its spine rows.
        files: Its files, relative to the version's folder.
    """

    period: Period
    statistics: PartitionStatistics
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        bounds = {
            "start": micros_to_datetime(self.period.start).isoformat(),
            "end": micros_to_datetime(self.period.end).isoformat(),
        }
        return bounds | self.statistics.__dict__ | {"digest": f"{self.statistics.digest:016x}", "files": list(self.files)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a manifest entry."""
        numbers = {name: int(content[name]) for name in ("rows", "real", "synthetic", "first", "last")}
        return cls(
            Period(iso_to_micros(content["start"]), iso_to_micros(content["end"])),
            PartitionStatistics(**numbers, digest=int(content["digest"], 16)),
            tuple(content["files"]),
        )


@dataclass(frozen=True)
class PreviousVersion:
    """A previous version whose partitions may be reused.

    Attributes:
        folder: Its folder.
        manifest: Its manifest.
        partitions: Its partitions with intact files.
    """

    folder: Path
    manifest: Mapping[str, Any]
    partitions: Mapping[Period, DatasetPartition]


def find_previous_version(home: Path, shape: str) -> PreviousVersion | None:
    """Find the latest version with the same columns and definitions; None if there is none."""
    for folder in reversed(list_versions(home).values()):
        try:
            manifest = read_manifest(folder)
        except TrainingSetError as error:
            logger.warning("%s: %s; its files are not reused", error.where, error.found)
            continue
        if manifest.get("shape") == shape:
            parts = [DatasetPartition.from_json(entry) for entry in manifest["parts"]]
            return PreviousVersion(
                folder, manifest, {part.period: part for part in parts if _is_intact(folder, manifest, part)}
            )
    return None


def _is_intact(folder: Path, manifest: Mapping[str, Any], part: DatasetPartition) -> bool:
    try:
        for name in part.files:
            check_file(folder, manifest, name)
    except TrainingSetError as error:
        logger.warning("%s: %s; rebuilding the partition", error.where, error.found)
        return False
    return True


def reusable(previous: PreviousVersion, changes: InputChanges, *, cutoff: int, limit: int) -> dict[Period, DatasetPartition]:
    """Select the partitions that can be reused without reading rows: unchanged, and still made by `merge_periods`.

    Args:
        previous: The previous version.
        changes: Changes since that version.
        cutoff: All labels are before this, µs.
        limit: Maximum rows of a period longer than a day.
    """
    horizon = merge_horizon(cutoff)
    kept = {
        period: part
        for period, part in previous.partitions.items()
        if changes.leaves_unchanged(period, part.statistics.last)
        and (period.end - period.start == DAY_US or (period.end <= horizon and part.statistics.rows <= limit))
    }
    inside: dict[Period, int] = {}
    for period, part in kept.items():
        for larger in enclosing_periods(period, horizon):
            inside[larger] = inside.get(larger, 0) + part.statistics.rows
    # These periods are now old enough to be merged, unless changed rows make the merged period too large.
    merged = [larger for larger, rows in inside.items() if rows <= limit and larger not in kept]
    return {period: part for period, part in kept.items() if not any(larger.contains(period) for larger in merged)}


def group_days(
    days: Mapping[Period, PartitionStatistics], reused: Mapping[Period, DatasetPartition], *, cutoff: int, limit: int
) -> dict[Period, PartitionStatistics]:
    """Group the days of the staged spine into periods next to the kept partitions; return each period's statistics, in order."""
    rows = {period: part.statistics.rows for period, part in reused.items()} | {day: found.rows for day, found in days.items()}
    periods = [period for period in merge_periods(rows, cutoff=cutoff, limit=limit) if period not in reused]
    found: dict[Period, PartitionStatistics] = {}
    waiting = iter(periods)
    period = next(waiting, None)
    for day in sorted(days):
        while period is not None and not period.contains(day):
            period = next(waiting, None)
        if period is not None:
            found[period] = found[period] + days[day] if period in found else days[day]
    return found


def hardlink_files(files: Iterable[str], source: Path, folder: Path) -> None:
    """Hard-link files of a previous version into a new one, or copy them if the file system has no hard links."""
    for name in files:
        link_or_copy(source / name, folder / name)
