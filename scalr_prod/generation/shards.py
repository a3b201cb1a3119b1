# SPDX-License-Identifier: Apache-2.0
"""A run's input, written once for all of its tasks as shards in ``<home>/runs/<run_id>/shards``.

The driver reads the logs in one pass and each task reads only its own shards, so the number of tasks does not matter. A shard holds
consecutive users, so that their rows in other tables lie together too. Each task's file has one row group per shard, and a manifest.
A resumed run reuses complete files; they are removed once all parts are made.
"""

from __future__ import annotations

import shutil
from itertools import chain
from typing import TYPE_CHECKING, Final

from scalr_prod.core.partitioned import PARTITION_ROWS, iter_numbered, iter_partition_tables
from scalr_prod.errors import GenerationError
from scalr_prod.generation.context_query import (
    CHOSEN_USERS_TABLE,
    chosen_user_consumption,
    chosen_user_contexts,
    chosen_user_events,
    create_chosen_users,
)
from scalr_prod.generation.part_files import (
    open_part_writer,
    part_identity,
    part_path,
    read_part,
    remove_stale_parts,
    write_manifest,
)
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import USER_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


#: Contexts, with their histories, that a task holds in memory at a time.
_SHARD_CONTEXTS: Final = 50_000
_BATCH_ROWS: Final = 100_000
_SHARD_COLUMN: Final = "shard"


def write_shards(settings: Settings, spec: RunSpec, partitions: int) -> int:
    """Write the input of each task of a run, unless it is there already.

    Args:
        settings: The project's settings.
        spec: The run.
        partitions: Number of tasks. Each gets about the same number of contexts, of consecutive users by id.

    Returns:
        The number of contexts.

    Raises:
        LakeError: A table cannot be read.
    """
    from scalr_prod.workspace import open_duckdb, staging_folder

    written = _count_written_contexts(settings.home, spec, partitions)
    if written is not None:
        return written
    with staging_folder(settings, "contexts") as folder, open_duckdb(settings, folder) as connection:
        create_chosen_users(connection, settings, spec)
        assigned = _assign_shards(connection, partitions)
        contexts = _iter_context_readers(connection, spec, folder)
        rows = _write_files(_folder(settings.home, spec, "contexts"), spec, assigned, contexts)
        consumed = chosen_user_consumption(connection, spec, _SHARD_COLUMN)
        if consumed is not None:
            _write_files(
                _folder(settings.home, spec, "consumed"), spec, assigned, iter([consumed.to_arrow_reader(_BATCH_ROWS)])
            )
    return rows


def read_shards(home: Path, spec: RunSpec, partition: int, partitions: int) -> Iterator[tuple[pa.Table, pa.Table | None]]:
    """Yield one task's shards: contexts, and what their users consumed in the target domain, as `read_contexts` returns them.

    Raises:
        GenerationError: The input written by the driver is missing.
    """
    import pyarrow.parquet as pq

    folders = [_folder(home, spec, name) for name in _table_names(spec)]
    for folder in folders:
        if read_part(folder, spec, partition, partitions) is None:
            raise GenerationError(
                "the input of this task is missing or damaged",
                where=str(part_path(folder, partition)),
                next_step="check that every worker sees the project's home, then resume the run: scalr runs resume RUN",
            ).add_context(run_id=spec.run_id)
    files = [pq.ParquetFile(part_path(folder, partition)) for folder in folders]
    try:
        for number in range(files[0].num_row_groups):
            rows, *consumed = (file.read_row_group(number) for file in files)
            yield rows, consumed[0] if consumed else None
    finally:
        for file in files:
            file.close()


def remove_shards(home: Path, spec: RunSpec) -> None:
    """Remove the files that `write_shards` wrote, if any, also those of earlier versions."""
    for name in ("shards", "asked"):
        shutil.rmtree(run_folder(home, spec.run_id) / name, ignore_errors=True)


def _folder(home: Path, spec: RunSpec, name: str = "") -> Path:
    return run_folder(home, spec.run_id) / "shards" / name


