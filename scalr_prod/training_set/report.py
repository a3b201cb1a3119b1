# SPDX-License-Identifier: Apache-2.0
"""What a build came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.jsonable import Jsonable

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["TrainingSetReport"]


@dataclass(frozen=True)
class TrainingSetReport(Jsonable):
    """What a build came to.

    Attributes:
        name: The training set's name.
        version: Its version.
        path: Folder of the version: ``rows/*.parquet`` and ``manifest.json``.
        created: False when nothing had changed and the version was there already.
        cutoff: No label from then on, and nothing that became known after it (UTC).
        start: First instant of a label (UTC); None: from the first event on.
        rows: All rows.
        real: Real positives.
        synthetic: Synthetic positives.
        negatives: Sampled negatives.
        missing_negatives: Negatives asked for that are not there: no eligible item was left, or the draw met a synthetic row.
        synthetic_unknown: Published synthetic events of the window that were not known by the cutoff, and are left out.
        fingerprint: SHA-256 of everything that decided the rows.
        policy: What became of the policy that an evaluation left (see `scalr_prod.policy`); None: there is none.
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
