# SPDX-License-Identifier: Apache-2.0
"""Correction of λ by the holdout experiment: segments of users whom synthetic events harm, and λ = 0 for them.

`scalr experiment --outcomes` records a segment when its always-valid interval lies below 0. It stays recorded until the experiment's key or
start changes: once its λ is 0, later outcomes no longer measure the effect of synthetic events.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.core.atomic_io import write_json
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import EvaluationError
from scalr_prod.ledger import Ledger
from scalr_prod.workspace import experiment_salt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from scalr_prod.config import Settings


@dataclass(frozen=True)
class HarmedSegments(Jsonable):
    """Segments that an experiment found to be harmed.

    Attributes:
        salt: Identifies the experiment's key, see `scalr_prod.workspace.experiment_salt`.
        start: ``[experiment] start``, ISO 8601; None: not set.
        segments: Segment → what was measured, in one clause.
    """

    salt: str
    start: str | None
    segments: Mapping[str, str]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the segments recorded for the current experiment.

        Raises:
            EvaluationError: The file is not valid.
        """
        path, start = harmed_segments_path(settings), settings.experiment.start
        if not path.exists():
            return cls("", None, {})
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
            segments = dict(found.segments)
        except (OSError, ValueError, TypeError) as error:
            raise EvaluationError(
                f"not a valid result of an experiment: {error}",
                where=str(path),
                next_step="delete the file, and run scalr experiment --outcomes again",
            ) from error
        present = cls(experiment_salt(settings), start.isoformat() if start else None, {})
        return found if (found.salt, found.start) == (present.salt, present.start) and segments else present


def harmed_segments_path(settings: Settings) -> Path:
    """Return the path of the file."""
    return settings.home / "evaluations" / "harmed_segments.json"


def record_harmed_segments(settings: Settings, measured: Mapping[str, str]) -> None:
    """Record segments for the current experiment, in the ledger and in the file (which keeps one experiment only).

    Args:
        settings: The project's settings.
        measured: Segment → what was measured, in one clause.
    """
    from filelock import FileLock

    if not measured:
        return
    salt, start = experiment_salt(settings), settings.experiment.start
    path = harmed_segments_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        known = HarmedSegments.from_settings(settings).segments
        _record_in_ledger(settings, measured, "harmed", salt)
        write_json(path, HarmedSegments(salt, start.isoformat() if start else None, {**measured, **known}).to_json())


def describe_harmed_segments(settings: Settings) -> list[str]:
    """Return one sentence per segment harmed in the current experiment: what was measured, and what runs do about it."""
    outcome = (
        "λ is 0 for them ([experiment] harmed_segments)"
        if settings.experiment.harmed_segments == "drop"
        else 'to set λ to 0 for them: [experiment] harmed_segments = "drop"'
    )
    return [f"{measured}; {outcome}" for measured in HarmedSegments.from_settings(settings).segments.values()]


def drop_harmed_segments(settings: Settings) -> Settings:
    """Return the settings with λ = 0 for harmed segments, if ``[experiment] harmed_segments`` is ``drop``."""
    harmed = HarmedSegments.from_settings(settings).segments if settings.experiment.harmed_segments == "drop" else {}
    if not harmed:
        return settings
    weights = settings.training_set.resolved_segment_weights
    kept = weights._replace(**dict.fromkeys(harmed, 0.0))
    options = settings.training_set.model_copy(update={"segment_weights": tuple(kept), "synthetic_weight": None})
    return settings.model_copy(update={"training_set": options})


def record_dropped_segments(settings: Settings) -> None:
    """Record in the ledger that a run gives harmed segments λ = 0; once for each experiment and segment."""
    if settings.experiment.harmed_segments == "drop":
        found = HarmedSegments.from_settings(settings)
        if found.segments:
            _record_in_ledger(settings, found.segments, "dropped", found.salt)


def _record_in_ledger(settings: Settings, segments: Mapping[str, str], state: str, salt: str) -> None:
    with Ledger.open(settings) as ledger:
        for segment, measured in segments.items():
            ledger.changes.record_segment(f"{segment}/{salt[:12]}", state, cause=measured)
