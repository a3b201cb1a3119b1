# SPDX-License-Identifier: Apache-2.0
"""The spine: the labelled rows of a training set, before features are joined.

It is the union of real and synthetic target events (label 1) and optional negatives (label 0), all before the cutoff and known by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.row_groups import iter_batches
from scalr_prod.core.timestamps import micros_to_datetime, to_micros
from scalr_prod.features import ViewWindow, stream_window
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, SPLIT, USER_ID, Table
from scalr_prod.training_set.label_window import BEGINNING
from scalr_prod.training_set.negatives import stage_negatives
from scalr_prod.training_set.periods import DAY_US, Period, utc_day
from scalr_prod.training_set.previous_version import PartitionStatistics
from scalr_prod.training_set.regroup import GroupedArrowFile
from scalr_prod.training_set.splits import keep_known_by_split_end, split_sql
from scalr_prod.workspace import CANARY_COLUMN, HELD_OUT_COLUMN, Canary, Holdout, parquet_sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import TypeAlias

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.config import SegmentWeights, Settings
    from scalr_prod.training_set.label_window import LabelWindow

    Span: TypeAlias = tuple[int, int]


KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
LABEL_COLUMNS: Final = ("label", "weight", "is_synthetic", "run_id", "source_domain")

#: Rows sorted at once, and rows regrouped at once; bounds the memory.
_ROWS_AT_ONCE: Final = 500_000
_REGROUPED_ROWS: Final = 262_144
_BATCH: Final = 65_536
_WANTED: Final = "wanted"
#: Maximum number of window reads per view: each costs as much as about ten thousand rows.
_READS: Final = 4
#: Order by every column, so that equal rows give equal files.
_ORDER: Final = f"{EVENT_TIMESTAMP}, {USER_ID}, {ITEM_ID}, is_synthetic, label DESC, run_id, source_domain, weight"


@dataclass(frozen=True)
class Spine:
    """The staged spine.

    Attributes:
        path: One Parquet file, ordered by label time, then by every other column.
        day_statistics: UTC day → statistics of its rows, for days with rows; in order.
        split_rows: For each part after ``train``, the number of rows before it.
    """

    path: Path
    day_statistics: Mapping[Period, PartitionStatistics]
    split_rows: Sequence[int] = ()

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return sum(day.rows for day in self.day_statistics.values())

    def iter_tables(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """Yield the rows in order, in tables of the given sizes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            batches = iter_batches(file, _BATCH)
            rest: pa.RecordBatch | None = None
            for size in sizes:
                parts: list[pa.RecordBatch] = []
                count = 0
                while count < size:
                    batch = rest if rest is not None else next(batches)
                    head, rest = batch.slice(0, size - count), batch.slice(size - count)
                    rest = rest if rest.num_rows else None
                    parts.append(head)
                    count += head.num_rows
                yield pa.Table.from_batches(parts)


