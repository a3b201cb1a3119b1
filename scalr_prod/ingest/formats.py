# SPDX-License-Identifier: Apache-2.0
"""Whether a folder is a Delta or Iceberg table: one is read by its log, never as loose files, since deleted rows lie in them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

from scalr_prod.errors import UnreadableInput

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["METADATA_SUFFIX", "TableFormat", "refuse_tables", "table_at"]

TableFormat = Literal["delta", "iceberg"]

#: How the names of Iceberg's metadata files end.
METADATA_SUFFIX: Final = ".metadata.json"


def table_at(filesystem: Any, path: str) -> TableFormat | None:
    """The kind of table that a path names: a folder with its log, or an Iceberg metadata file; None where it is neither.

    Args:
        filesystem: An fsspec file system.
        path: A path on it.
    """
    if path.endswith(METADATA_SUFFIX):
        return "iceberg"
    if "http" in _protocols(filesystem):  # it has no folders, and a server may answer to any name
        return None
    folder = path.rstrip("/")
    if filesystem.isdir(f"{folder}/_delta_log"):
        return "delta"
    metadata = f"{folder}/metadata"
    if filesystem.isdir(metadata) and any(name.endswith(METADATA_SUFFIX) for name in filesystem.ls(metadata, detail=False)):
        return "iceberg"
    return None


def refuse_tables(filesystem: Any, paths: Iterable[str], named: str) -> None:
    """Make sure that none of these paths is a table, or lies in one.

    Args:
        filesystem: An fsspec file system.
        paths: What a path, glob or folder of the settings came to.
        named: How the settings name it, for the error.

    Raises:
        UnreadableInput: One does; names the table.
    """
    folders: dict[str, None] = {}
    for path in paths:
        place = PurePosixPath(path)
        # What has a suffix is a file: on an object store each look at it would cost a request.
        places = place.parents if place.suffix else (place, *place.parents)
        folders.update(dict.fromkeys(map(str, places)))
    for folder in folders:
        kind = table_at(filesystem, folder) if folder not in {".", "/"} else None
        if kind is not None:
            raise UnreadableInput(
                f"takes in files of the {kind.title()} table {folder}; as loose files they would bring deleted rows back",
                where=named,
                next_step="name the table's own folder, which is read by its log",
            )


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
