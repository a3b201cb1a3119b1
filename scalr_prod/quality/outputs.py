# SPDX-License-Identifier: Apache-2.0
"""Outputs of the gate: accepted rows in the run's folder, rejected rows in the quarantine table."""

from __future__ import annotations

import shutil
import uuid
from typing import TYPE_CHECKING, Any

from scalr_prod.core.delta_log import files_dataset
from scalr_prod.core.hashing import file_sha256
from scalr_prod.generation import part_path
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


def move_accepted(folder: Path, files: Sequence[Path] | None) -> list[dict[str, Any]]:
    """Move files of accepted rows to ``<run>/accepted``, replacing its content; without files, only remove it.

    Args:
        folder: The run's folder.
        files: The files, in order; None: none is accepted.

    Returns:
        The files: ``path`` relative to the run's folder, ``rows``, ``sha256``.
    """
    accepted = folder / "accepted"
    if files is None:
        shutil.rmtree(accepted, ignore_errors=True)
        return []
    unfinished = folder / f".accepted-{uuid.uuid4().hex}"
    try:
        unfinished.mkdir()
        moved = []
        for number, path in enumerate(files):
            shutil.move(path, part_path(unfinished, number))
            moved.append(_describe(part_path(unfinished, number)))
        shutil.rmtree(accepted, ignore_errors=True)
        unfinished.replace(accepted)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return moved


def _describe(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    return {"path": f"accepted/{path.name}", "rows": pq.read_metadata(path).num_rows, "sha256": file_sha256(path)}


def write_quarantine(settings: Settings, spec: RunSpec, rows: pa.RecordBatchReader | None) -> None:
    """Replace this run's rows in the quarantine table; without rows, only remove them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lake = Lake.open(settings)
    table = Table.SYNTHETIC_QUARANTINE
    predicate = f"run_id = '{spec.run_id}'"
    # Replacing the same rows again is idempotent, so each attempt may have its own key.
    key = f"quarantine:{spec.run_id}:{uuid.uuid4().hex}"
    if rows is None:
        opened = lake.find_table(table)
        if opened is not None and files_dataset(opened).count_rows(filter=pc.field("run_id") == spec.run_id):
            lake.delete(table, predicate, key=key, opened=opened)
        return
    schema = lake.schema(table)
    batches = (pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches() for batch in rows)
    reader = pa.RecordBatchReader.from_batches(schema, (part for parts in batches for part in parts))
    lake.replace_where(table, reader, predicate, key=key)