def spine_schema(user: pa.DataType, item: pa.DataType, *, flags: Sequence[str] = (), parts: bool = False) -> pa.Schema:
    """Return the spine's columns, the first columns of a training set.

    Args:
        user: Type of user ids.
        item: Type of item ids.
        flags: Columns that mark users in an experiment.
        parts: Whether a column names each row's part.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field(USER_ID, user, nullable=False),
            pa.field(ITEM_ID, item, nullable=False),
            pa.field(EVENT_TIMESTAMP, pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
            pa.field("is_synthetic", pa.bool_(), nullable=False),
            pa.field("run_id", pa.string()),
            pa.field("source_domain", pa.string()),
        ]
    )
    for mark in flags:
        schema = schema.append(pa.field(mark, pa.bool_(), nullable=False))
    return schema.append(pa.field(SPLIT, pa.string(), nullable=False)) if parts else schema


def stage_spine(
    settings: Settings, window: LabelWindow, multipliers: SegmentWeights, folder: Path, *, spans: Sequence[Span]
) -> Spine:
    """Read the events through Feast, draw the negatives, and write all rows in their canonical order.

    Args:
        settings: ``[training_set]``: negatives and seed.
        window: The labels.
        multipliers: Factors for the confidence of synthetic rows: one each for cold, sparse and dense users.
        folder: An empty folder to write to.
        spans: Half-open time spans (µs, ascending) of the labels to stage. Their rows are the same as if all labels were staged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scalr_prod.workspace import open_duckdb

    options = settings.training_set
    real, synthetic, negative = files = tuple(folder / f"{name}.parquet" for name in ("real", "synthetic", "negatives"))
    # Consumed items and event counts depend on events outside of the spans, too.
    read = (
        [(to_micros(BEGINNING), to_micros(window.cutoff))]
        if options.negatives_per_event or options.is_weighted_by_segment
        else spans
    )
    with open_duckdb(settings, folder) as connection:
        schema = _stage_events(settings, Table.TARGET_EVENTS, window, read, more=("weight",), path=real)
        more, end = ("weight", "run_id", "source_domain"), window.train.span[1]
        trained = [(low, min(high, end)) for low, high in spans if low < end]
        _stage_events(settings, Table.SYNTHETIC_TARGET_EVENTS, window.train, trained, more=more, path=synthetic)
        holdout = Holdout.from_settings(settings)
        experiments = (HELD_OUT_COLUMN, holdout), (CANARY_COLUMN, Canary.from_settings(settings))
        marks = {name: experiment.membership_sql(USER_ID) for name, experiment in experiments if experiment is not None}
        types = schema.field(USER_ID).type, schema.field(ITEM_ID).type
        unmarked, output = spine_schema(*types), spine_schema(*types, flags=tuple(marks), parts=bool(window.splits))
        marks |= {SPLIT: split_sql(window)} if window.splits else {}
        if options.negatives_per_event:
            stage_negatives(connection, options, real, negative, schema=unmarked, spans=spans)
        else:
            pq.write_table(unmarked.empty_table(), negative)
        path = folder / "spine.parquet"
        sparse_below = settings.downstream.sparse_below if options.is_weighted_by_segment else None
        segments = None if sparse_below is None else (sparse_below, end)
        edges = _edges(connection, files, window.span)
        with (
            GroupedArrowFile(folder / "ranges.arrow", groups=len(edges) + 1) as ranges,
            pq.ParquetWriter(path, output, compression="zstd") as writer,
        ):
            for rows in _labelled(connection, files, spans, multipliers, segments=segments, holdout=holdout):
                times = rows.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
                ranges.append(rows, np.searchsorted(edges, times, side="right"))
            for number in ranges.groups:
                for rows in _ordered(connection, ranges.read_group(number), marks, negatives=options.negatives_per_event > 0):
                    writer.write_table(rows.cast(output))
        return Spine(path, _day_statistics(connection, path), _rows_before(connection, path, window.splits.values()))


