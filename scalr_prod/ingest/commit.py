"""Staged rows → the lake. A log is a multiset: only rows that are not there yet, as often as they are missing, are added."""

from __future__ import annotations

import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, Table
from scalr_prod.errors import CommitFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.contracts import IdType
    from scalr_prod.ingest.staging import StagedItems
    from scalr_prod.lake import Lake

__all__ = ["Log", "add_events", "scan", "staged_sql", "update_catalogue"]

logger = logging.getLogger(__name__)

_SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR"}
_ROWS = 65_536
_ATTEMPTS = 8


@dataclass(frozen=True)
class Log:
    """A staged log in the types of the lake.

    Attributes:
        view: The DuckDB view of its rows.
        first: Earliest event.
        last: Latest event.
    """

    view: str
    first: datetime
    last: datetime


def staged_sql(files: Sequence[Path], types: dict[str, IdType]) -> str:
    """A query of all staged rows with the id columns cast to their types."""
    casts = ", ".join(f"CAST({column} AS {_SQL_TYPES[kind]}) AS {column}" for column, kind in types.items())
    quoted = (str(path).replace("'", "''") for path in files)
    return " UNION ALL ".join(f"SELECT * REPLACE ({casts}) FROM read_parquet('{path}')" for path in quoted)


def scan(
    lake: Lake, table: Table, *, version: int, columns: Sequence[str] | None = None, where: Any = None
) -> pa.RecordBatchReader:
    """A table's rows as a stream that reads ahead little, to be scanned once."""
    scanner = lake.dataset(table, version=version).scanner(
        columns=list(columns) if columns else None, filter=where, batch_size=_ROWS, batch_readahead=2, fragment_readahead=1
    )
    return scanner.to_reader()


def add_events(db: Any, lake: Lake, table: Table, log: Log, *, count: Callable[[int], None]) -> tuple[int, int]:
    """Add what is missing; several ingests at once add each row once.

    Args:
        db: DuckDB connection that holds the log's view.
        lake: The lake.
        table: The events table; it is there.
        log: The staged log.
        count: Called with the number of rows of each batch written.

    Returns:
        Rows added, and the table's version afterwards.

    Raises:
        CommitFailed: Nothing was added.
    """
    schema = lake.schema(table)
    for attempt in itertools.count(1):
        version = lake.version(table)
        added = _Counter(count)
        rows = _rows(_missing(db, lake, table, log, schema, version), schema, added)
        if rows is None:
            return 0, version
        try:
            commit = lake.append(table, rows, key=f"ingest-{uuid.uuid4().hex}", expected_version=version)
        except CommitFailed:
            if attempt == _ATTEMPTS or lake.version(table) == version:
                raise
            logger.info("%s moved on while rows were added to it; comparing again", table.value)
        else:
            return added.rows, commit.version
    raise AssertionError("unreachable")


