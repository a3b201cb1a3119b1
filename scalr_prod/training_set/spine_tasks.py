# SPDX-License-Identifier: Apache-2.0
"""The tasks that write the spine, of `scalr_prod.compute`.

The first round reads parts of the event tables' files, through Feast. Rows that are labelled by themselves are written by time. The
others need all real events of their user: negatives, and λ by segment. They are written by user, and labelled in the second round. The
last round sorts the rows of a range of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from scalr_prod.compute import load_segments, read_segments, write_segments, write_tables
from scalr_prod.core.timestamps import DAY_US, micros_to_datetime, to_micros
from scalr_prod.features import ViewWindow, stream_window
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.training_set.negatives import KnownItems, draw_user_negatives, item_times_sql
from scalr_prod.training_set.periods import Period, utc_day
from scalr_prod.training_set.previous_version import PartitionStatistics
from scalr_prod.training_set.row_weights import weight_sql
from scalr_prod.training_set.spine import KEYS, LABEL_COLUMNS, SpineChunk
from scalr_prod.training_set.splits import keep_known_by_split_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import TypeAlias

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import FilePart, Segment, ShuffleFolder
    from scalr_prod.config import SegmentWeights
    from scalr_prod.features import StoreSnapshot
    from scalr_prod.training_set.label_window import LabelWindow
    from scalr_prod.training_set.negatives import NegativeDraws

    Span: TypeAlias = tuple[int, int]


#: Rows of the spine that are read at once.
_CHUNK_ROWS: Final = 16_384
_WANTED: Final = "wanted"
_TIME: Final = f"epoch_us({EVENT_TIMESTAMP})"
_USER_HASH: Final = f"(hash({USER_ID}) >> 1)::BIGINT"
#: Order by every column, so that equal rows give equal files.
_ORDER: Final = f"{EVENT_TIMESTAMP}, {USER_ID}, {ITEM_ID}, is_synthetic, label DESC, run_id, source_domain, weight"


@dataclass(frozen=True)
class SyntheticRule:
    """How synthetic rows are labelled.

    Attributes:
        multipliers: Factors for their confidence: one each for users that are cold, sparse and dense in the target domain.
        sparse_below: Number of real events below which a user counts as sparse; None: all segments have one multiplier.
        is_treated: SQL of whether a user gets synthetic rows.
        discount: ``[training_set] popularity_discount``.
    """

    multipliers: SegmentWeights
    sparse_below: int | None
    is_treated: str
    discount: float = 0.0


@dataclass(frozen=True)
class SpineJob:
    """What every task needs to know.

    Attributes:
        store: The project's Feast store.
        windows: Times of the labels of each table.
        versions: Version of each table that is read.
        columns: Columns of each table that are read.
        spans: Half-open time spans (µs, ascending) of the rows to write.
        synthetic: How synthetic rows are labelled.
        negatives: Which negatives to draw; None: none.
        schema: Columns of the spine.
        marks: SQL of the columns that follow from a row's user or time.
        user_bounds: The first hash of each partition of users but the first.
        time_bounds: The first time (µs) of each range but the first.
        folder: Where tasks write what later tasks read.
        output: Where they write the spine.
    """

    store: StoreSnapshot
    windows: Mapping[Table, LabelWindow]
    versions: Mapping[Table, int]
    columns: Mapping[Table, pa.Schema]
    spans: Sequence[Span]
    synthetic: SyntheticRule
    negatives: NegativeDraws | None
    schema: pa.Schema
    marks: Mapping[str, str]
    user_bounds: Sequence[int]
    time_bounds: Sequence[int]
    folder: ShuffleFolder
    output: ShuffleFolder

    def is_by_user(self, table: Table) -> bool:
        """Return whether rows of a table are labelled only beside the other rows of their user."""
        by_segment = self.synthetic.sparse_below is not None
        return by_segment or (table is Table.TARGET_EVENTS and self.negatives is not None)


class ViewPart(NamedTuple):
    """Events of a view that one task reads."""

    table: Table
    span: Span
    files: FilePart


class WrittenEvents(NamedTuple):
    """Where a task of the first round wrote its rows.

    Attributes:
        table: The table that they are from.
        segments: By partition of users, or labelled by range of time; see `SpineJob.is_by_user`.
        item_times: What `merge_item_times` needs to know of them.
    """

    table: Table
    segments: dict[int, Segment]
    item_times: Segment | None


class WrittenRange(NamedTuple):
    """A range of the spine.

    Attributes:
        number: Its number, in the order of time.
        chunks: Its rows.
        days: Statistics of the rows of each day.
        rows_before: For each part after ``train``, the number of rows before it.
    """

    number: int
    chunks: Sequence[SpineChunk]
    days: Mapping[Period, PartitionStatistics]
    rows_before: Sequence[int]


class ItemSegments(NamedTuple):
    """Where the tables of `KnownItems` are."""

    codes: Segment
    pool: Segment

    @classmethod
    def write(cls, items: KnownItems, folder: ShuffleFolder) -> ItemSegments:
        """Write the tables to one file."""
        return cls(*write_tables(enumerate(items), folder=folder).values())

    def read(self, folder: ShuffleFolder) -> KnownItems:
        """Read the tables."""
        return KnownItems(*(read_segments([segment], folder=folder) for segment in self))


def write_events(connection: DuckDBPyConnection, job: SpineJob, part: ViewPart) -> WrittenEvents:
    """Task of the first round: write some events by user, or label them and write them by time."""
    is_by_user, item_times = job.is_by_user(part.table), None
    connection.register("view_rows", _read_view(job, part))
    # DuckDB sorts a table of its own twice as fast; rows of one range are not sorted.
    is_copied = is_by_user or job.time_bounds
    connection.execute(f"CREATE OR REPLACE TEMP {'TABLE' if is_copied else 'VIEW'} events AS FROM view_rows")
    if is_by_user:
        if part.table is Table.TARGET_EVENTS and job.negatives is not None:
            seen = connection.sql(item_times_sql("events", job.negatives.sampling)).to_arrow_table()
            item_times = write_tables([(0, seen)], folder=job.folder)[0]
        segments = write_segments(connection, "FROM events", key=_USER_HASH, bounds=job.user_bounds, folder=job.folder)
    else:
        labelled = _labelled_real_sql if part.table is Table.TARGET_EVENTS else _labelled_synthetic_sql
        segments = _write_by_time(connection, job, [labelled(job, "events")])
    connection.execute(f"DROP {'TABLE' if is_copied else 'VIEW'} events")
    connection.unregister("view_rows")
    return WrittenEvents(part.table, segments, item_times)


def write_user_rows(
    connection: DuckDBPyConnection, job: SpineJob, events: Mapping[Table, Sequence[Segment]], items: ItemSegments | None
) -> dict[int, Segment]:
    """Task of the second round: draw the negatives of some users, label all of their rows, and write them by time."""
    for table, segments in events.items():
        load_segments(connection, segments, folder=job.folder, name=table.value, schema=job.columns[table])
    rows = [_labelled_real_sql(job, Table.TARGET_EVENTS.value)]
    if job.negatives is not None and items is not None:
        drawn = draw_user_negatives(connection, Table.TARGET_EVENTS.value, items.read(job.folder), job.negatives)
        connection.register("negatives", drawn)
        rows.append(f"""
            SELECT {USER_ID}, {KEYS[1]}, make_timestamptz(time) AS {EVENT_TIMESTAMP}, 0::TINYINT AS label, 1::FLOAT AS weight,
                false AS is_synthetic, NULL::VARCHAR AS run_id, NULL::VARCHAR AS source_domain, true AS {_WANTED}
            FROM negatives""")
    if Table.SYNTHETIC_TARGET_EVENTS in events:
        end = job.windows[Table.SYNTHETIC_TARGET_EVENTS].span[1]
        counts = f"""
            SELECT {USER_ID}, count(*) AS real_events FROM {Table.TARGET_EVENTS.value} WHERE {_TIME} < {end} GROUP BY {USER_ID}"""
        joined = f"({Table.SYNTHETIC_TARGET_EVENTS.value} LEFT JOIN ({counts}) USING ({USER_ID}))"
        rows.append(_labelled_synthetic_sql(job, joined))
    written = _write_by_time(connection, job, rows)
    connection.unregister("negatives")
    for table in events:
        connection.execute(f"DROP TABLE {table.value}")
    return written


def write_range(connection: DuckDBPyConnection, job: SpineJob, number: int, segments: Sequence[Segment]) -> WrittenRange:
    """Task of the last round: write the wanted rows of a range of time, sorted."""
    connection.register("range_rows", read_segments(segments, folder=job.folder))
    rows = f"SELECT * FROM range_rows WHERE {_WANTED} AND label = 1"
    if job.negatives is not None:
        # Drop negatives that coincide with a synthetic row, also with one that is not wanted: they would contradict it.
        keys = ", ".join(KEYS)
        contradicts = f"({keys}) IN (SELECT ({keys}) FROM range_rows WHERE is_synthetic)"
        rows = f"{rows} UNION ALL SELECT * FROM range_rows WHERE label = 0 AND NOT {contradicts}"
    columns = ", ".join([*KEYS, *LABEL_COLUMNS, *(f"{mark} AS {name}" for name, mark in job.marks.items())])
    connection.execute(f"CREATE OR REPLACE TEMP TABLE spine_rows AS SELECT {columns} FROM ({rows})")
    connection.unregister("range_rows")
    ordered = connection.sql(f"FROM spine_rows ORDER BY {_ORDER}").to_arrow_reader(_CHUNK_ROWS)
    chunks = _write_chunks(ordered, job)
    splits = job.windows[Table.TARGET_EVENTS].splits.values()
    written = WrittenRange(
        number, chunks, _day_statistics(connection, "spine_rows"), _rows_before(connection, "spine_rows", splits)
    )
    connection.execute("DROP TABLE spine_rows")
    return written


def within_sql(spans: Sequence[Span]) -> str:
    """Return SQL: whether the label's time lies in one of the spans."""
    return f"({' OR '.join(f'{_TIME} >= {start} AND {_TIME} < {end}' for start, end in spans) or 'false'})"