def _labelled(
    connection: DuckDBPyConnection,
    files: tuple[Path, ...],
    spans: Sequence[Span],
    multipliers: SegmentWeights,
    *,
    segments: tuple[int, int] | None,
    holdout: Holdout | None,
) -> Iterator[pa.Table]:
    """Yield all rows of the spans, unsorted.

    Excluded synthetic rows (λ is 0, or the user is held out) are only marked here: `_ordered` first drops the negatives of the same user,
    item and time, and then these rows.

    Args:
        connection: A DuckDB connection.
        files: Real events, synthetic events, and negatives.
        spans: The labels' time spans.
        multipliers: See `stage_spine`.
        segments: Number of real target events below which a user counts as sparse, and the time (µs) before which events count; None: all
            segments have one multiplier.
        holdout: Its users get no synthetic rows.
    """
    real, synthetic, negative = files
    keys, here, counts_join = ", ".join(KEYS), _within(spans), ""
    # λ (`synthetic_weight`) is applied to a row here: its confidence times the multiplier of its user's segment.
    multiplier = f"{multipliers.cold!r}::DOUBLE"
    if segments is not None:
        sparse_below, end = segments
        connection.execute(f"""
            CREATE TEMP TABLE counts AS SELECT {USER_ID}, count(*) AS real_events
            FROM {parquet_sql(real)} WHERE epoch_us({EVENT_TIMESTAMP}) < {end} GROUP BY {USER_ID}""")
        counts_join, multiplier = (
            f"LEFT JOIN counts USING ({USER_ID})",
            _by_segment(multipliers, sparse_below),
        )
    # Exclude synthetic events that a user got before being held out.
    treated = "true" if holdout is None else f"NOT {holdout.membership_sql(USER_ID)}"
    query = f"""
        SELECT {keys}, 1::TINYINT AS label, weight::FLOAT AS weight, false AS is_synthetic,
            NULL::VARCHAR AS run_id, NULL::VARCHAR AS source_domain, true AS {_WANTED}
        FROM {parquet_sql(real)} WHERE {here}
        UNION ALL
        SELECT {keys}, 1::TINYINT, (weight * {multiplier})::FLOAT, true, run_id, source_domain, {multiplier} > 0 AND {treated}
        FROM {parquet_sql(synthetic)} {counts_join} WHERE {here}
        UNION ALL
        SELECT {keys}, label, weight, is_synthetic, run_id, source_domain, true FROM {parquet_sql(negative)} WHERE {here}"""
    yield from _iter_tables(connection.sql(query), _REGROUPED_ROWS)


def _ordered(
    connection: DuckDBPyConnection, rows_in_range: pa.Table, marks: Mapping[str, str], *, negatives: bool
) -> Iterator[pa.Table]:
    """Yield the wanted rows of one time range of `_labelled`, sorted."""
    connection.register("time_range", rows_in_range)
    rows = f"SELECT * FROM time_range WHERE {_WANTED} AND label = 1"
    if negatives:
        # Drop negatives that coincide with a synthetic row: they would contradict it.
        keys = ", ".join(KEYS)
        contradicts = f"({keys}) IN (SELECT ({keys}) FROM time_range WHERE is_synthetic)"
        rows = f"{rows} UNION ALL SELECT * FROM time_range WHERE label = 0 AND NOT {contradicts}"
    columns = ", ".join([*KEYS, *LABEL_COLUMNS, *(f"{mark} AS {name}" for name, mark in marks.items())])
    yield from _iter_tables(connection.sql(f"SELECT {columns} FROM ({rows}) ORDER BY {_ORDER}"), _BATCH)
    connection.unregister("time_range")


def _iter_tables(relation: Any, rows: int) -> Iterator[pa.Table]:
    """Yield the result of a query in tables of up to ``rows`` rows."""
    import pyarrow as pa

    for batch in relation.to_arrow_reader(rows):
        yield pa.Table.from_batches([batch])


def _day_statistics(connection: DuckDBPyConnection, path: Path) -> dict[Period, PartitionStatistics]:
    """Compute the statistics of each day's rows."""

    def encoded(column: str) -> str:  # with a length prefix, so that distinct rows give distinct texts
        return f"coalesce(length({column}::VARCHAR) || ':' || {column}::VARCHAR, '-')"

    time = f"epoch_us({EVENT_TIMESTAMP})"
    text = f"concat_ws('|', {', '.join([time, *(encoded(column) for column in (*KEYS[:2], *LABEL_COLUMNS))])})"
    query = f"""
        SELECT {time} - ({time} % {DAY_US} + {DAY_US}) % {DAY_US} AS day, count(*), count(*) FILTER (label = 1 AND NOT is_synthetic),
            count(*) FILTER (is_synthetic), min({time}), max({time}), sum(md5_number_lower({text})::HUGEINT) % {2**64}
        FROM {parquet_sql(path)} GROUP BY day ORDER BY day"""
    return {utc_day(day): PartitionStatistics(*map(int, statistics)) for day, *statistics in connection.sql(query).fetchall()}


