# SPDX-License-Identifier: Apache-2.0
"""Times that cannot be: one row of the year 2099 would move every window, cutoff and training end of a project."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import pyarrow.compute as pc

from scalr_prod.ingest.cells import first_true

if TYPE_CHECKING:
    import pyarrow as pa

    from scalr_prod.domains import DomainSettings
    from scalr_prod.ingest.cells import Place

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Between which instants the events of a log lie.

    Attributes:
        latest: None may be later: the start of the ingest, and some days.
        earliest: None may be before; None: any.
        key: Where the settings of the domain stand, for the error.
        drop: Leave events beyond them out, instead of refusing the log.
    """

    latest: datetime
    earliest: datetime | None
    key: str
    drop: bool = False

    @classmethod
    def of(cls, chosen: DomainSettings, key: str) -> Self:
        """The limits of a domain, as of now."""
        now = datetime.now(UTC)
        ahead = min(timedelta(days=chosen.ahead_days), datetime.max.replace(tzinfo=UTC) - now)
        earliest = chosen.earliest.astimezone(UTC) if chosen.earliest else None
        return cls(now + ahead, earliest, key, chosen.bad_times == "drop")

    def beyond(self, times: pa.Array) -> dict[str, pa.Array]:
        """Which times lie beyond them, by reason; see `check` for the times."""
        found = {"in_the_future": pc.greater(times, self.latest)}
        return found if self.earliest is None else found | {"before_earliest": pc.less(times, self.earliest)}

    def check(self, times: pa.Array, place: Place) -> None:
        """Refuse a batch that holds a time beyond them.

        Args:
            times: ``timestamp[us, UTC]``.
            place: Where the batch comes from.

        Raises:
            BadValue: One is; names its row.
        """
        said = {"in_the_future": ("in the future", "raise ahead_days")}
        if self.earliest is not None:
            said["before_earliest"] = (f"before {self.earliest.isoformat()}", "lower earliest")
        for reason, rows in self.beyond(times).items():
            if (at := first_true(rows)) is not None:
                where, change = said[reason]
                raise place.bad(
                    f"{times[at].as_py().isoformat()} lies {where}",
                    at=at,
                    next_step='correct the value or leave the row out (bad_times = "drop" leaves such rows out); if it is meant, '
                    f"{change} of {self.key}",
                )
