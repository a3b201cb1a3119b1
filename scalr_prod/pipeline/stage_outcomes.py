# SPDX-License-Identifier: Apache-2.0
"""Outcomes of a project's stages, for its metrics: the latest, counts, and a heartbeat of a running one; in ``<home>/stages.json``.

Nothing is resumed from them: a run goes on from its state in the ledger and its finished parts.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scalr_prod.core.atomic_io import read_json, write_json
from scalr_prod.workspace import claim_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scalr_prod.config import Settings


def record_stage_outcome(settings: Settings, stage: str, outcome: str, seconds: float) -> None:
    """Record one outcome of a stage; safe for concurrent processes.

    Args:
        settings: The project's settings.
        stage: The stage's name.
        outcome: ``done``, ``failed``, ``rejected`` or ``interrupted``.
        seconds: Its duration.

    Raises:
        ScalrError: The home is not this project's.
        OSError: The home is not writable.
    """
    with _updating(settings) as stages:
        counts = stages.get(stage, {}).get("counts", {})
        stages[stage] = {
            "seconds": round(seconds, 3),
            "outcome": outcome,
            "at": round(time.time(), 3),
            "counts": counts | {outcome: counts.get(outcome, 0) + 1},
        }


def record_stage_heartbeat(settings: Settings, stage: str) -> None:
    """Record that a driver is running the stage now; `record_stage_outcome` removes it. Safe for concurrent processes.

    A driver that is killed leaves its last heartbeat behind. Of drivers that run the same stage at once, the latest counts.

    Raises:
        ScalrError: The home is not this project's.
        OSError: The home is not writable.
    """
    with _updating(settings) as stages:
        stages.setdefault(stage, {})["heartbeat"] = round(time.time(), 3)


def read_stage_heartbeats(settings: Settings) -> dict[str, float]:
    """Return the last heartbeat of each stage that has begun and not ended, in seconds since the epoch."""
    return {name: stage["heartbeat"] for name, stage in read_json(_path(settings)).items() if "heartbeat" in stage}


def read_stage_outcomes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return each stage's latest ``seconds``, ``outcome`` and ``at`` (seconds since the epoch), and ``counts`` by outcome."""
    return {name: stage for name, stage in read_json(_path(settings)).items() if "outcome" in stage}


def has_failed_last(settings: Settings, stage: str) -> bool:
    """Return whether the stage's latest recorded outcome is a failure."""
    ended = read_stage_outcomes(settings).get(stage)
    return ended is not None and ended["outcome"] != "done"


@contextmanager
def _updating(settings: Settings) -> Iterator[dict[str, dict[str, Any]]]:
    from filelock import FileLock

    claim_home(settings)
    path = _path(settings)
    with FileLock(path.with_name(".stages.lock"), timeout=10):
        stages = read_json(_path(settings))
        yield stages
        write_json(path, stages)


def _path(settings: Settings) -> Path:
    return settings.home / "stages.json"
