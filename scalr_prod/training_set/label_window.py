# SPDX-License-Identifier: Apache-2.0
"""The times of a training set's labels: a window, and its splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from scalr_prod.core.timestamps import to_micros
from scalr_prod.schemas import TRAIN

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Start of an open window, before every event. Feast uses nanoseconds internally, which start in 1677.
BEGINNING: Final = datetime(1700, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class LabelWindow:
    """Labels in ``[start, cutoff)``, known by the cutoff.

    Attributes:
        start: First instant of a label (UTC); None: from the first event on.
        cutoff: Labels are before this, and use only what was known by it (UTC).
        splits: Name and first instant (UTC) of each split after ``train``, in order; empty: there are no splits.
    """

    start: datetime | None
    cutoff: datetime
    splits: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def span(self) -> tuple[int, int]:
        """Start and cutoff, µs."""
        return to_micros(self.start or BEGINNING), to_micros(self.cutoff)

    @property
    def split_ranges(self) -> dict[str, tuple[datetime | None, datetime]]:
        """Name → start and end of each split, in order; without splits, all is ``train``."""
        return dict(zip((TRAIN, *self.splits), pairwise((self.start, *self.splits.values(), self.cutoff)), strict=True))  # type: ignore[arg-type]  # ends are no None

    @property
    def train(self) -> LabelWindow:
        """The window of the split with the synthetic rows."""
        return LabelWindow(self.start, self.split_ranges[TRAIN][1])
