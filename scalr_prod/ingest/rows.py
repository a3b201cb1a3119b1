# SPDX-License-Identifier: Apache-2.0
"""Row access for ingest: staged logs and lake tables in DuckDB, and results in a table's schema."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from scalr_prod.core.delta_log import UNBOUNDED, files_dataset, files_in_time_range
from scalr_prod.core.timestamps import to_micros
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID
from scalr_prod.workspace import parquet_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.schemas import IdType


SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}
#: Rows per batch.
BATCH_ROWS = 65_536


def staged_rows_sql(files: Sequence[Path], types: dict[str, IdType], *, prefix: str = "") -> str:
    """Return the query of all staged rows, with id columns cast to their types and item ids prefixed if a prefix is given."""
    cast = {column: f"CAST({column} AS {SQL_TYPES[kind]})" for column, kind in types.items()}
    if prefix:
        cast[ITEM_ID] = f"'{prefix}' || CAST({cast[ITEM_ID]} AS VARCHAR)"
    casts = ", ".join(f"{value} AS {column}" for column, value in cast.items())
    return " UNION ALL ".join(f"SELECT * REPLACE ({casts}) FROM {parquet_sql(path)}" for path in files)


def combine_filters(*conditions: Any) -> Any:
    """Combine pyarrow filters with AND; None stands for no condition."""
    filters = [condition for condition in conditions if condition is not None]
    return functools.reduce(operator.and_, filters) if filters else None


def scan_table(
    table: DeltaTable,
    *,
    columns: Sequence[str] | None = None,
    where: Any = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pa.RecordBatchReader:
    """Stream the rows of an open table once, with little read-ahead.

    ``since`` and ``until`` (both inclusive) restrict the events' times; files outside are not opened.
    """
    import pyarrow.compute as pc

    low, high = (edge if moment is None else to_micros(moment) for moment, edge in zip((since, until), UNBOUNDED, strict=True))
    happened = pc.field(EVENT_TIMESTAMP)
    where = combine_filters(where, None if since is None else happened >= since, None if until is None else happened <= until)
    scanner = files_dataset(table, files_in_time_range(table, EVENT_TIMESTAMP, low, high)).scanner(
        columns=list(columns) if columns else None, filter=where, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    )
    return scanner.to_reader()


def create_temp_table(db: Any, name: str, rows: pa.RecordBatchReader, query: str = "FROM loaded") -> None:
    """Create a temporary DuckDB table of the rows, or of a query over them as ``loaded``."""
    db.register("loaded", rows)
    db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
    db.unregister("loaded")


def count_rows(db: Any, query: str) -> int:
    """Return the number of rows of a DuckDB query."""
    return int(db.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0])


def cast_to_schema(reader: Iterable[pa.RecordBatch], schema: pa.Schema, on_rows: Callable[[int], None]) -> pa.RecordBatchReader:
    """Cast batches to a table's schema; ``on_rows`` is called with the number of rows of each."""
    import pyarrow as pa

    def typed() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            on_rows(batch.num_rows)
            columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, typed())
