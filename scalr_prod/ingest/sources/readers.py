# SPDX-License-Identifier: Apache-2.0
"""Choice of the log reader: the one that the settings name, or the one that fits the location."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.core.redaction import redact_url
from scalr_prod.errors import ScalrError, UnreadableInput
from scalr_prod.ingest.column_mapping import ColumnSelection, resolve_columns
from scalr_prod.ingest.sources.files import (
    FILE_FORMATS,
    FilesReader,
    ResolvedPath,
    expand_files,
    first_error_line,
    resolve_location,
)
from scalr_prod.ingest.sources.protocol import Batch, LogReader, LogSource
from scalr_prod.ingest.sources.table_formats import detect_table_format
from scalr_prod.plugins import READERS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from scalr_prod.config import Settings


def read_path(
    settings: Settings,
    pattern: str,
    wanted: ColumnSelection,
    *,
    format: str | None = None,  # noqa: A002 - named as in the settings
    version: int | None = None,
    storage_options: dict[str, str] | None = None,
) -> Generator[Batch, None, None]:
    """Stream the rows at a path, glob, folder or URL.

    Args:
        settings: Relative paths start from its folder.
        pattern: A table's folder, an Iceberg metadata file, the path, glob, folder or URL of files, or what a custom reader reads.
        wanted: The columns to read.
        format: Name or import path of a log reader; default: ``delta`` or ``iceberg`` for such a table, else files by their
            suffix.
        version: The Delta version or Iceberg snapshot id; default: the current one.
        storage_options: Passed to the reading library: fsspec, deltalake or pyiceberg. S3 options may use fsspec's names (``key``,
            ``secret``, ``token``, ``endpoint_url``) for all three.

    Raises:
        UnreadableInput: No such reader, table, version or file, or it cannot be read; or a version was given for plain files.
        ColumnNotFound: A required column is missing; lists the existing ones.
    """
    source = log_source(settings, pattern, wanted, version=version, storage_options=storage_options)
    name = format or _table_at(source)
    if name is None:
        yield from FilesReader().read(source)
    elif name in READERS.builtin:
        yield from _reader(name).read(source)
    else:
        yield from _checked(name, source)


def log_source(
    settings: Settings,
    pattern: str,
    wanted: ColumnSelection,
    *,
    version: int | None = None,
    storage_options: dict[str, str] | None = None,
) -> LogSource:
    """Return what a reader reads; arguments as for `read_path`."""
    location = pattern if "://" in pattern else str(settings.resolve(pattern))
    return LogSource(location, wanted, version, storage_options or {}, settings.compute.max_expansion)


def files_reader(source: LogSource, format: str | None) -> FilesReader | None:  # noqa: A002 - named as in the settings
    """Return the reader of a log of files; None: the log is a table, or a custom reader reads it.

    Raises:
        UnreadableInput: The file system cannot be opened.
    """
    if format in FILE_FORMATS:
        return FilesReader(format)
    return FilesReader() if format is None and _table_at(source) is None else None


def list_files(
    settings: Settings,
    pattern: str,
    format: str | None,  # noqa: A002 - named as in the settings
    storage_options: dict[str, str],
) -> list[list[str]] | None:
    """Return name, size and time of change of each file at a path, glob, folder or URL; of a table, of the files that name its versions.

    None if they do not show what it contains: a log reader of another package, or a store that keeps no such times.

    Raises:
        UnreadableInput: No file matches, or it cannot be opened.
    """
    location = pattern if "://" in pattern else str(settings.resolve(pattern))
    source = LogSource(location, ColumnSelection((), location), storage_options=storage_options)
    if format not in {None, "delta", "iceberg", *FILE_FORMATS}:
        return None
    table = None if format in FILE_FORMATS else _table_at(source)
    found = []
    for url, filesystem, path in expand_files(source) if table is None else _version_files(source, table):
        info = filesystem.info(path)
        changed = next((info[key] for key in ("mtime", "LastModified", "last_modified", "ETag", "etag") if info.get(key)), None)
        if changed is None:
            return None
        found.append([url, str(info.get("size")), str(changed)])
    return found


def _version_files(source: LogSource, table: str) -> list[ResolvedPath]:
    """Return the last file of a Delta table's log, or all metadata files of an Iceberg table."""
    with resolve_location(source.location, source.storage_options) as (url, filesystem, path):
        if path.endswith(".json"):  # an Iceberg metadata file is named
            return [ResolvedPath(url, filesystem, path)]
        folder = f"{path.rstrip('/')}/{'_delta_log' if table == 'delta' else 'metadata'}"
        names = sorted(name for name in filesystem.ls(folder, detail=False) if name.endswith(".json"))
        versions = names[-1:] if table == "delta" else names
        return [ResolvedPath(f"{url}/{name.rsplit('/', 1)[-1]}", filesystem, name) for name in versions]


def _table_at(source: LogSource) -> str | None:
    """Return the format of the table at a source; None: no table."""
    with resolve_location(source.location, source.storage_options) as (_, filesystem, path):
        return detect_table_format(filesystem, path)


def _reader(name: str) -> LogReader:
    loaded: Any = READERS.load(name, LogReader)
    reader: LogReader = loaded() if isinstance(loaded, type) else loaded
    return reader


def _checked(name: str, source: LogSource) -> Iterator[Batch]:
    """Run a third-party reader: yield only the wanted columns, and name reader and log in errors.

    Raises:
        UnreadableInput: The reader failed, or yielded something other than batches.
        ColumnNotFound: A required column is missing.
    """
    reader = _reader(name)
    try:
        for batch in reader.read(source):
            names = resolve_columns(batch.rows.schema.names, source.wanted, batch.origin)
            yield Batch(batch.origin, batch.row, batch.rows.select(names), batch.untyped)
    except ScalrError:
        raise
    except Exception as error:  # third-party code may raise anything
        raise UnreadableInput(
            f"the log reader {name} failed: {type(error).__name__}: {first_error_line(error)}",
            where=redact_url(source.location),
            next_step="check the log and the reader: see scalr_prod.ingest.LogReader",
        ) from error