def _read_view(job: SpineJob, part: ViewPart) -> pa.Table:
    """Read the view's events of a part that were known by the end of the split in which they happened."""
    import pyarrow as pa

    window, columns = job.windows[part.table], job.columns[part.table]
    start, end = map(micros_to_datetime, part.span)
    names = [*columns.names, CREATED_TIMESTAMP] if window.splits else columns.names
    view = ViewWindow(
        part.table.value,
        start=start,
        end=end,
        known_by=window.cutoff,
        columns=names,
        versions={part.table.value: job.versions[part.table]},
        files={part.table.value: part.files},
    )
    found = stream_window(job.store.open(), view)
    batches = (keep_known_by_split_end(batch, window) for batch in found) if window.splits else found
    return pa.Table.from_batches(batches, found.schema).select(columns.names)


def _labelled_real_sql(job: SpineJob, events: str) -> str:
    return f"""
        SELECT {", ".join(KEYS)}, 1::TINYINT AS label, weight::FLOAT AS weight, false AS is_synthetic,
            NULL::VARCHAR AS run_id, NULL::VARCHAR AS source_domain, true AS {_WANTED}
        FROM {events} WHERE {within_sql(job.spans)}"""


def _labelled_synthetic_sql(job: SpineJob, events: str) -> str:
    """Return a query of synthetic rows, to which λ (`synthetic_weight`) is applied: the confidence times the multiplier of the segment.

    Excluded rows (λ is 0, or the user is held out) are only marked here: `write_range` first drops the negatives of the same user, item
    and time, and then these rows.
    """
    rule = job.synthetic
    multiplier = (
        f"{rule.multipliers.cold!r}::DOUBLE" if rule.sparse_below is None else _by_segment(rule.multipliers, rule.sparse_below)
    )
    return f"""
        SELECT {", ".join(KEYS)}, 1::TINYINT AS label, ({weight_sql(multiplier, rule.discount)})::FLOAT AS weight, true AS is_synthetic,
            run_id, source_domain, {multiplier} > 0 AND {rule.is_treated} AS {_WANTED}
        FROM {events} WHERE {within_sql(job.spans)}"""


