# SPDX-License-Identifier: Apache-2.0
"""Item catalogues: one row for each item with events, with its title, category and value from the item file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.ingest.append import commit_key
from scalr_prod.ingest.rows import (
    BATCH_ROWS,
    SQL_TYPES,
    cast_to_schema,
    count_rows,
    create_temp_table,
    scan_table,
    staged_rows_sql,
)
from scalr_prod.lake import retry_on_new_version
from scalr_prod.schemas import ITEM_ID, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from scalr_prod.ingest.append import StagedLog
    from scalr_prod.ingest.staging import StagedItems
    from scalr_prod.lake import Lake


_DESCRIPTION = ("title", "category", "value")


def update_catalogue(db: Any, lake: Lake, log: StagedLog, staged: StagedItems | None, *, opened: DeltaTable) -> tuple[int, int]:
    """Update a domain's rows of its item catalogue.

    Title, category and value come from the item file if it has the item; else they stay as they were, or are null for a new item. Of
    several rows with the same id the last one wins. Items of the file without events are ignored, so one file may hold the items of
    both domains.

    Args:
        db: DuckDB connection that holds the tables of the log's ids.
        lake: The lake.
        log: The staged log.
        staged: The staged item file, if there is one.
        opened: The catalogue's table.

    Returns:
        The number of this domain's catalogue rows, and of rows of the file that a later row replaced.

    Raises:
        CommitFailed: The lake rejected the commit; the catalogue is unchanged.
    """
    table = Table.items(log.domain)
    schema = arrow_schema(opened)
    columns = ", ".join(schema.names)
    duplicates = _load_file(db, log, staged)
    described = ", ".join(
        f"CASE WHEN file.{ITEM_ID} IS NULL THEN former.{name} ELSE file.described.{name} END AS {name}" for name in _DESCRIPTION
    )

    def update(version: int) -> int:
        create_temp_table(db, "former", scan_table(opened))
        db.execute(
            f"CREATE OR REPLACE TEMP TABLE latest AS SELECT {ITEM_ID}, {described} "
            f"FROM (SELECT {ITEM_ID} FROM {log.items_table} UNION SELECT {ITEM_ID} FROM former) AS ids "
            f"LEFT JOIN former USING ({ITEM_ID}) LEFT JOIN file USING ({ITEM_ID})"
        )
        size = count_rows(db, f"FROM latest WHERE {log.lake_filter_sql()}")
        # No item is removed here, so comparing rows in one direction finds every change.
        if count_rows(db, f"SELECT {columns} FROM latest EXCEPT SELECT {columns} FROM former"):
            ordered = db.sql(f"SELECT {columns} FROM latest ORDER BY {ITEM_ID}").to_arrow_reader(BATCH_ROWS)
            rows = cast_to_schema(ordered, schema, lambda _: None)
            lake.replace(table, rows, key=commit_key(), expected_version=version, opened=opened)
        return size

    return retry_on_new_version(lake, table, update, opened=opened), duplicates


def remove_unused_items(db: Any, lake: Lake, log: StagedLog) -> int:
    """Remove a domain's items without events from its catalogue and return how many.

    Args:
        db: DuckDB connection.
        lake: The lake, after events were replaced, changed or removed.
        log: The log.

    Raises:
        CommitFailed: The lake rejected the commit; the catalogue is unchanged.
    """
    table, events = Table.items(log.domain), Table.events(log.domain)
    schema, own = lake.schema(table), log.lake_filter_sql()

    def update(version: int) -> int:
        create_temp_table(db, "former", scan_table(lake.open_table(table, version=version)))
        rows = scan_table(lake.open_table(events), columns=[ITEM_ID])
        create_temp_table(db, "used", rows, f"SELECT DISTINCT {ITEM_ID} FROM loaded")
        unused = count_rows(db, f"SELECT * FROM former ANTI JOIN used USING ({ITEM_ID}) WHERE {own}")
        if unused:
            ordered = db.sql(
                f"SELECT {', '.join(schema.names)} FROM former WHERE NOT ({own}) OR {ITEM_ID} IN (FROM used) ORDER BY {ITEM_ID}"
            ).to_arrow_reader(BATCH_ROWS)
            lake.replace(table, cast_to_schema(ordered, schema, lambda _: None), key=commit_key(), expected_version=version)
        return unused

    return retry_on_new_version(lake, table, update)


def _load_file(db: Any, log: StagedLog, staged: StagedItems | None) -> int:
    """Create the table ``file``: the item file with the last row of each id. Return the number of rows dropped."""
    files = staged.files if staged else []
    no_rows = (
        f"SELECT NULL::{SQL_TYPES['string' if log.item_prefix else log.item_type]} AS {ITEM_ID}, NULL::VARCHAR AS title, "
        "NULL::VARCHAR AS category, "
        'NULL::DOUBLE AS "value", 0 AS "row" WHERE false'
    )
    rows = staged_rows_sql(files, {ITEM_ID: log.item_type}, prefix=log.item_prefix) if files else no_rows
    described = ", ".join(f"'{name}': \"{name}\"" for name in _DESCRIPTION)
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE file AS "
        f'SELECT {ITEM_ID}, arg_max({{{described}}}, "row") AS described FROM ({rows}) GROUP BY {ITEM_ID}'
    )
    return staged.rows - count_rows(db, "SELECT * FROM file") if staged else 0
