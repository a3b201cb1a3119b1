# SPDX-License-Identifier: Apache-2.0
"""A run's accepted rows: the audited files, without erased users and items, as a stream or as files of a table."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import SharedFiles, ShuffleFolder, open_executor, shuffle_folder
from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import CommitFailed, PublicationError
from scalr_prod.lake import checked_window
from scalr_prod.ledger import run_folder
from scalr_prod.publication.regions import REWRITE_SCAN_OPTIONS
from scalr_prod.schemas import ITEM_ID, USER_ID
from scalr_prod.workspace import SuppressionList

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.compute import Executor
    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake, TableFile
    from scalr_prod.schemas import Table
    from scalr_prod.workspace import Canary, SuppressedKind


#: Processor time of a task that reads and writes a row.
_SECONDS_PER_ROW: Final = 1e-6


def accepted_files(settings: Settings, run_id: str) -> tuple[list[Path], int]:
    """Return the files that the gate accepted, after verifying their checksums, and the number of accepted rows.

    Raises:
        PublicationError: There is no verdict, the gate rejected the run, or a file is missing or differs.
    """
    folder = run_folder(settings.home, run_id)
    hint = f"audit the run again: scalr validate {run_id}"
    try:
        report = json.loads((folder / "gate.json").read_text(encoding="utf-8"))["report"]
    except (OSError, ValueError, KeyError) as error:
        raise PublicationError("the gate's verdict is missing", where=str(folder / "gate.json"), next_step=hint) from error
    if not report["passed"]:
        raise PublicationError(
            "the quality gate rejected the run", where=str(folder / "gate.json"), next_step=hint
        ).add_context(run_id=run_id)
    paths = []
    for file in report["files"]:
        path = folder / file["path"]
        if not path.exists() or file_sha256(path) != file["sha256"]:
            raise PublicationError(
                "this file is not the one that the gate accepted", where=str(path), next_step=hint
            ).add_context(run_id=run_id)
        paths.append(path)
    return paths, int(report["accepted"])


def stream_accepted_rows(files: Sequence[Path], schema: pa.Schema, canary: Canary | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of accepted files, of a canary's users or of all (None). Memory does not grow with the files."""
    import pyarrow.dataset as ds

    # Otherwise a file is read entirely before its first row is available.
    options = ds.ParquetFragmentScanOptions(pre_buffer=False)
    dataset = ds.dataset([str(path) for path in files], format="parquet", schema=schema)
    for batch in dataset.to_batches(fragment_scan_options=options, **REWRITE_SCAN_OPTIONS):
        rows = batch if canary is None or not len(batch) else batch.filter(canary.membership_mask(batch.column(USER_ID)))
        yield rows.cast(schema)


@dataclass(frozen=True)
class _FilesToWrite:
    """What every task needs to know; ``commit_id`` is what the names of all files have in common."""

    lake: Lake
    table: Table
    schema: pa.Schema
    commit_id: str
    accepted: SharedFiles
    window: tuple[datetime, datetime] | None


def write_accepted_rows(
    settings: Settings,
    run_id: str,
    files: Sequence[Path],
    *,
    lake: Lake,
    table: Table,
    opened: DeltaTable,
    window: tuple[datetime, datetime] | None = None,
) -> list[TableFile]:
    """Write the rows of accepted files to files of a table that no commit names yet, each in a task.

    Args:
        settings: The project's settings.
        run_id: The run.
        files: The accepted files.
        lake: The project's lake.
        table: Which table; its columns are taken from the rows.
        opened: The opened table.
        window: The first instant of the rows, and the one after the last; None: not checked.

    Raises:
        CommitFailed: A file cannot be written, or a row is outside of the window; no file is left.
        ComputeError: A task on a worker failed. Files of tasks that ran at the same time may be left until `Lake.vacuum` removes them.
    """
    import pyarrow.parquet as pq

    work_s = sum(pq.read_metadata(path).num_rows for path in files) * _SECONDS_PER_ROW
    written: list[tuple[int, TableFile | None]] = []
    try:
        with (
            open_executor(settings, None, tasks=len(files), work_s=work_s, stage="publish", run_id=run_id) as executor,
            _share(lake, table, files, executor) as accepted,
        ):
            job = _FilesToWrite(lake, table, arrow_schema(opened), str(uuid.uuid4()), accepted, window)
            written.extend(executor.map(_write_file, ((job, number) for number in range(len(files)))))
    except BaseException as error:
        lake.remove_files(table, _in_order(written))
        if isinstance(error, OSError | ValueError):
            raise CommitFailed(
                f"nothing was written: {error}", where=lake.uri(table), next_step="fix the cause and run the command again"
            ) from error
        raise
    return _in_order(written)


def _in_order(written: list[tuple[int, TableFile | None]]) -> list[TableFile]:
    return [file for _, file in sorted(written, key=lambda one: one[0]) if file is not None]


@contextmanager
def _share(lake: Lake, table: Table, files: Sequence[Path], executor: Executor) -> Iterator[SharedFiles]:
    """Yield the files where tasks read them: in place on this machine, else copied to the table's folder."""
    if executor.is_local:
        yield SharedFiles(ShuffleFolder(str(files[0].parent) if files else ""), [path.name for path in files])
        return
    with shuffle_folder(lake.uri(table), lake.storage_options) as folder:
        yield SharedFiles(folder, folder.put_all(files))


def _write_file(_connection: Any, job: _FilesToWrite, number: int) -> tuple[int, TableFile | None]:
    """Task: write the rows of one accepted file."""
    import pyarrow as pa

    with job.accepted.folder.open_local_files([job.accepted.paths[number]]) as files:
        rows: Iterable[pa.RecordBatch] = stream_accepted_rows(files, job.schema, None)
        if job.window is not None:
            rows = checked_window(pa.RecordBatchReader.from_batches(job.schema, rows), *job.window)
        return number, job.lake.write_file(job.table, rows, job.schema, number=number, commit_id=job.commit_id)


def count_accepted_rows(files: Sequence[Path], canary: Canary) -> int:
    """Count the rows of accepted files that belong to a canary's users."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    users = (pq.read_table(path, columns=[USER_ID]).column(0).combine_chunks() for path in files)
    return sum(pc.sum(canary.membership_mask(column)).as_py() or 0 for column in users if len(column))


def ensure_no_erased_ids(settings: Settings, run_id: str, files: Sequence[Path]) -> None:
    """Refuse files with rows of erased users or items, which a restored copy may contain again."""
    suppressed = SuppressionList.open(settings)
    kinds: dict[SuppressedKind, tuple[str, str]] = {"user": (USER_ID, "users"), "item": (ITEM_ID, "items")}
    for kind, (column, noun) in kinds.items():
        if not suppressed.entries(kind):
            continue
        import pyarrow.parquet as pq

        ids = {value for path in files for value in pq.read_table(path, columns=[column]).column(0).unique().to_pylist()}
        if erased := suppressed.suppressed_ids(ids, kind):
            raise PublicationError(
                f"the run has rows of {len(erased)} erased {noun}",
                where=str(run_folder(settings.home, run_id) / "accepted"),
                next_step="erase them again: scalr forget; or generate a new run: scalr run",
            ).add_context(run_id=run_id)