def _table_names(spec: RunSpec) -> tuple[str, ...]:
    return ("contexts", "consumed") if spec.settings["generation"]["exclude_consumed"] else ("contexts",)


def _count_written_contexts(home: Path, spec: RunSpec, partitions: int) -> int | None:
    """Return how many contexts were written, or None if a file is missing or incomplete."""
    rows = 0
    for number in range(partitions):
        for name in _table_names(spec):
            manifest = read_part(_folder(home, spec, name), spec, number, partitions)
            if manifest is None:
                return None
            rows += int(manifest["rows"]) if name == "contexts" else 0
    return rows


def _assign_shards(connection: DuckDBPyConnection, partitions: int) -> list[list[int]]:
    """Assign each chosen user to one of about equally large shards, and return the shard numbers of each task.

    A user is never split: after one with very many contexts, shard numbers are skipped.
    """
    query = f"SELECT coalesce(sum(contexts), 0)::BIGINT FROM {CHOSEN_USERS_TABLE}"
    ((contexts,),) = connection.execute(query).fetchall()
    each = max(1, -(-contexts // (partitions * _SHARD_CONTEXTS)))
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {CHOSEN_USERS_TABLE} AS SELECT {USER_ID}, newcomer,
            CAST((sum(contexts) OVER (ORDER BY {USER_ID}) - contexts) * {partitions * each} // {max(contexts, 1)} AS BIGINT)
            AS {_SHARD_COLUMN}, events FROM {CHOSEN_USERS_TABLE}"""
    )
    numbers = [
        row[0]
        for row in connection.execute(f"SELECT DISTINCT {_SHARD_COLUMN} FROM {CHOSEN_USERS_TABLE} ORDER BY ALL").fetchall()
    ]
    shards_by_task: list[list[int]] = [[] for _ in range(partitions)]
    for number in numbers:
        shards_by_task[number // each].append(number)
    return shards_by_task


def _iter_context_readers(connection: DuckDBPyConnection, spec: RunSpec, folder: Path) -> Iterator[pa.RecordBatchReader]:
    """Yield all contexts, shard by shard, sorting at most a few shards at a time so that they fit in memory."""
    edges, pending = [], 0
    counted = f"SELECT {_SHARD_COLUMN}, sum(events)::BIGINT FROM {CHOSEN_USERS_TABLE} GROUP BY ALL ORDER BY ALL"
    for number, events in connection.execute(counted).fetchall():
        if pending and pending + events > PARTITION_ROWS:
            edges.append(number)
            pending = 0
        pending += events
    if not edges:
        yield chosen_user_contexts(connection, spec, _SHARD_COLUMN).to_arrow_reader(_BATCH_ROWS)
        return
    query, parameters = chosen_user_events(spec, _SHARD_COLUMN)
    spilled = folder / "event-partitions"
    for table in iter_partition_tables(
        connection, query, key=_SHARD_COLUMN, bounds=edges, folder=spilled, parameters=parameters
    ):
        yield chosen_user_contexts(connection, spec, _SHARD_COLUMN, events=table).to_arrow_reader(_BATCH_ROWS)


def _write_files(folder: Path, spec: RunSpec, assigned: list[list[int]], readers: Iterator[pa.RecordBatchReader]) -> int:
    """Write rows that come shard by shard to one file per task, and return their number.

    A shard without rows gets an empty row group, so that the row groups of a task's files match.
    """
    partitions, reader = len(assigned), next(readers)
    schema = reader.schema.remove(reader.schema.get_field_index(_SHARD_COLUMN))
    shards, rows = iter_numbered(chain(reader, chain.from_iterable(readers)), _SHARD_COLUMN), 0
    following = next(shards, None)
    for part, numbers in enumerate(assigned):
        path, written = part_path(folder, part), 0
        with open_part_writer(path, schema) as write:
            for number in numbers:
                table = schema.empty_table()
                if following is not None and following[0] == number:
                    table, following = following[1], next(shards, None)
                write(table)
                written += len(table)
        write_manifest(path, part_identity(spec, part, partitions) | {"rows": written})
        rows += written
    remove_stale_parts(folder, partitions)
    return rows
