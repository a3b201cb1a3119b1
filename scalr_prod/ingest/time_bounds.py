# SPDX-License-Identifier: Apache-2.0
"""Plausibility bounds of event times: one row of the year 2099 would move every window, cutoff and training end of a project."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

import pyarrow.compute as pc

from scalr_prod.ingest.column_parsers import first_true_index

if TYPE_CHECKING:
    import pyarrow as pa

    from scalr_prod.config import DomainSettings
    from scalr_prod.ingest.column_parsers import CellOrigin

__all__ = ["TIME_REASONS", "TimeBounds"]

#: Reasons for which `TimeBounds` leaves rows out.
TIME_REASONS: Final = ("in_the_future", "before_earliest")


@dataclass(frozen=True)
class TimeBounds:
    """Bounds of the event times of a log.

    Attributes:
        latest: Latest allowed time: the start of the ingest plus ``ahead_days``.
        earliest: Earliest allowed time; None: no bound.
        settings_key: Settings section of the domain, for the error.
        drop: Leave out events out of bounds instead of rejecting the log.
    """

    latest: datetime
    earliest: datetime | None
    settings_key: str
    drop: bool = False

    @classmethod
    def from_settings(cls, section: DomainSettings, settings_key: str) -> Self:
        """Return the bounds of a domain, as of now."""
        now = datetime.now(UTC)
        ahead = min(timedelta(days=section.ahead_days), datetime.max.replace(tzinfo=UTC) - now)
        earliest = section.earliest.astimezone(UTC) if section.earliest else None
        return cls(now + ahead, earliest, settings_key, section.bad_times == "drop")

    def out_of_bounds(self, times: pa.Array) -> dict[str, pa.Array]:
        """Return the masks of times that are out of bounds, by reason; for ``times`` see `ensure_within`."""
        masks = {"in_the_future": pc.greater(times, self.latest)}
        return masks if self.earliest is None else masks | {"before_earliest": pc.less(times, self.earliest)}

    def ensure_within(self, times: pa.Array, origin: CellOrigin) -> None:
        """Ensure that all times of a batch are within the bounds.

        Args:
            times: ``timestamp[us, UTC]``.
            origin: Origin of the batch.

        Raises:
            BadValue: A time is out of bounds; names its row.
        """
        hints = {"in_the_future": ("in the future", "raise ahead_days")}
        if self.earliest is not None:
            hints["before_earliest"] = (f"before {self.earliest.isoformat()}", "lower earliest")
        for reason, rows in self.out_of_bounds(times).items():
            if (at := first_true_index(rows)) is not None:
                where, change = hints[reason]
                raise origin.bad_value(
                    f"{times[at].as_py().isoformat()} lies {where}",
                    at=at,
                    next_step='correct the value or leave the row out (bad_times = "drop" leaves such rows out); if it is meant, '
                    f"{change} of {self.settings_key}",
                )
