# SPDX-License-Identifier: Apache-2.0
"""Windows of event time, ``start <= event_timestamp < end``: as SQL, by the statistics of a table's log, and as a check on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.delta_log import file_time_bounds, files_in_time_range
from scalr_prod.core.timestamps import to_micros
from scalr_prod.schemas import EVENT_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import pyarrow as pa
    from deltalake import DeltaTable


def window_sql(start: datetime, end: datetime | None = None) -> str:
    """Return a Delta SQL predicate for ``start <= event_timestamp < end``; without ``end``: all from the start on."""
    since = f"{EVENT_TIMESTAMP} >= '{_literal(start)}'"
    return since if end is None else f"{since} AND {EVENT_TIMESTAMP} < '{_literal(end)}'"


def files_in_window(table: DeltaTable, start: datetime, end: datetime) -> frozenset[str]:
    """Return the names of the files that may hold a row of a window, by the log's statistics."""
    return files_in_time_range(table, EVENT_TIMESTAMP, to_micros(start), to_micros(end) - 1)


def files_to_replace(table: DeltaTable, start: datetime, end: datetime) -> frozenset[str] | None:
    """Return the names of the files that hold a window's rows, or None if one of them may also hold rows outside of the window."""
    low, high = to_micros(start), to_micros(end) - 1
    bounds = file_time_bounds(table, EVENT_TIMESTAMP)
    overlapping = {name: (first, last) for name, (first, last) in bounds.items() if first <= high and last >= low}
    return frozenset(overlapping) if all(low <= first and last <= high for first, last in overlapping.values()) else None


def checked_window(rows: pa.Table | pa.RecordBatchReader, start: datetime, end: datetime) -> pa.RecordBatchReader:
    """Stream the same rows; raises ``ValueError`` at the first batch with a row outside the window."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
            times = batch.column(EVENT_TIMESTAMP)
            extremes = pc.min_max(times).as_py()
            if times.null_count or (len(times) and not start <= extremes["min"] <= extremes["max"] < end):
                raise ValueError(
                    f"a row is outside the window from {start.isoformat()} to {end.isoformat()}: "
                    f"rows from {extremes['min']} to {extremes['max']}, {times.null_count} without a time"
                )
            yield batch

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


def _literal(moment: datetime) -> str:
    from datetime import UTC

    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