def update_catalogue(db: Any, lake: Lake, table: Table, log: Log, staged: StagedItems | None, item: IdType) -> tuple[int, int]:
    """Bring the item catalogue up to date: one row for each item that has events.

    An item's title, category and value come from the item file where it is in there, else they stay what they were, else they
    are null. Of several rows with one id the last counts. Items of the file without events are left out, so that one file may
    hold the items of both domains.

    Returns:
        Rows of the catalogue, and rows of the file that a later one replaced.
    """
    schema = lake.schema(table)
    columns = ", ".join(schema.names)
    duplicates = 0
    db.execute(f"CREATE OR REPLACE TEMP TABLE file AS SELECT NULL::{_SQL_TYPES[item]} AS item_id, NULL AS found LIMIT 0")
    if staged is not None:
        last = "arg_max({'title': title, 'category': category, 'value': value}, \"row\")"
        db.execute(
            f"CREATE OR REPLACE TEMP TABLE file AS SELECT item_id, {last} AS found "
            f"FROM ({staged_sql(staged.files, {ITEM_ID: item})}) GROUP BY item_id"
        )
        duplicates = staged.rows - db.sql("SELECT count(*) FROM file").fetchall()[0][0]
    for attempt in itertools.count(1):
        version = lake.version(table)
        db.register("former_rows", scan(lake, table, version=version))
        db.execute("CREATE OR REPLACE TEMP TABLE former AS SELECT * FROM former_rows")
        db.unregister("former_rows")
        fields = ", ".join(
            f"CASE WHEN file.item_id IS NULL THEN former.{name} ELSE file.found.{name} END AS {name}"
            for name in ("title", "category", "value")
        )
        no_file = "CREATE OR REPLACE TEMP TABLE latest AS SELECT item_id, title, category, value FROM ids LEFT JOIN former USING (item_id)"
        with_file = (
            f"CREATE OR REPLACE TEMP TABLE latest AS SELECT item_id, {fields} "
            "FROM ids LEFT JOIN former USING (item_id) LEFT JOIN file USING (item_id)"
        )
        db.execute(
            f"CREATE OR REPLACE TEMP TABLE ids AS SELECT DISTINCT item_id FROM {log.view} UNION SELECT item_id FROM former"
        )
        db.execute(with_file if staged is not None else no_file)
        size = db.sql("SELECT count(*) FROM latest").fetchall()[0][0]
        changed = db.sql(f"SELECT count(*) FROM (SELECT {columns} FROM latest EXCEPT SELECT {columns} FROM former)").fetchall()[
            0
        ][0]
        if not changed and size == db.sql("SELECT count(*) FROM former").fetchall()[0][0]:
            return size, duplicates
        reader = db.sql(f"SELECT {columns} FROM latest ORDER BY item_id").to_arrow_reader(_ROWS)
        rows = _rows(reader, schema, _Counter(lambda _: None))
        try:
            lake.replace(table, rows, key=f"ingest-{uuid.uuid4().hex}", expected_version=version)  # type: ignore[arg-type]
        except CommitFailed:
            if attempt == _ATTEMPTS or lake.version(table) == version:
                raise
        else:
            return size, duplicates
    raise AssertionError("unreachable")


def _missing(db: Any, lake: Lake, table: Table, log: Log, schema: pa.Schema, version: int) -> pa.RecordBatchReader:
    """The rows of the log that the table's version lacks, in the order of their time."""
    import pyarrow.dataset as ds

    window = (ds.field(EVENT_TIMESTAMP) >= log.first) & (ds.field(EVENT_TIMESTAMP) <= log.last)
    there = scan(lake, table, version=version, where=window)
    columns = ", ".join(schema.names)
    db.register("there", there)
    # Grouping both sides and subtracting keeps rows that a log truly holds twice, and adds none that is there already.
    return db.sql(
        f"WITH new AS (SELECT {columns}, count(*) AS times FROM {log.view} GROUP BY ALL), "
        f"old AS (SELECT {columns}, count(*) AS times FROM there GROUP BY ALL), "
        f"missing AS (SELECT new.*, new.times - coalesce(old.times, 0) AS lacking FROM new LEFT JOIN old USING ({columns})) "
        f"SELECT {columns} FROM (SELECT {columns}, unnest(range(lacking)) FROM missing WHERE lacking > 0) "
        f"ORDER BY event_timestamp, user_id, item_id, created_timestamp, weight"
    ).to_arrow_reader(_ROWS)


class _Counter:
    """Counts the rows that pass."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.rows = 0
        self._tell = tell

    def __call__(self, rows: int) -> None:
        self.rows += rows
        self._tell(rows)


def _rows(reader: pa.RecordBatchReader, schema: pa.Schema, count: Callable[[int], None]) -> pa.RecordBatchReader | None:
    """The reader's batches under the table's own schema; None where there is no row."""
    import pyarrow as pa

    batches = (batch for batch in reader if batch.num_rows)
    first = next(batches, None)
    if first is None:
        return None

    def typed() -> Iterator[pa.RecordBatch]:
        for batch in itertools.chain([first], batches):
            count(batch.num_rows)
            columns = [batch.column(name).cast(schema.field(name).type) for name in schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, typed())
