# SPDX-License-Identifier: Apache-2.0
"""Limits on a whole log: event types, repeated rows, and the share of rows left out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.errors import BadValue
from scalr_prod.ingest.column_parsers import first_true_index, parse_texts
from scalr_prod.ingest.rows import count_rows
from scalr_prod.schemas import ITEM_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.config import DomainSettings
    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.ingest.column_parsers import CellOrigin
    from scalr_prod.ingest.sort_by_time import DuplicateCounts


logger = logging.getLogger(__name__)

#: Fewest distinct rows from which a doubled log, or one log in both domains, is inferred.
MIN_ROWS: Final = 10


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


@dataclass
class LeftOutRows:
    """Count, by reason, the rows of a log that are left out, and enforce the largest allowed share.

    Attributes:
        origin: Origin of the log, for the error.
        settings_key: Its settings section, for the error.
        max_share: Largest share of a log's rows that may be left out.
        counts: Rows by reason: ``no_user_id``, ``no_item_id``, ``in_the_future``, ``before_earliest``, ``unknown_type``, ``over_user_day``.
    """

    origin: str
    settings_key: str
    max_share: float
    counts: Counter[str] = field(default_factory=Counter)

    def ensure_within_limit(self, remaining: int) -> None:
        """Ensure that not too many rows are left out.

        Args:
            remaining: Rows that are not left out.

        Raises:
            BadValue: Too many are; names the reasons.
        """
        total = self.counts.total()
        if total > self.max_share * (remaining + total):
            reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(self.counts.items()) if count)
            raise BadValue(
                f"{total} of {remaining + total} rows would be left out ({reasons}): more than max_left_out = {self.max_share:g}",
                where=self.origin,
                next_step=f"look at these rows; correct the log or the limits, or raise max_left_out of {self.settings_key}",
            )


class WeightedTypes(NamedTuple):
    """Event types of a batch: their texts, their weights, and a mask of rows with an unknown type to leave out (None: no row)."""

    types: pa.Array
    weights: pa.Array
    unknown: pa.Array | None


@dataclass(frozen=True)
class TypeWeights:
    """Weights of events by their type.

    Attributes:
        weights: Weight by type; empty: any type is allowed and weighs 1.
        drop: Leave out events of other types instead of rejecting the log.
        settings_key: Settings section of the domain, for the error.
    """

    weights: Mapping[str, float]
    drop: bool
    settings_key: str

    @classmethod
    def from_settings(cls, section: DomainSettings, settings_key: str) -> Self:
        """Return the weights that a domain's settings define."""
        return cls(section.types, section.unknown_types == "drop", settings_key)

    def parse(self, cells: pa.Array, origin: CellOrigin) -> WeightedTypes:
        """Parse a batch's types and look up their weights.

        Args:
            cells: Texts.
            origin: Origin of the batch.

        Raises:
            BadValue: A type is unknown or missing; names its row.
        """
        types = parse_texts(cells, origin)
        if not self.weights:
            return WeightedTypes(types, pa.repeat(pa.scalar(1.0, pa.float32()), len(types)), None)
        at = pc.index_in(types, pa.array(list(self.weights), pa.string()))
        unknown = pc.is_null(at)
        if (first := first_true_index(unknown)) is not None and not self.drop:
            name = types[first].as_py()
            raise origin.bad_value(
                "no event type" if name is None else f"'{name}' is not a known event type",
                at=first,
                next_step=f'add it to types of {self.settings_key}, or leave such events out: unknown_types = "drop"',
            )
        weights = pa.array(list(self.weights.values()), pa.float32()).take(at)
        return WeightedTypes(types, pc.fill_null(weights, 0.0), unknown if first is not None else None)


def ensure_not_doubled(
    log: StagedLog, section: DomainSettings, duplicates: DuplicateCounts, *, extra_copies: int, rows_in_window: int
) -> None:
    """Ensure that a log does not contain every event twice, as when an export lies beside its copy; or log a warning.

    Args:
        log: The log.
        section: Its settings.
        duplicates: Counts of its repeated rows.
        extra_copies: Surplus copies in the log of rows that the lake holds.
        rows_in_window: The lake's rows in the log's time window.

    Raises:
        BadValue: It does, and the settings do not say how to treat duplicates.
    """
    doubled = duplicates.all_repeated and duplicates.distinct >= MIN_ROWS
    if not doubled and (extra_copies < MIN_ROWS or 2 * extra_copies < rows_in_window):
        return
    finding = (
        f"each row occurs more than once ({duplicates.rows} repetitions)"
        if doubled
        else f"{extra_copies} rows are already in the lake, and the log has one more copy of each"
    )
    if section.duplicates == "notice":
        raise BadValue(
            f"{finding}: the log seems to be duplicated",
            where=log.origin,
            next_step="look for a copy of the log; to count each event once, or as often as it occurs, set "
            f'duplicates = "drop" or "keep" of [domains.{log.place}]',
        )
    logger.warning('%s: %s; duplicates = "%s"', log.origin, finding, section.duplicates)


def count_items_missing_from_file(db: Any, log: StagedLog) -> int:
    """Return the number of a log's items that its item file, the table ``file``, does not contain."""
    return count_rows(db, f"FROM {log.items_table} ANTI JOIN file USING ({ITEM_ID})")
