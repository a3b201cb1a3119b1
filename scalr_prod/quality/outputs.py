# SPDX-License-Identifier: Apache-2.0
"""Outputs of the gate: accepted rows in the run's folder, rejected rows in the quarantine table."""

from __future__ import annotations

import shutil
import uuid
from typing import TYPE_CHECKING, Any

from scalr_prod.core.hashing import file_sha256
from scalr_prod.generation import open_part_writer, part_path
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


def write_accepted(folder: Path, rows: pa.RecordBatchReader | None, schema: pa.Schema) -> list[dict[str, Any]]:
    """Write the accepted rows to ``<run>/accepted``, replacing its content; without rows, only remove it.

    Returns:
        The files: ``path`` relative to the run's folder, ``rows``, ``sha256``.
    """
    import pyarrow as pa

    accepted = folder / "accepted"
    if rows is None:
        shutil.rmtree(accepted, ignore_errors=True)
        return []
    unfinished = folder / f".accepted-{uuid.uuid4().hex}"
    try:
        path = part_path(unfinished, 0)
        written = 0
        with open_part_writer(path, schema) as write:
            for batch in rows:
                write(pa.Table.from_batches([batch]).cast(schema))
                written += batch.num_rows
        sha256 = file_sha256(path)
        shutil.rmtree(accepted, ignore_errors=True)
        unfinished.replace(accepted)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [{"path": f"accepted/{path.name}", "rows": written, "sha256": sha256}]


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
        if lake.exists(table) and lake.dataset(table).count_rows(filter=pc.field("run_id") == spec.run_id):
            lake.delete(table, predicate, key=key)
        return
    schema = lake.schema(table)
    batches = (pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches() for batch in rows)
    reader = pa.RecordBatchReader.from_batches(schema, (part for parts in batches for part in parts))
    lake.replace_where(table, reader, predicate, key=key)
