# SPDX-License-Identifier: Apache-2.0
"""The spine: which labelled rows a training set has, before any feature is joined.

The union of real target events, synthetic target events (both label 1) and, on request, negatives (label 0): all of them from
before the cutoff and known by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.duck import exact
from scalr_prod.feast_store import read_window
from scalr_prod.growth import files_between, records_of
from scalr_prod.holdout import CANARY, HELD_OUT, Canary, Holdout
from scalr_prod.instants import datetime_of, micros
from scalr_prod.training_set.parts import Figures
from scalr_prod.training_set.periods import DAY_US, Period, day_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.settings import Settings

    Span: TypeAlias = tuple[int, int]

__all__ = ["KEYS", "LABEL_COLUMNS", "Spine", "Window", "spine_schema", "stage_spine"]

KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
LABEL_COLUMNS: Final = ("label", "weight", "is_synthetic", "run_id", "source_domain")

#: Before every event: what an open start means to a store. (Feast's own paths use nanoseconds, which begin in 1677.)
_BEGINNING: Final = datetime(1700, 1, 1, tzinfo=UTC)
_ROWS_AT_ONCE: Final = 1_000_000
_BATCH: Final = 65_536
#: Windows of a view that are read: each costs as much as some ten thousand rows.
_READS: Final = 4
#: Rows with equal keys are ordered to the last column, so that the same rows give the same files.
_ORDER: Final = f"{EVENT_TIMESTAMP}, {USER_ID}, {ITEM_ID}, is_synthetic, label DESC, run_id, source_domain, weight"


@dataclass(frozen=True)
class Window:
    """Labels of ``[start, cutoff)``, known by the cutoff.

    Attributes:
        start: First instant of a label (UTC); None: from the first event on.
        cutoff: No label from then on, and nothing that became known after it (UTC).
    """

    start: datetime | None
    cutoff: datetime

    @property
    def span(self) -> Span:
        """Its labels' times, µs."""
        return micros(self.start or _BEGINNING), micros(self.cutoff)


