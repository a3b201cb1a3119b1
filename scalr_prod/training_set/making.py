# SPDX-License-Identifier: Apache-2.0
"""Assembly of a new version: reuse the unchanged partitions of a previous version, build the others."""

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
    """The assembled partitions of a version.

    Attributes:
        parts: All partitions, in time order.
        kept: File name → the previous version's manifest entry, for reused files.
        former: The version that files are reused from; None: none.
        shape: Digest of schema and definitions; partitions of versions with an equal one are compatible.
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
        window: The labels.
        inputs: What decides the rows, as JSON values.
        tables: The input tables.
        home: Folder of the previous versions.
        folder: Staging folder.
        progress: Show a progress bar on stderr.

    Raises:
        TrainingSetError: The join returned other rows than requested.
    """
    from scalr_prod.training_set.features import part_rows, write_parts
    from scalr_prod.training_set.spine import stage_spine

    limit, (start, cutoff) = part_rows(settings), window.span
    shape = _shape(inputs, tables)
    previous = None if tables.features.unclear else former_with(home, shape)
    changes = None if previous is None else changes_since(settings, tables, inputs, previous.manifest)
    unchanged = {} if previous is None or changes is None else untouched(previous, changes, cutoff=cutoff, limit=limit)
    (folder / "spine").mkdir()
    spine = stage_spine(settings, window, folder / "spine", spans=gaps(unchanged, start, cutoff))
    found = grouped(spine.days, unchanged, cutoff=cutoff, limit=limit)
    for period, figures in found.items():
        part = previous.parts.get(period) if previous else None
        if part and changes and part.figures == figures and figures.last <= changes.features_from:
            unchanged[period] = part
    wanted = [period for period in found if period not in unchanged]
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
    reused: dict[str, Any] = {}
    if previous is not None:
        reused = {name: previous.manifest["files"][name] for part in unchanged.values() for name in part.files}
        link(reused, previous.folder, version)
    parts = sorted([*unchanged.values(), *(Part(period, found[period], files[period]) for period in wanted)], key=_start)
    _log_reuse(settings, previous, changes, parts, len(unchanged), tables)
    return Made(parts, reused, previous, shape)


def _shape(inputs: Mapping[str, Any], tables: Tables) -> str:
    """Hash what two versions must have in common to share a file: schema, definitions and layout."""
    import pyarrow as pa

    from scalr_prod.growth import schema_of_table

    spine = [str(schema_of_table(delta)) for delta in tables.events.values()]
    common = {
        "layout": inputs["layout"],
        "features": tables.features.digest,
        "spine": spine,
        "held out": inputs["settings"].get("experiment"),
        "pyarrow": pa.__version__,
    } | {name: inputs["settings"][name] for name in ("canary",) if name in inputs["settings"]}
    return fingerprint_of(common)


def _start(part: Part) -> Period:
    return part.period


def _log_reuse(
    settings: Settings, previous: Former | None, changes: Changes | None, parts: list[Part], reused: int, tables: Tables
) -> None:
    name = settings.training_set.name
    if previous is None or changes is None:
        reason = tables.features.unclear or "no previous version has compatible rows"
        logger.info("training set %s: building all %d partitions: %s", name, len(parts), reason)
        return
    reason = f": {changes.because}" if changes.because else ""
    logger.info("training set %s: reused %d of %d partitions of %s%s", name, reused, len(parts), previous.folder.name, reason)
