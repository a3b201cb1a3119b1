# SPDX-License-Identifier: Apache-2.0
"""Report of a training set build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["TrainingSetReport"]


@dataclass(frozen=True)
class TrainingSetReport(Jsonable):
    """Result of a build.

    Attributes:
        name: The training set's name.
        version: Its version.
        path: Folder of the version: ``rows/*.parquet`` and ``manifest.json``.
        created: False if nothing had changed and the version existed already.
        cutoff: Labels are before this, and use only what was known by it (UTC).
        start: First instant of a label (UTC); None: from the first event on.
        rows: All rows.
        real: Real positives.
        synthetic: Synthetic positives.
        negatives: Sampled negatives.
        missing_negatives: Requested negatives that are missing: no eligible item was left, or the draw hit a synthetic row.
        synthetic_unknown: Published synthetic events of the window that are left out, because they were not known by the cutoff, or by the
            end of ``train``.
        fingerprint: SHA-256 of everything that decided the rows.
        splits: Name of each part → its start, end and counts; None: there are no parts.
        policy: How an evaluation's policy was applied (see `scalr_prod.generation.policy`); None: there is no policy.
    """

    name: str
    version: int
    path: str
    created: bool
    cutoff: datetime
    start: datetime | None
    rows: int
    real: int
    synthetic: int
    negatives: int
    missing_negatives: int
    synthetic_unknown: int
    fingerprint: str
    policy: dict[str, Any] | None = None
    splits: dict[str, dict[str, Any]] | None = None
