"""The spine: which labelled rows a training set has, before any feature is joined.

The union of real target events, synthetic target events (both label 1) and, on request, negatives (label 0): all of them from
before the cutoff and known by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.duck import exact
from scalr_prod.errors import TrainingSetError
from scalr_prod.holdout import HELD_OUT, Holdout
from scalr_prod.instants import micros

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.settings import Settings

__all__ = ["KEYS", "LABEL_COLUMNS", "Spine", "Window", "spine_schema", "stage_spine"]

KEYS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP)
LABEL_COLUMNS: Final = ("label", "weight", "is_synthetic", "run_id", "source_domain")

#: Before every event: what an open start means to a store. (Feast's own paths use nanoseconds, which begin in 1677.)
_BEGINNING: Final = datetime(1700, 1, 1, tzinfo=UTC)
_ROWS_AT_ONCE: Final = 1_000_000
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


@dataclass(frozen=True)
class Spine:
    """The staged spine.

    Attributes:
        path: One Parquet file, ordered by label time, then by every other column.
        real: Positive real rows.
        synthetic: Synthetic rows.
        negatives: Negative rows.
        missing_negatives: Negatives asked for that are not there: no eligible item was left, or the draw met a synthetic row.
    """

    path: Path
    real: int
    synthetic: int
    negatives: int
    missing_negatives: int

    @property
    def rows(self) -> int:
        """All rows."""
        return self.real + self.synthetic + self.negatives

    def chunks(self, rows: int) -> Iterator[pa.Table]:
        """The rows in order, in tables of exactly this many (the last one may hold fewer)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            kept: list[pa.RecordBatch] = []
            held = 0
            for batch in file.iter_batches(batch_size=rows):
                rest = batch
                while held + rest.num_rows >= rows:
                    yield pa.Table.from_batches([*kept, rest.slice(0, rows - held)])
                    rest, kept, held = rest.slice(rows - held), [], 0
                if rest.num_rows:
                    kept.append(rest)
                    held += rest.num_rows
            if held:
                yield pa.Table.from_batches(kept)


def spine_schema(user: pa.DataType, item: pa.DataType, *, held_out: bool = False) -> pa.Schema:
    """Columns of the spine, which are also the first columns of the training set; ``held_out`` where there is an experiment."""
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
    return schema.append(pa.field(HELD_OUT, pa.bool_(), nullable=False)) if held_out else schema


def stage_spine(settings: Settings, window: Window, folder: Path) -> Spine:
    """Read the events through Feast, draw the negatives, and write all rows in their canonical order.

    Args:
        settings: ``[training_set]`` tells negatives, λ and seed.
        window: Which labels.
        folder: An empty folder to write to.

    Raises:
        TrainingSetError: There is no real event in the window.
    """
    from scalr_prod.duck import open_duckdb
    from scalr_prod.training_set.negatives import stage_negatives

    options = settings.training_set
    real, synthetic, negative = (folder / f"{name}.parquet" for name in ("real", "synthetic", "negatives"))
    start = micros(window.start or _BEGINNING)
    with open_duckdb(settings, folder) as connection:
        schema = _stage_events(connection, settings, Table.TARGET_EVENTS, window.cutoff, more=("weight",), path=real)
        _stage_events(
            connection,
            settings,
            Table.SYNTHETIC_TARGET_EVENTS,
            window.cutoff,
            more=("weight", "run_id", "source_domain"),
            path=synthetic,
        )
        held = Holdout.of(settings)
        output = spine_schema(schema.field(USER_ID).type, schema.field(ITEM_ID).type, held_out=held is not None)
        counted = {path: _count(connection, path, start) for path in (real, synthetic)}
        if not counted[real]:
            raise _no_real_events(connection, settings, window, real)
        if options.negatives_per_event:
            stage_negatives(connection, settings, real, negative, start=start)
        else:
            _write(iter(()), spine_schema(output.field(USER_ID).type, output.field(ITEM_ID).type), negative)
        path = folder / "spine.parquet"
        keys = ", ".join(KEYS)
        # A negative that meets a synthetic row of the same instant would contradict it: it goes, the others stay.
        lambda_ = _lambda(settings)
        # What a user got before being held out is no part of an experiment.
        marked, treated = ("", "true") if held is None else (f", {held.sql(USER_ID)} AS {HELD_OUT}", f"NOT {held.sql(USER_ID)}")
        query = f"""
            WITH real_events AS (SELECT {USER_ID}, count(*) AS real_events FROM {_scan(real)} GROUP BY {USER_ID})
            SELECT *{marked} FROM (
                SELECT {keys}, 1 AS label, weight, false AS is_synthetic, NULL AS run_id, NULL AS source_domain
                FROM {_scan(real)} WHERE epoch_us({EVENT_TIMESTAMP}) >= {start}
                UNION ALL
                SELECT {keys}, 1, weight * {lambda_}, true, run_id, source_domain
                FROM {_scan(synthetic)} LEFT JOIN real_events USING ({USER_ID})
                WHERE epoch_us({EVENT_TIMESTAMP}) >= {start} AND {lambda_} > 0 AND {treated}
                UNION ALL
                SELECT {keys}, label, weight, is_synthetic, run_id, source_domain
                FROM {_scan(negative)} WHERE ({keys}) NOT IN (SELECT ({keys}) FROM {_scan(synthetic)}))
            ORDER BY {_ORDER}"""
        reader = connection.sql(query).to_arrow_reader(65_536)
        rows = _write(reader, output, path)
        counted[synthetic] = _count(connection, path, start, where="is_synthetic")
        negatives = rows - counted[real] - counted[synthetic]
    missing = counted[real] * options.negatives_per_event - negatives
    return Spine(path, counted[real], counted[synthetic], negatives, missing)


