# SPDX-License-Identifier: Apache-2.0
"""Samples of logs: their first rows, with every column."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import EmptyInput, UnreadableInput
from scalr_prod.ingest import Batch, ColumnSelection, format_suffix, read_path, read_query

if TYPE_CHECKING:
    from collections.abc import Generator

    from scalr_prod.apps.onboarding.log_request import LogRequest
    from scalr_prod.config import Settings


#: Rows of a sample whose columns are known by name, and of one whose values have to tell.
NAMES_ROWS: Final = 10_000
EVIDENCE_ROWS: Final = 200_000
#: Further limits of a sample: files of a folder, and bytes read.
_FILES: Final = 50
_BYTES: Final = 64 << 20
#: Ambiguous suffixes, and the usual format of such files.
_LIKELY_FORMAT: Final = {".json": "jsonl", ".txt": "csv", ".dat": "csv", ".log": "csv"}


def read_sample(base: Settings, request: LogRequest, *, rows: int = NAMES_ROWS) -> tuple[Batch, dict[str, str]]:
    """Read the first rows of a log or item file; return them, and the format if the name does not determine it.

    Args:
        base: Any settings; relative paths start from their folder.
        request: The log, or an item file whose place is ``items``.
        rows: Largest number of rows.

    Raises:
        InputError: It does not exist, cannot be read, or has no row.
    """
    option = "--items, --source-items or --target-items" if request.place == "items" else request.option
    everything = ColumnSelection((), f"domains.{request.place}.columns", all_columns=True, location=option)
    if request.query is not None:
        return _first(read_query(request.location, request.query, everything), "the query", rows), {}
    location = request.location
    try:
        return _first(read_path(base, location, everything), location, rows), {}
    except UnreadableInput:
        likely = _LIKELY_FORMAT.get(format_suffix(location))
        if likely is None or request.place == "items":
            raise
    return _first(read_path(base, location, everything, format=likely), location, rows), {"format": likely}


def read_table_sample(url: str, table: str) -> Batch:
    """Read the first rows of a database's table.

    Args:
        url: A SQLAlchemy URL.
        table: The quoted name.

    Raises:
        InputError: It cannot be read, or has no row.
    """
    everything = ColumnSelection((), "domains", all_columns=True)
    return _first(read_query(url, f"SELECT * FROM {table}", everything), table, NAMES_ROWS)


def _first(batches: Generator[Batch, None, None], origin: str, rows: int) -> Batch:
    import pyarrow as pa

    found: list[Batch] = []
    sampled = seen_rows = seen_bytes = 0
    with closing(batches):
        for batch in batches:
            seen_rows, seen_bytes = seen_rows + batch.rows.num_rows, seen_bytes + batch.rows.nbytes
            # Files of a folder may differ in their types: the sample uses those with the first one's schema.
            if batch.rows.num_rows and (not found or batch.rows.schema.equals(found[0].rows.schema)):
                found.append(batch)
                sampled += batch.rows.num_rows
            if len(found) == _FILES or sampled >= rows or (found and (seen_rows >= EVIDENCE_ROWS or seen_bytes >= _BYTES)):
                break
    if not found:
        raise EmptyInput("has no rows", where=origin, next_step="name a file that has rows")
    table = pa.Table.from_batches([one.rows for one in found]).combine_chunks().slice(0, rows).to_batches()[0]
    one_file = len({one.origin for one in found}) == 1
    return Batch(found[0].origin if one_file else origin, found[0].row, table, found[0].untyped)
