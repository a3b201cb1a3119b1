# SPDX-License-Identifier: Apache-2.0
"""Partitions of a training set, and which partitions of a previous version can be reused."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.errors import TrainingSetError
from scalr_prod.instants import datetime_of, micros_of_text
from scalr_prod.training_set.manifest import check_file, read_manifest, versions
from scalr_prod.training_set.periods import DAY_US, Period, cut, horizon_of, may_grow_into

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scalr_prod.training_set.changes import Changes

__all__ = ["Figures", "Former", "Part", "former_with", "grouped", "link", "untouched"]

logger = logging.getLogger(__name__)

#: Errors of file systems without hard links, or at their limit of links.
_NO_LINKS: Final = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


@dataclass(frozen=True)
class Figures:
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

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.rows + other.rows,
            self.real + other.real,
            self.synthetic + other.synthetic,
            min(self.first, other.first),
            max(self.last, other.last),
            (self.digest + other.digest) % 2**64,
        )


@dataclass(frozen=True)
class Part:
    """One partition of a version: the rows of one period.

    Attributes:
        period: Its label times.
        figures: Statistics of its spine rows.
        files: Its files, relative to the version's folder.
    """

    period: Period
    figures: Figures
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        bounds = {"start": datetime_of(self.period.start).isoformat(), "end": datetime_of(self.period.end).isoformat()}
        return bounds | self.figures.__dict__ | {"digest": f"{self.figures.digest:016x}", "files": list(self.files)}

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """Read a manifest entry."""
        numbers = {name: int(kept[name]) for name in ("rows", "real", "synthetic", "first", "last")}
        return cls(
            Period(micros_of_text(kept["start"]), micros_of_text(kept["end"])),
            Figures(**numbers, digest=int(kept["digest"], 16)),
            tuple(kept["files"]),
        )


@dataclass(frozen=True)
class Former:
    """A previous version whose partitions may be reused.

    Attributes:
        folder: Its folder.
        manifest: Its manifest.
        parts: Its partitions with intact files.
    """

    folder: Path
    manifest: Mapping[str, Any]
    parts: Mapping[Period, Part]


def former_with(home: Path, shape: str) -> Former | None:
    """Find the latest version with the same columns and definitions; None if there is none."""
    for folder in reversed(versions(home).values()):
        manifest = read_manifest(folder)
        if manifest.get("shape") == shape:
            parts = [Part.read(entry) for entry in manifest["parts"]]
            return Former(folder, manifest, {part.period: part for part in parts if _is_intact(folder, manifest, part)})
    return None


def _is_intact(folder: Path, manifest: Mapping[str, Any], part: Part) -> bool:
    try:
        for name in part.files:
            check_file(folder, manifest, name)
    except TrainingSetError as error:
        logger.warning("%s: %s; rebuilding the partition", error.where, error.found)
        return False
    return True


def untouched(former: Former, changes: Changes, *, cutoff: int, limit: int) -> dict[Period, Part]:
    """Select the partitions that can be reused without reading rows: unchanged, and still made by `cut`.

    Args:
        former: The previous version.
        changes: Changes since that version.
        cutoff: All labels are before this, µs.
        limit: Maximum rows of a period longer than a day.
    """
    horizon = horizon_of(cutoff)
    kept = {
        period: part
        for period, part in former.parts.items()
        if changes.spare(period, part.figures.last)
        and (period.end - period.start == DAY_US or (period.end <= horizon and part.figures.rows <= limit))
    }
    inside: dict[Period, int] = {}
    for period, part in kept.items():
        for larger in may_grow_into(period, horizon):
            inside[larger] = inside.get(larger, 0) + part.figures.rows
    # These periods are now old enough to be merged, unless changed rows make the merged period too large.
    merged = [larger for larger, rows in inside.items() if rows <= limit and larger not in kept]
    return {period: part for period, part in kept.items() if not any(larger.holds(period) for larger in merged)}


def grouped(days: Mapping[Period, Figures], kept: Mapping[Period, Part], *, cutoff: int, limit: int) -> dict[Period, Figures]:
    """Group the days of the staged spine into periods next to the kept partitions; return each period's statistics, in order."""
    rows = {period: part.figures.rows for period, part in kept.items()} | {day: found.rows for day, found in days.items()}
    periods = [period for period in cut(rows, cutoff=cutoff, limit=limit) if period not in kept]
    found: dict[Period, Figures] = {}
    waiting = iter(periods)
    period = next(waiting, None)
    for day in sorted(days):
        while period is not None and not period.holds(day):
            period = next(waiting, None)
        if period is not None:
            found[period] = found[period] + days[day] if period in found else days[day]
    return found


def link(files: Iterable[str], former: Path, folder: Path) -> None:
    """Hard-link files of a previous version into a new one, or copy them if the file system has no hard links."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(former / name, folder / name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(former / name, folder / name)
