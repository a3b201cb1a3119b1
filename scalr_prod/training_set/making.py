# SPDX-License-Identifier: Apache-2.0
"""The parts of a new version: those of a former one as they are, the others from their rows of the spine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.progress import counting
from scalr_prod.training_set.changes import changes_since
from scalr_prod.training_set.manifest import fingerprint_of
from scalr_prod.training_set.parts import Part, former_with, grouped, link, untouched
from scalr_prod.training_set.periods import gaps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scalr_prod.settings import Settings
    from scalr_prod.training_set.changes import Changes, Tables
    from scalr_prod.training_set.parts import Former
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Window

__all__ = ["Made", "make_parts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """The parts of a version.

    Attributes:
        parts: All of them, in order of time.
        kept: What the former version's manifest says of the files that were kept, by name.
        former: Where they come from; None: nowhere.
        shape: Of the rows: parts of versions with the same one fit together.
    """

    parts: list[Part]
    kept: Mapping[str, Any]
    former: Former | None
    shape: str


def make_parts(
    settings: Settings, window: Window, inputs: Mapping[str, Any], tables: Tables, home: Path, folder: Path, *, progress: bool
) -> Made:
    """Write the files of a new version below ``folder / "version"``.

    Args:
        settings: The project's settings.
        window: Which labels.
        inputs: What decides the rows, as JSON values.
        tables: What they are read from.
        home: Folder of the former versions.
        folder: Staging folder.
        progress: Show a progress bar on stderr.

    Raises:
        TrainingSetError: The join gave other rows than it was asked for.
    """
    from scalr_prod.training_set.features import part_rows, write_parts
    from scalr_prod.training_set.spine import stage_spine

    limit, (start, cutoff) = part_rows(settings), window.span
    shape = _shape(inputs, tables)
    former = None if tables.features.unclear else former_with(home, shape)
    changes = None if former is None else changes_since(settings, tables, inputs, former.manifest)
    kept = {} if former is None or changes is None else untouched(former, changes, cutoff=cutoff, limit=limit)
    (folder / "spine").mkdir()
    spine = stage_spine(settings, window, folder / "spine", spans=gaps(kept, start, cutoff))
    found = grouped(spine.days, kept, cutoff=cutoff, limit=limit)
    for period, figures in found.items():
        part = former.parts.get(period) if former else None
        if part and changes and part.figures == figures and figures.last <= changes.features_from:
            kept[period] = part
    wanted = [period for period in found if period not in kept]
    version = folder / "version"
    with counting("training set", show=progress, total=spine.rows) as advance:
        files = write_parts(
            settings,
            spine,
            {period: figures.rows for period, figures in found.items()},
            wanted,
            version,
            own=tables.own,
            advance=advance,
        )
    told: dict[str, Any] = {}
    if former is not None:
        told = {name: former.manifest["files"][name] for part in kept.values() for name in part.files}
        link(told, former.folder, version)
    parts = sorted([*kept.values(), *(Part(period, found[period], files[period]) for period in wanted)], key=_start)
    _tell(settings, former, changes, parts, len(kept), tables)
    return Made(parts, told, former, shape)


def _shape(inputs: Mapping[str, Any], tables: Tables) -> str:
    """Of the rows and of how they are written: what two versions must have alike to share a file."""
    import pyarrow as pa

    from scalr_prod.growth import schema_of_table

    spine = [str(schema_of_table(delta)) for delta in tables.events.values()]
    alike = {
        "layout": inputs["layout"],
        "features": tables.features.digest,
        "spine": spine,
        "held out": inputs["settings"].get("experiment"),
        "pyarrow": pa.__version__,
    } | {name: inputs["settings"][name] for name in ("canary",) if name in inputs["settings"]}
    return fingerprint_of(alike)


def _start(part: Part) -> Period:
    return part.period


def _tell(
    settings: Settings, former: Former | None, changes: Changes | None, parts: list[Part], kept: int, tables: Tables
) -> None:
    name = settings.training_set.name
    if former is None or changes is None:
        why = tables.features.unclear or "there is no former version with rows of this shape"
        logger.info("training set %s: all %d parts are built: %s", name, len(parts), why)
        return
    because = f": {changes.because}" if changes.because else ""
    logger.info("training set %s: %d of %d parts are those of %s%s", name, kept, len(parts), former.folder.name, because)