def _stage_events(
    connection: Any, settings: Settings, table: Table, cutoff: datetime, *, more: tuple[str, ...], path: Path
) -> pa.Schema:
    """Every event of a view from before the cutoff and known by it, in one file."""
    import pyarrow.parquet as pq

    from scalr_prod.feast_store import read_window

    columns = [*KEYS, *more]
    edges = [_BEGINNING, *_edges(connection, settings, table, cutoff), cutoff]
    writer: Any = None
    for start, end in pairwise(edges):
        found = read_window(settings, table.value, start=start, end=end, known_by=cutoff, columns=columns)
        writer = writer or pq.ParquetWriter(path, found.schema.remove_metadata(), compression="zstd")
        writer.write_table(found.replace_schema_metadata(None))
    writer.close()
    schema: pa.Schema = pq.read_schema(path)
    return schema


def _edges(connection: Any, settings: Settings, table: Table, cutoff: datetime) -> list[datetime]:
    """Instants that cut a view into pieces of about `_ROWS_AT_ONCE` rows: what is read at once has to fit in memory."""
    from scalr_prod.lake import Lake

    dataset = Lake.open(settings).dataset(table)
    pieces = 1 + dataset.count_rows() // _ROWS_AT_ONCE
    if pieces == 1:
        return []
    connection.register("all_events", dataset)
    shares = [number / pieces for number in range(1, pieces)]
    query = f"SELECT approx_quantile(epoch_us({EVENT_TIMESTAMP}), {shares}) FROM all_events"
    found = connection.sql(query).fetchall()[0][0]
    connection.unregister("all_events")
    instants = {datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(micros)) for micros in found}
    return sorted(instant for instant in instants if _BEGINNING < instant < cutoff)


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
    options, sparse_below = settings.training_set, settings.downstream.sparse_below
    cold, sparse, dense = (
        f"{float(options.synthetic_weight * weight)!r}::DOUBLE" for weight in options.segment_weights or (1.0, 1.0, 1.0)
    )
    return f"(CASE WHEN real_events IS NULL THEN {cold} WHEN real_events < {sparse_below} THEN {sparse} ELSE {dense} END)"


def _count(connection: Any, path: Path, start: int, *, where: str = "true") -> int:
    query = f"SELECT count(*) FROM {_scan(path)} WHERE epoch_us({EVENT_TIMESTAMP}) >= {start} AND {where}"
    return int(connection.sql(query).fetchall()[0][0])


def _no_real_events(connection: Any, settings: Settings, window: Window, real: Path) -> TrainingSetError:
    bounds = connection.sql(f"SELECT min({EVENT_TIMESTAMP}), max({EVENT_TIMESTAMP}) FROM {_scan(real)}")
    first, last = bounds.fetchall()[0]
    since = f" from {window.start.isoformat()} on" if window.start else ""
    known = f"; known by then are events from {first.isoformat()} to {last.isoformat()}" if first else ""
    return TrainingSetError(
        f"there is no real target event{since} before the cutoff {window.cutoff.isoformat()} that was known by it{known}",
        where=f"{settings.lake_url}/{Table.TARGET_EVENTS.value}",
        next_step="choose an earlier [training_set] start" if first else "choose a later [training_set] cutoff",
    )


def _scan(path: Path) -> str:
    quoted = exact(path).replace("'", "''")
    return f"read_parquet('{quoted}')"
