# SPDX-License-Identifier: Apache-2.0
"""Report of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class GenerationReport(Jsonable):
    """Report what became of a window's source events.

    Attributes:
        run_id: The run.
        contexts: Distinct source events (user, item, time) of the window that were translated.
        drawn: Requested draws: contexts times ``events_per_source_event``.
        dropped: Draws that became no event, by reason: ``below_lift``, ``none_eligible`` (no eligible item left),
            ``duplicate`` (the user has the item at that time already) and ``alignment`` (downsampled).
        events: Synthetic events staged as candidates.
        users: Distinct users among them.
        items: Distinct target items among them.
        sources: ``contexts`` translated and resulting ``events``, by source domain.
        coverage: Share of the translator's target items among them.
        bucket_distance: Total variation between the value buckets of the real and of the staged events, before and after the
            alignment.
        left_out: Share of the `measured` contexts whose draw from the whole catalogue is missing from their shortlist, an estimate of the
            probability (at the run's temperature) that shortlists leave out; None without shortlists.
        measured: Contexts drawn with and without the shortlist for it.
        seconds: Wall-clock seconds of this call.
        contexts_per_s: Contexts translated by this call, per second.
        events_per_s: Events staged, per second.
        parts_made: Parts that this call made.
        parts_kept: Verified parts of an earlier call.
        worker_mb: Largest peak memory of a worker at the end of a part, in MiB; None if unknown.
    """

    run_id: str
    contexts: int
    drawn: int
    dropped: Mapping[str, int]
    events: int
    users: int
    items: int
    coverage: float
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bucket_distance: Mapping[str, float] = field(default_factory=dict)
    left_out: float | None = None
    measured: int = 0
    seconds: float = 0.0
    contexts_per_s: float = 0.0
    events_per_s: float = 0.0
    parts_made: int = 0
    parts_kept: int = 0
    worker_mb: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a report from the output of `to_json`."""
        return cls(**content)
