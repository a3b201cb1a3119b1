# SPDX-License-Identifier: Apache-2.0
"""Parquet files that tasks write into a table's folder; they become part of the table when the driver commits them."""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.file_systems import open_file_system

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction


#: Most rows of a row group, which a writer holds in memory until it is full.
ROW_GROUP_ROWS: Final = 65_536
#: A file's name: its number, what it has in common with the others of its commit, and what it alone has.
_COMMIT_ID: Final = re.compile(r"part-\d+-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-.+\.parquet")
#: The log keeps so many characters of the least and greatest text of a file.
_STATISTICS_CHARACTERS: Final = 32
_GREATEST_CHARACTER: Final = "\U0010ffff"


@dataclass(frozen=True)
class TableFile:
    """A file in a table's folder that no commit names yet.

    Attributes:
        path: Name, relative to the table.
        rows: Number of rows.
        size: Bytes.
        statistics: The log's statistics: row count, and least value, greatest value and null count of each plain column, as JSON.
    """

    path: str
    rows: int
    size: int
    statistics: str

    def to_add_action(self) -> AddAction:
        """Return the log's entry that adds the file to its table."""
        from deltalake.transaction import AddAction

        return AddAction(self.path, self.size, {}, int(time.time() * 1000), data_change=True, stats=self.statistics)


def write_table_file(
    uri: str,
    storage_options: Mapping[str, str],
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    *,
    number: int,
    commit_id: str | None = None,
) -> TableFile | None:
    """Write rows to a new file of a table; return None if there are none. A file that is not finished is removed.

    Args:
        uri: The table's folder or URL.
        storage_options: Of the object store.
        batches: The rows, streamed.
        schema: The table's schema.
        number: Part of the file's name, so that names sort like the files.
        commit_id: A UUID that the files of one commit have in common, see `commit_id_of`; default: one of its own.
    """
    import pyarrow.parquet as pq

    groups = _iter_row_groups(batches)
    first = next(groups, None)
    if first is None:
        return None
    # Two attempts of a task never write to one file.
    files, path = (
        open_file_system(uri, storage_options),
        f"part-{number:05d}-{commit_id or uuid.uuid4()}-{uuid.uuid4().hex}.zstd.parquet",
    )
    written: list[pq.FileMetaData] = []
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "metadata_collector": written}
    try:
        with pq.ParquetWriter(path, schema, filesystem=files, **options) as writer:
            for group in chain([first], groups):
                writer.write_table(group, ROW_GROUP_ROWS)
    except BaseException:
        with suppress(OSError):
            files.delete_file(path)
        raise
    return TableFile(path, written[0].num_rows, files.get_file_info(path).size, json.dumps(_statistics(written[0])))


def commit_id_of(path: str) -> str:
    """Return what the files of one commit have in common in their names: Delta's writer and ours write a UUID. Of other files, the path."""
    match = _COMMIT_ID.fullmatch(PurePosixPath(path).name)
    return path if match is None else match[1]


def _iter_row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather batches to row groups, without copying rows; larger batches stay whole."""
    import pyarrow as pa

    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if pending and rows + len(batch) > ROW_GROUP_ROWS:
            yield pa.Table.from_batches(pending)
            pending, rows = [], 0
        if len(batch):
            pending.append(batch)
            rows += len(batch)
    if pending:
        yield pa.Table.from_batches(pending)


def remove_table_files(uri: str, storage_options: Mapping[str, str], files: Iterable[TableFile]) -> None:
    """Remove files that will not be committed, as far as the folder can be written to."""
    folder = open_file_system(uri, storage_options)
    for file in files:
        with suppress(OSError):
            folder.delete_file(file.path)


def _statistics(metadata: pq.FileMetaData) -> dict[str, Any]:
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for number in range(metadata.num_columns):
        chunks = [metadata.row_group(group).column(number) for group in range(metadata.num_row_groups)]
        found = [chunk.statistics for chunk in chunks]
        name = chunks[0].path_in_schema
        if metadata.schema.column(number).max_repetition_level or not all(
            each is not None and each.has_null_count for each in found
        ):
            continue
        nulls[name] = sum(each.null_count for each in found)
        bounded = [each for each in found if each.has_min_max]
        if len(bounded) < sum(each.num_values > 0 for each in found) or not bounded:
            continue
        low, high = min(each.min for each in bounded), max(each.max for each in bounded)
        if _is_exact(low) and _is_exact(high):
            least[name], greatest[name] = _lower_bound(low), _upper_bound(high)
    return {"numRecords": metadata.num_rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}


def _is_exact(value: Any) -> bool:
    return isinstance(value, (int, str, datetime)) or (isinstance(value, float) and math.isfinite(value))


def _lower_bound(value: Any) -> Any:
    return value[:_STATISTICS_CHARACTERS] if isinstance(value, str) else _to_json(value)


def _upper_bound(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _STATISTICS_CHARACTERS:
        return value[:_STATISTICS_CHARACTERS] + _GREATEST_CHARACTER
    return _to_json(value)


def _to_json(value: Any) -> Any:
    """Return a value as the log writes it: times in milliseconds, rounded down."""
    if not isinstance(value, datetime):
        return value
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"
