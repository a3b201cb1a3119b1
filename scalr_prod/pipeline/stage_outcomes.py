# SPDX-License-Identifier: Apache-2.0
"""Stage outcomes of a project: each stage's latest outcome and counts by outcome, in ``<home>/stages.json``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from scalr_prod.core.atomic_io import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.config import Settings

__all__ = ["has_failed_last", "read_stage_outcomes", "record_stage_outcome"]


def record_stage_outcome(settings: Settings, stage: str, outcome: str, seconds: float) -> None:
    """Record one outcome of a stage; safe for concurrent processes.

    Args:
        settings: The project's settings.
        stage: The stage's name.
        outcome: ``done``, ``failed``, ``rejected`` or ``interrupted``.
        seconds: Its duration.

    Raises:
        OSError: The home is not writable.
    """
    from filelock import FileLock

    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".stages.lock"), timeout=10):
        ended = read_stage_outcomes(settings)
        counts = ended.get(stage, {}).get("counts", {})
        ended[stage] = {
            "seconds": round(seconds, 3),
            "outcome": outcome,
            "at": round(time.time(), 3),
            "counts": counts | {outcome: counts.get(outcome, 0) + 1},
        }
        write_json(path, ended)


def read_stage_outcomes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return each stage's latest ``seconds``, ``outcome`` and ``at`` (seconds since the epoch), and ``counts`` by outcome."""
    try:
        outcomes: dict[str, dict[str, Any]] = json.loads(_path(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return outcomes


def has_failed_last(settings: Settings, stage: str) -> bool:
    """Return whether the stage's latest recorded outcome is a failure."""
    ended = read_stage_outcomes(settings).get(stage)
    return ended is not None and ended["outcome"] != "done"


def _path(settings: Settings) -> Path:
    return settings.home / "stages.json"
