# SPDX-License-Identifier: Apache-2.0
"""A run's accepted rows: the audited files, without erased users and items."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import PublicationError
from scalr_prod.ledger import run_folder
from scalr_prod.publication.regions import REWRITE_SCAN_OPTIONS
from scalr_prod.schemas import ITEM_ID, USER_ID
from scalr_prod.workspace import SuppressionList

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.workspace import Canary, SuppressedKind


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
