# SPDX-License-Identifier: Apache-2.0
"""Parts on disk: a Parquet file named after the run's partition, and a manifest with its checksum."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scalr_prod.core.atomic_io import atomic_path, write_json
from scalr_prod.core.hashing import file_sha256
from scalr_prod.schemas import generated_event_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.ledger import RunSpec


def part_path(folder: Path, partition: int) -> Path:
    """Return the path of a partition's rows."""
    return folder / f"part-{partition:05d}.parquet"


def part_identity(spec: RunSpec, partition: int, partitions: int) -> dict[str, Any]:
    """Return the facts that identify a part in its manifest; parts of older versions, other columns or users do not match."""
    columns = generated_event_schema(user="string", item="string", source_item="string").names
    return {"run_id": spec.run_id, "partition": partition, "partitions": partitions, "columns": columns, "cut": "by user"}


def manifest_path(path: Path) -> Path:
    """Return the path of a part's manifest; the underscore hides it from readers of Parquet folders."""
    return path.with_name(f"_{path.stem}.json")


@contextmanager
def open_part_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that writes row groups to a Parquet file; the file appears only once it is complete.

    Args:
        path: The file's final path.
        schema: Schema of every table passed to the yielded function.
    """
    import pyarrow.parquet as pq

    # pyarrow's writer does not close its own file if it cannot write the footer, which would keep a full disk full.
    with (
        atomic_path(path) as unfinished,
        unfinished.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        yield lambda table: writer.write_table(table, max(len(table), 1))


def write_manifest(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a finished part: the given facts, its file name and SHA-256."""
    manifest = {**facts, "path": path.name, "sha256": file_sha256(path)}
    write_json(manifest_path(path), manifest)
    return manifest


def read_manifest(path: Path, **expected: Any) -> dict[str, Any] | None:
    """Return the manifest of a complete part with these facts; None if the part has to be made."""
    try:
        manifest: dict[str, Any] = json.loads(manifest_path(path).read_text(encoding="utf-8"))
        if any(manifest.get(key) != value for key, value in expected.items()) or manifest.get("sha256") != file_sha256(path):
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return manifest


def read_part(folder: Path, spec: RunSpec, partition: int, partitions: int) -> dict[str, Any] | None:
    """Return the manifest of a run's part in a folder; None if the part has to be made."""
    return read_manifest(part_path(folder, partition), **part_identity(spec, partition, partitions))


def remove_stale_parts(folder: Path, partitions: int) -> None:
    """Remove parts of another partitioning of the same run, and unfinished files of a killed worker."""
    expected = [part_path(folder, number) for number in range(partitions)]
    keep = {*expected, *map(manifest_path, expected)}
    for path in folder.glob("*"):
        if path not in keep:
            path.unlink(missing_ok=True)
