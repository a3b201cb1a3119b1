# SPDX-License-Identifier: Apache-2.0
"""Detection of Delta and Iceberg tables. They are read through their log: their loose files still hold deleted rows."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.errors import UnreadableInput

if TYPE_CHECKING:
    from collections.abc import Iterable


TableFormat = Literal["delta", "iceberg"]

#: Suffix of Iceberg's metadata files.
ICEBERG_METADATA_SUFFIX: Final = ".metadata.json"


def detect_table_format(filesystem: Any, path: str) -> TableFormat | None:
    """Return the format of the table at a path (a table's folder, or an Iceberg metadata file); None: no table.

    Args:
        filesystem: An fsspec file system.
        path: A path on it.
    """
    if path.endswith(ICEBERG_METADATA_SUFFIX):
        return "iceberg"
    if "http" in _protocols(filesystem):  # HTTP has no folders, and a server may answer any path
        return None
    folder = path.rstrip("/")
    if filesystem.isdir(f"{folder}/_delta_log"):
        return "delta"
    metadata = f"{folder}/metadata"
    if filesystem.isdir(metadata) and any(
        name.endswith(ICEBERG_METADATA_SUFFIX) for name in filesystem.ls(metadata, detail=False)
    ):
        return "iceberg"
    return None


def ensure_no_tables(filesystem: Any, paths: Iterable[str], named: str) -> None:
    """Ensure that none of these paths is a table or lies inside one.

    Args:
        filesystem: An fsspec file system.
        paths: The files that a path, glob or folder of the settings matched.
        named: The setting's value, for the error.

    Raises:
        UnreadableInput: One is or does; names the table.
    """
    folders: dict[str, None] = {}
    for path in paths:
        place = PurePosixPath(path)
        # A path with a suffix is a file; skipping it saves a request on object stores.
        places = place.parents if place.suffix else (place, *place.parents)
        folders.update(dict.fromkeys(map(str, places)))
    for folder in folders:
        kind = detect_table_format(filesystem, folder) if folder not in {".", "/"} else None
        if kind is not None:
            raise UnreadableInput(
                f"takes in files of the {kind.title()} table {folder}; as loose files they would bring deleted rows back",
                where=named,
                next_step="name the table's own folder, which is read by its log",
            )


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
