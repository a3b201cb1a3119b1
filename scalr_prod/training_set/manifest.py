# SPDX-License-Identifier: Apache-2.0
"""Manifest of a training set version, and verification of its files."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import TrainingSetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    import pyarrow as pa
    from pyarrow.fs import FileSystem

    #: Rows, bytes and SHA-256 of a file, by these names.
    FileEntry: TypeAlias = dict[str, Any]


MANIFEST_FILE: Final = "manifest.json"
#: Folder of a version with only Parquet files, so that any engine can read it.
ROWS_FOLDER: Final = "rows"
#: Folder of a version with the ids of each file of rows.
IDS_FOLDER: Final = "ids"

_VERSION: Final = re.compile(r"v([1-9]\d*)")
_BUILD: Final = "scalr dataset build"
_BUFFER_BYTES: Final = 1 << 20


def compute_fingerprint(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of everything that decides the rows."""
    text = json.dumps(dict(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_parquet(rows: pa.Table, path: str, files: FileSystem, **options: Any) -> FileEntry:
    """Write rows to a file, and return its entry in the manifest.

    Args:
        rows: The rows.
        path: The file.
        files: The file system.
        options: Of ``pyarrow.parquet.write_table``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_output_stream(path, compression=None, buffer_size=_BUFFER_BYTES) as stream:
        hashed = _HashedStream(stream)
        with pa.PythonFile(hashed, mode="w") as file:
            pq.write_table(rows, file, **options)
    return {"rows": len(rows), "bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


class _HashedStream:
    """A stream that keeps the size and SHA-256 of what is written to it."""

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream, self.size, self.digest = stream, 0, hashlib.sha256()

    def write(self, block: Any) -> int:
        """Write a block, and return the number of its bytes."""
        self.digest.update(block)
        self._stream.write(block)
        self.size += len(block)
        return len(block)

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self.size

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Do nothing: the stream below is closed by who opened it."""


def rows_files(files: Iterable[str]) -> list[str]:
    """Return the names of the files of rows among a manifest's files, in the order of the rows."""
    return sorted(name for name in files if name.startswith(f"{ROWS_FOLDER}/"))


def may_have_fingerprint(folder: Path, fingerprint: str) -> bool:
    """Whether a version's manifest contains a fingerprint's text; a cheap test before parsing the JSON."""
    try:
        return fingerprint.encode() in (folder / MANIFEST_FILE).read_bytes()
    except OSError:
        return False


def list_versions(folder: Path) -> dict[int, Path]:
    """Return the complete versions below a training set's folder, by number."""
    found = {}
    for path in folder.glob("v*"):
        match = _VERSION.fullmatch(path.name)
        if match and (path / MANIFEST_FILE).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a version.

    Raises:
        TrainingSetError: The manifest is missing, or not JSON.
    """
    path = folder / MANIFEST_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrainingSetError("there is no training set here", where=str(folder), next_step=f"build it: {_BUILD}") from error
    except (OSError, ValueError) as error:
        raise TrainingSetError(
            f"the manifest cannot be read: {error}", where=str(path), next_step=f"build a new version: {_BUILD}"
        ) from error
    return content


def verify_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Verify every file's size and checksum against the manifest.

    Raises:
        TrainingSetError: A file is missing, was added, or differs; the error names it.
    """
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    for name in sorted(manifest["files"].keys() | on_disk):
        check_file(folder, manifest, name)


def check_file(folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Verify one file's size and checksum against the manifest.

    Raises:
        TrainingSetError: The file is missing, not in the manifest, or differs.
    """
    path, named = folder / name, manifest["files"].get(name)
    if not path.is_file():
        problem = "the file is missing"
    elif named is None:
        problem = "the manifest does not list this file"
    elif path.stat().st_size != named["bytes"] or file_sha256(path) != named["sha256"]:
        problem = "the file is not the one in the manifest: its SHA-256 differs"
    else:
        return
    raise TrainingSetError(problem, where=str(path), next_step=f"remove {folder} and build again: {_BUILD}")
