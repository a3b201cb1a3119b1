# SPDX-License-Identifier: Apache-2.0
"""Stage timings of a run, in ``stages.json`` of the run's folder. Best effort: never fails the stage."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.core.atomic_io import write_json
from scalr_prod.ledger import run_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.config import Settings

__all__ = ["read_timings", "record_timings"]

logger = logging.getLogger(__name__)


def record_timings(settings: Settings, run_id: str, timings: Mapping[str, Mapping[str, Any]]) -> None:
    """Record stages' timings when they are first done; repeating a run changes nothing."""
    try:
        known = read_timings(settings, run_id)
        if known.keys() >= timings.keys():
            return
        folder = run_folder(settings.home, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "stages.json", dict(timings) | known)
    except OSError as error:
        logger.warning("the stage timings of %s could not be recorded: %s", run_id, error)


def read_timings(settings: Settings, run_id: str) -> dict[str, dict[str, Any]]:
    """Return ``seconds`` and ``memory_mb`` by stage: the process's peak MiB at the stage's end, None if unknown.

    In the order of stages; empty for runs of older versions.
    """
    from scalr_prod.pipeline.graph import GRAPH

    try:
        timings: dict[str, dict[str, Any]] = json.loads(
            (run_folder(settings.home, run_id) / "stages.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return {stage.name: timings[stage.name] for stage in GRAPH if stage.name in timings}
