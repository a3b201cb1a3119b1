"""A version of a training set, written by hand as the builder lays it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from scalr_prod.compute import SharedFiles, ShuffleFolder, open_executor
from scalr_prod.config.settings import Settings
from scalr_prod.core.hashing import file_sha256
from scalr_prod.training_set import TrainingSet
from scalr_prod.training_set.vocabulary import write_ids, write_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_ids_of_all", "write_version"]


def write_version(root: Path, table: pa.Table, *, version: int = 1, row_group_size: int = 1024) -> TrainingSet:
    """Write rows in two parts, their vocabulary and a manifest; gives the opened version."""
    folder, half = root / f"v{version}", table.num_rows // 2
    for below in ("rows", "ids"):
        (folder / below).mkdir(parents=True)
    names = [f"part-0000{number}.parquet" for number in range(2)]
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        pq.write_table(part, folder / "rows" / name, row_group_size=row_group_size)
        write_ids(pq.read_table(folder / "rows" / name), str(folder / "ids" / name), LocalFileSystem())
    write_ids_of_all(folder, [f"ids/{name}" for name in names])
    manifest = {
        "version": version,
        "rows": table.num_rows,
        "history_length": 5,
        "features": [name for name in table.schema.names if "__" in name],
        "files": {
            path.relative_to(folder).as_posix(): {
                "rows": pq.read_metadata(path).num_rows,
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in sorted(folder.rglob("*.parquet"))
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return TrainingSet.open(root, version)


def write_ids_of_all(folder: Path, names: list[str]) -> None:
    """Write the vocabulary of files of ids, in this process."""
    settings = Settings(domains={"source": {"name": "a", "events": "a"}, "target": {"name": "b", "events": "b"}}, base=folder)
    ids, output = SharedFiles(ShuffleFolder(str(folder)), names), ShuffleFolder(str(folder))
    with (
        duckdb.connect() as connection,
        open_executor(settings, connection, tasks=1, work_s=0, stage="dataset build") as executor,
    ):
        write_vocabulary(executor, ids, output, folder)