def _by_segment(multipliers: SegmentWeights, sparse_below: int) -> str:
    """Return SQL of a synthetic row's multiplier, by the number of its user's real events before the cutoff."""
    cold, sparse, dense = (f"{multiplier!r}::DOUBLE" for multiplier in multipliers)
    return f"(CASE WHEN real_events IS NULL THEN {cold} WHEN real_events < {sparse_below} THEN {sparse} ELSE {dense} END)"


def _write_by_time(connection: DuckDBPyConnection, job: SpineJob, rows: Sequence[str]) -> dict[int, Segment]:
    return write_segments(connection, " UNION ALL ".join(rows), key=_TIME, bounds=job.time_bounds, folder=job.folder)


def _write_chunks(rows: pa.RecordBatchReader, job: SpineJob) -> list[SpineChunk]:
    import pyarrow as pa

    sizes: list[int] = []

    def tables() -> Iterator[tuple[int, pa.Table]]:
        for batch in rows:
            sizes.append(len(batch))
            yield len(sizes), pa.Table.from_batches([batch]).cast(job.schema)

    segments = write_tables(tables(), folder=job.output)
    return [SpineChunk(segment, size) for segment, size in zip(segments.values(), sizes, strict=True)]


def _day_statistics(connection: DuckDBPyConnection, rows: str) -> dict[Period, PartitionStatistics]:
    """Compute the statistics of each day's rows."""

    def encoded(column: str) -> str:  # with a length prefix, so that distinct rows give distinct texts
        return f"coalesce(length({column}::VARCHAR) || ':' || {column}::VARCHAR, '-')"

    text = f"concat_ws('|', {', '.join([_TIME, *(encoded(column) for column in (*KEYS[:2], *LABEL_COLUMNS))])})"
    query = f"""
        SELECT {_TIME} - ({_TIME} % {DAY_US} + {DAY_US}) % {DAY_US} AS day, count(*), count(*) FILTER (label = 1 AND NOT is_synthetic),
            count(*) FILTER (is_synthetic), min({_TIME}), max({_TIME}), sum(md5_number_lower({text})::HUGEINT) % {2**64}
        FROM {rows} GROUP BY day ORDER BY day"""
    return {utc_day(day): PartitionStatistics(*map(int, statistics)) for day, *statistics in connection.sql(query).fetchall()}


def _rows_before(connection: DuckDBPyConnection, rows: str, times: Iterable[datetime]) -> list[int]:
    """Count the rows before each time."""
    query = f"SELECT count(*) FROM {rows} WHERE {_TIME} < "
    return [int(connection.sql(f"{query}{to_micros(time)}").fetchall()[0][0]) for time in times]
