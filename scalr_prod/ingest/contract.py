# SPDX-License-Identifier: Apache-2.0
"""What a log is held to beyond its single cells: event types, events a user and day, repeated rows, and how much may be left out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.errors import BadValue
from scalr_prod.ingest.cells import first_true, texts
from scalr_prod.ingest.rows import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.domains import DomainSettings
    from scalr_prod.ingest.cells import Place
    from scalr_prod.ingest.commit import Log
    from scalr_prod.ingest.laid import Repeated

__all__ = ["LeftOut", "TypeWeights", "held_to_limits", "missing_from_file", "refuse_doubled"]

logger = logging.getLogger(__name__)

#: Fewer different rows than this say nothing about a log that is there twice.
_FEWEST: Final = 10
_DAY_US: Final = 86_400_000_000


@dataclass
class LeftOut:
    """Rows of a log that do not reach the lake, counted by reason; more than a share of them is refused.

    Attributes:
        origin: Where the log came from, for the error.
        key: Where its settings stand.
        share: The largest share of a log's rows.
        counts: Rows by reason: ``in_the_future``, ``before_earliest``, ``unknown_type``, ``over_user_day``.
    """

    origin: str
    key: str
    share: float
    counts: Counter[str] = field(default_factory=Counter)

    def check(self, kept: int) -> None:
        """Refuse a log of which too much is left out.

        Args:
            kept: Rows that are not.

        Raises:
            BadValue: It is; names the reasons.
        """
        total = self.counts.total()
        if total > self.share * (kept + total):
            said = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(self.counts.items()) if count)
            raise BadValue(
                f"{total} of {kept + total} rows would be left out ({said}): more than max_left_out = {self.share:g}",
                where=self.origin,
                next_step=f"look at these rows; correct the log or the limits, or raise max_left_out of {self.key}",
            )


@dataclass(frozen=True)
class TypeWeights:
    """What an event weighs by its type.

    Attributes:
        weights: By type; none: each type weighs 1, and any is known.
        drop: Leave events of other types out, instead of refusing the log.
        key: Where the settings of the domain stand, for the error.
    """

    weights: Mapping[str, float]
    drop: bool
    key: str

    @classmethod
    def of(cls, chosen: DomainSettings, key: str) -> Self:
        """The weights of a domain."""
        return cls(chosen.types, chosen.unknown_types == "drop", key)

    def read(self, cells: pa.Array, place: Place) -> tuple[pa.Array, pa.Array, pa.Array | None]:
        """A batch's types, their weights, and which rows are of an unknown one, to be left out (None: no row is).

        Args:
            cells: Texts.
            place: Where the batch comes from.

        Raises:
            BadValue: A type is not known, or missing; names its row.
        """
        types = texts(cells, place)
        if not self.weights:
            return types, pa.repeat(pa.scalar(1.0, pa.float32()), len(types)), None
        at = pc.index_in(types, pa.array(list(self.weights), pa.string()))
        unknown = pc.is_null(at)
        if (first := first_true(unknown)) is not None and not self.drop:
            found = types[first].as_py()
            raise place.bad(
                "no event type" if found is None else f"'{found}' is no known event type",
                at=first,
                next_step=f'add it to types of {self.key}, or leave such events out: unknown_types = "drop"',
            )
        weights = pa.array(list(self.weights.values()), pa.float32()).take(at)
        return types, pc.fill_null(weights, 0.0), unknown if first is not None else None


def held_to_limits(db: Any, view: str, rows: int, chosen: DomainSettings, left_out: LeftOut) -> int:
    """Put a log's view under the limit of events a user and day.

    Args:
        db: DuckDB connection that holds the log's view, which is replaced.
        view: The view.
        rows: Its rows.
        chosen: The log's settings.
        left_out: Where rows over the limit are counted.

    Returns:
        Rows that are left.

    Raises:
        BadValue: Too much would be left out.
    """
    if chosen.max_user_day is None:
        return rows
    return _limit_user_days(db, view, rows, chosen.max_user_day, cap=chosen.over_user_day == "cap", left_out=left_out)


def refuse_doubled(log: Log, chosen: DomainSettings, repeated: Repeated, *, again: int, there: int) -> None:
    """Refuse a log that is there twice, as happens where an export was copied beside itself; or say so.

    Args:
        log: The log.
        chosen: Its settings.
        repeated: Of its rows.
        again: Rows that the lake holds already, and that the log holds more often.
        there: Rows of the lake in the log's window.

    Raises:
        BadValue: It is.
    """
    doubled = repeated.whole and repeated.different >= _FEWEST
    if not doubled and (again < _FEWEST or 2 * again < there):
        return
    found = (
        f"each row is there more than once ({repeated.rows} repetitions)"
        if doubled
        else f"{again} rows are in the lake already and stand in the log once more each"
    )
    if chosen.duplicates == "notice":
        raise BadValue(
            f"{found}: the log seems to be there twice",
            where=log.origin,
            next_step="look for a copy beside the log; if each event is to count once, or as often as it is there, set "
            f'duplicates = "drop" or "keep" of [domains.{log.place}]',
        )
    logger.warning('%s: %s; duplicates = "%s"', log.origin, found, chosen.duplicates)


def missing_from_file(db: Any, log: Log) -> int:
    """Items of a log that its item file, the table ``file``, does not name."""
    return count_of(db, f"FROM (SELECT DISTINCT {ITEM_ID} FROM {log.view}) ANTI JOIN file USING ({ITEM_ID})")


def _limit_user_days(db: Any, view: str, rows: int, most: int, *, cap: bool, left_out: LeftOut) -> int:
    day = f"floor(epoch_us({EVENT_TIMESTAMP}) / {_DAY_US}.0)::BIGINT"
    over = f"{view}_over"
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE {over} AS SELECT {USER_ID}, {day} AS day, count(*) AS events FROM {view} "
        f"GROUP BY ALL HAVING count(*) > {most}"
    )
    events, days = db.sql(f"SELECT coalesce(sum(events), 0), count(*) FROM {over}").fetchall()[0]
    if not days:
        return rows
    left_out.counts["over_user_day"] += int(events) - (most * int(days) if cap else 0)
    left_out.check(rows - left_out.counts["over_user_day"])
    with_day = f"SELECT *, {day} AS day FROM {{0}}"
    kept = f"SELECT * EXCLUDE (day) FROM ({with_day}) ANTI JOIN {over} USING ({USER_ID}, day)"
    if cap:
        order = f"{EVENT_TIMESTAMP}, {CREATED_TIMESTAMP}, {ITEM_ID}, weight DESC"
        kept += (
            f" UNION ALL SELECT * EXCLUDE (day) FROM ({with_day}) SEMI JOIN {over} USING ({USER_ID}, day) "
            f"QUALIFY row_number() OVER (PARTITION BY {USER_ID}, day ORDER BY {order}) <= {most}"
        )
    _replace_view(db, view, kept)
    logger.warning("%s: %d users and days with more than %d events", left_out.origin, days, most)
    return rows - left_out.counts["over_user_day"]


def _replace_view(db: Any, view: str, query: str) -> None:
    """A view over what it was before; ``{0}`` stands for that."""
    former = f"{view}_{count_of(db, 'FROM duckdb_views()')}"
    db.execute(f"ALTER VIEW {view} RENAME TO {former}")
    db.execute(f"CREATE TEMP VIEW {view} AS {query.format(former)}")