@dataclass(frozen=True)
class Spine:
    """The staged spine.

    Attributes:
        path: One Parquet file, ordered by label time, then by every other column.
        days: What the rows of each UTC day come to, for those that have any; in order.
    """

    path: Path
    days: Mapping[Period, Figures]

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(day.rows for day in self.days.values())

    def pieces(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """The rows in order, in tables of these many."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            batches = file.iter_batches(batch_size=_BATCH)
            rest: pa.RecordBatch | None = None
            for size in sizes:
                kept: list[pa.RecordBatch] = []
                held = 0
                while held < size:
                    batch = rest if rest is not None else next(batches)
                    taken, rest = batch.slice(0, size - held), batch.slice(size - held)
                    rest = rest if rest.num_rows else None
                    kept.append(taken)
                    held += taken.num_rows
                yield pa.Table.from_batches(kept)


def spine_schema(user: pa.DataType, item: pa.DataType, *, marks: Sequence[str] = ()) -> pa.Schema:
    """Columns of the spine, which are also the first columns of the training set; ``marks`` of users where there is an experiment."""
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
    for mark in marks:
        schema = schema.append(pa.field(mark, pa.bool_(), nullable=False))
    return schema


def stage_spine(
    settings: Settings, window: Window, tables: Mapping[Table, DeltaTable], folder: Path, *, spans: Sequence[Span]
) -> Spine:
    """Read the events through Feast, draw the negatives, and write all rows in their canonical order.

    Args:
        settings: ``[training_set]`` tells negatives, λ and seed.
        window: Which labels.
        tables: The tables of real and of synthetic events, as they are.
        folder: An empty folder to write to.
        spans: Only the labels of these half-open times (µs, ascending) are staged. Their rows are those that they have among all.
    """
    from scalr_prod.duck import open_duckdb
    from scalr_prod.training_set.changes import weighted_by_segment
    from scalr_prod.training_set.negatives import stage_negatives

    options = settings.training_set
    real, synthetic, negative = (folder / f"{name}.parquet" for name in ("real", "synthetic", "negatives"))
    # What a user had before, and how much, is asked of events outside of the spans as well.
    read = (
        [(micros(_BEGINNING), micros(window.cutoff))] if options.negatives_per_event or weighted_by_segment(settings) else spans
    )
    with open_duckdb(settings, folder) as connection:
        schema = _stage_events(
            connection, settings, tables, Table.TARGET_EVENTS, window.cutoff, read, more=("weight",), path=real
        )
        _stage_events(
            connection,
            settings,
            tables,
            Table.SYNTHETIC_TARGET_EVENTS,
            window.cutoff,
            spans,
            more=("weight", "run_id", "source_domain"),
            path=synthetic,
        )
        held = Holdout.of(settings)
        marks = {name: one.sql(USER_ID) for name, one in ((HELD_OUT, held), (CANARY, Canary.of(settings))) if one is not None}
        output = spine_schema(schema.field(USER_ID).type, schema.field(ITEM_ID).type, marks=tuple(marks))
        if options.negatives_per_event:
            stage_negatives(connection, settings, real, negative, spans=spans)
        else:
            _write(iter(()), spine_schema(output.field(USER_ID).type, output.field(ITEM_ID).type), negative)
        path = folder / "spine.parquet"
        keys = ", ".join(KEYS)
        # A negative that meets a synthetic row of the same instant would contradict it: it goes, the others stay.
        lambda_ = _lambda(settings)
        # What a user got before being held out is no part of an experiment.
        treated = "true" if held is None else f"NOT {held.sql(USER_ID)}"
        marked = "".join(f", {mark} AS {name}" for name, mark in marks.items())
        connection.execute(
            f"CREATE TEMP TABLE counts AS SELECT {USER_ID}, count(*) AS real_events FROM {_scan(real)} GROUP BY {USER_ID}"
        )

        def ordered(span: Span) -> Any:
            here = f"{_within(spans)} AND {_within([span])}"
            query = f"""
                SELECT *{marked} FROM (
                    SELECT {keys}, 1 AS label, weight, false AS is_synthetic, NULL AS run_id, NULL AS source_domain
                    FROM {_scan(real)} WHERE {here}
                    UNION ALL
                    SELECT {keys}, 1, weight * {lambda_}, true, run_id, source_domain
                    FROM {_scan(synthetic)} LEFT JOIN counts USING ({USER_ID})
                    WHERE {here} AND {lambda_} > 0 AND {treated}
                    UNION ALL
                    SELECT {keys}, label, weight, is_synthetic, run_id, source_domain
                    FROM {_scan(negative)}
                    WHERE {here} AND ({keys}) NOT IN (SELECT ({keys}) FROM {_scan(synthetic)} WHERE {here}))
                ORDER BY {_ORDER}"""
            return connection.sql(query).to_arrow_reader(_BATCH)

        pieces = _pieces(connection, (real, synthetic, negative), window.span)
        _write(chain.from_iterable(map(ordered, pieces)), output, path)
        return Spine(path, _figures(connection, path))


def _figures(connection: Any, path: Path) -> dict[Period, Figures]:
    """What the rows of each day come to."""

    def told(column: str) -> str:  # its length goes before it, so that no two rows give one text
        return f"coalesce(length({column}::VARCHAR) || ':' || {column}::VARCHAR, '-')"

    time = f"epoch_us({EVENT_TIMESTAMP})"
    text = " || '|' || ".join([f"{time}::VARCHAR", *(told(column) for column in (*KEYS[:2], *LABEL_COLUMNS))])
    query = f"""
        SELECT {time} - ({time} % {DAY_US} + {DAY_US}) % {DAY_US} AS day, count(*), count(*) FILTER (label = 1 AND NOT is_synthetic),
            count(*) FILTER (is_synthetic), min({time}), max({time}), sum(md5_number_lower({text})::HUGEINT) % {2**64}
        FROM {_scan(path)} GROUP BY day ORDER BY day"""
    return {day_of(day): Figures(*map(int, figures)) for day, *figures in connection.sql(query).fetchall()}


def _stage_events(
    connection: Any,
    settings: Settings,
    tables: Mapping[Table, DeltaTable],
    table: Table,
    cutoff: datetime,
    spans: Sequence[Span],
    *,
    more: tuple[str, ...],
    path: Path,
) -> pa.Schema:
    """The events of a view, known by the cutoff, of some times at least, in one file."""
    import pyarrow.parquet as pq

    columns = [*KEYS, *more]
    writer: Any = None
    for span in _at_most(_READS, spans):
        edges = [span[0], *_edges(connection, tables[table], span), span[1]]
        for start, end in pairwise(map(datetime_of, edges)):
            found = read_window(settings, table.value, start=start, end=end, known_by=cutoff, columns=columns)
            writer = writer or pq.ParquetWriter(path, found.schema.remove_metadata(), compression="zstd")
            writer.write_table(found.replace_schema_metadata(None))
    writer.close()
    schema: pa.Schema = pq.read_schema(path)
    return schema


def _at_most(number: int, spans: Sequence[Span]) -> list[Span]:
    """Spans that hold these and are no more than so many: what lies between is read with them, the least of it."""
    spans = list(spans) or [(micros(_BEGINNING), micros(_BEGINNING) + 1)]
    while len(spans) > number:
        between = [after[0] - before[1] for before, after in pairwise(spans)]
        place = between.index(min(between))
        spans[place : place + 2] = [(spans[place][0], spans[place + 1][1])]
    return spans


def _edges(connection: Any, delta: DeltaTable, span: Span) -> list[int]:
    """Instants that cut a span into pieces of about `_ROWS_AT_ONCE` rows: what is read at once has to fit in memory."""
    import pyarrow.dataset as ds

    if records_of(delta, files_between(delta, EVENT_TIMESTAMP, *span)) <= _ROWS_AT_ONCE:
        return []
    start, end = map(datetime_of, span)
    dataset = delta.to_pyarrow_dataset()
    inside = (ds.field(EVENT_TIMESTAMP) >= start) & (ds.field(EVENT_TIMESTAMP) < end)
    pieces = 1 + dataset.count_rows(filter=inside) // _ROWS_AT_ONCE
    if pieces == 1:
        return []
    connection.register("some_events", dataset.filter(inside))
    found = _cut(connection, f"epoch_us({EVENT_TIMESTAMP})", "some_events", pieces, span)
    connection.unregister("some_events")
    return found


def _pieces(connection: Any, paths: Sequence[Path], span: Span) -> list[Span]:
    """A span in consecutive pieces that hold about `_ROWS_AT_ONCE` of the files' rows each.

    Rows are ordered piece by piece: DuckDB gives up on sorting rows with text in them that take more than the memory it may use.
    """
    import pyarrow.parquet as pq

    number = 1 + sum(pq.read_metadata(path).num_rows for path in paths) // _ROWS_AT_ONCE
    if number == 1:
        return [span]
    times = " UNION ALL ".join(f"SELECT epoch_us({EVENT_TIMESTAMP}) AS instant FROM {_scan(path)}" for path in paths)
    return list(pairwise([span[0], *_cut(connection, "instant", f"({times})", number, span), span[1]]))


def _cut(connection: Any, instant: str, rows: str, number: int, span: Span) -> list[int]:
    """Instants (µs) within a span that cut rows into so many pieces of about the same size; fewer where many share an instant."""
    shares = [place / number for place in range(1, number)]
    found = connection.sql(f"SELECT approx_quantile({instant}, {shares}) FROM {rows}").fetchall()[0][0]
    return sorted({each for each in map(int, found) if span[0] < each < span[1]})


def _within(spans: Sequence[Span]) -> str:
    """SQL: whether the label's time lies in one of the spans."""
    time = f"epoch_us({EVENT_TIMESTAMP})"
    return f"({' OR '.join(f'{time} >= {start} AND {time} < {end}' for start, end in spans) or 'false'})"


def _write(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            rows += batch.num_rows
    return rows


def _lambda(settings: Settings) -> str:
    """SQL of the factor of a synthetic row's weight, by the user's real events of before the cutoff."""
    sparse_below = settings.downstream.sparse_below
    cold, sparse, dense = (f"{float(weight)!r}::DOUBLE" for weight in settings.training_set.lambdas)
    return f"(CASE WHEN real_events IS NULL THEN {cold} WHEN real_events < {sparse_below} THEN {sparse} ELSE {dense} END)"


def _scan(path: Path) -> str:
    quoted = exact(path).replace("'", "''")
    return f"read_parquet('{quoted}')"