def _rows_before(connection: DuckDBPyConnection, path: Path, times: Iterable[datetime]) -> list[int]:
    """Count the rows before each time."""
    query = f"SELECT count(*) FROM {parquet_sql(path)} WHERE epoch_us({EVENT_TIMESTAMP}) < "
    return [int(connection.sql(f"{query}{to_micros(time)}").fetchall()[0][0]) for time in times]


def _stage_events(
    settings: Settings, table: Table, window: LabelWindow, spans: Sequence[Span], *, more: tuple[str, ...], path: Path
) -> pa.Schema:
    """Write the view's events of at least these spans, known by the end of their part, to one file in view order; return its schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    columns = [*KEYS, *more]
    read = [*columns, CREATED_TIMESTAMP] if window.splits else columns
    for span in _merge_spans(_READS, spans):
        start, end = map(micros_to_datetime, span)
        found = stream_window(settings, ViewWindow(table.value, start=start, end=end, known_by=window.cutoff, columns=read))
        schema = pa.schema([found.schema.field(name) for name in columns])
        writer = writer or pq.ParquetWriter(path, schema, compression="lz4")
        for batch in found:
            known = keep_known_by_split_end(batch, window) if window.splits else batch
            writer.write_batch(known.select(columns).replace_schema_metadata(None))
    writer.close()
    written: pa.Schema = pq.read_schema(path)
    return written


def _merge_spans(number: int, spans: Sequence[Span]) -> list[Span]:
    """Merge spans across the smallest gaps until there are at most ``number``."""
    spans = list(spans) or [(to_micros(BEGINNING), to_micros(BEGINNING) + 1)]
    while len(spans) > number:
        between = [after[0] - before[1] for before, after in pairwise(spans)]
        place = between.index(min(between))
        spans[place : place + 2] = [(spans[place][0], spans[place + 1][1])]
    return spans


def _edges(connection: DuckDBPyConnection, paths: Sequence[Path], span: Span) -> NDArray[np.int64]:
    """Return split points (µs) that divide a span into ranges of about `_ROWS_AT_ONCE` rows; fewer points if many rows share a time.

    Rows are sorted range by range, because DuckDB fails to sort rows with text that exceed its memory limit.
    """
    import pyarrow.parquet as pq

    number = 1 + sum(pq.read_metadata(path).num_rows for path in paths) // _ROWS_AT_ONCE
    if number == 1:
        return np.empty(0, np.int64)
    times = " UNION ALL ".join(f"SELECT epoch_us({EVENT_TIMESTAMP}) AS instant FROM {parquet_sql(path)}" for path in paths)
    shares = [place / number for place in range(1, number)]
    found = connection.sql(f"SELECT approx_quantile(instant, {shares}) FROM ({times})").fetchall()[0][0]
    return np.array(sorted({edge for edge in map(int, found) if span[0] < edge < span[1]}), np.int64)


def _within(spans: Sequence[Span]) -> str:
    """Return SQL: whether the label's time lies in one of the spans."""
    time = f"epoch_us({EVENT_TIMESTAMP})"
    return f"({' OR '.join(f'{time} >= {start} AND {time} < {end}' for start, end in spans) or 'false'})"


def _by_segment(multipliers: SegmentWeights, sparse_below: int) -> str:
    """Return SQL of a synthetic row's multiplier, by the number of its user's real events before the cutoff."""
    cold, sparse, dense = (f"{multiplier!r}::DOUBLE" for multiplier in multipliers)
    return f"(CASE WHEN real_events IS NULL THEN {cold} WHEN real_events < {sparse_below} THEN {sparse} ELSE {dense} END)"
