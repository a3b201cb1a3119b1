# SPDX-License-Identifier: Apache-2.0
"""Readers of Delta and Iceberg tables, at their current or a given version."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from scalr_prod.core.redaction import redact_url
from scalr_prod.errors import ScalrError, UnreadableInput
from scalr_prod.ingest.column_mapping import resolve_columns
from scalr_prod.ingest.sources.files import first_error_line, resolve_location
from scalr_prod.ingest.sources.protocol import Batch
from scalr_prod.ingest.sources.table_formats import ICEBERG_METADATA_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.ingest.column_mapping import ColumnSelection
    from scalr_prod.ingest.sources.protocol import LogSource
    from scalr_prod.ingest.sources.table_formats import TableFormat


_ROWS = 65_536
#: Snapshots listed in an error.
_SHOWN = 5
#: File names of Iceberg's metadata, as its catalogues write them: v3.metadata.json, 00003-<uuid>.metadata.json.
_METADATA = re.compile(r"v?(\d+)(?:-[0-9A-Za-z-]+)?(?:\.gz)?\.metadata\.json")
#: S3 options: fsspec's name of each, and its name in the tables' libraries.
_S3_OPTIONS = {
    "key": {"delta": "AWS_ACCESS_KEY_ID", "iceberg": "s3.access-key-id"},
    "secret": {"delta": "AWS_SECRET_ACCESS_KEY", "iceberg": "s3.secret-access-key"},
    "token": {"delta": "AWS_SESSION_TOKEN", "iceberg": "s3.session-token"},
    "endpoint_url": {"delta": "AWS_ENDPOINT_URL", "iceberg": "s3.endpoint"},
}


class Delta:
    """Reader of a Delta table, at its current or a given version."""

    def read(self, source: LogSource) -> Iterator[Batch]:
        """Stream the rows of a table's folder; see `scalr_prod.ingest.LogReader`."""
        origin = _origin(source)
        options = _named_for("delta", source.storage_options)
        return _batches("delta", origin, lambda: _delta(source.location, origin, source.wanted, source.version, options))


class Iceberg:
    """Reader of an Iceberg table, at its current or a given snapshot."""

    def read(self, source: LogSource) -> Iterator[Batch]:
        """Stream the rows of a table's folder or metadata file; see `scalr_prod.ingest.LogReader`."""
        origin, url, options = _origin(source), source.location, source.storage_options

        def rows() -> Iterator[pa.RecordBatch]:
            metadata = url if url.endswith(ICEBERG_METADATA_SUFFIX) else _latest_metadata(url, options)
            return _iceberg(metadata, origin, source.wanted, source.version, _named_for("iceberg", options))

        return _batches("iceberg", origin, rows)


def _origin(source: LogSource) -> str:
    location = redact_url(source.location)
    return location if source.version is None else f"{location} at version {source.version}"


def _batches(kind: TableFormat, origin: str, rows: Callable[[], Iterator[pa.RecordBatch]]) -> Iterator[Batch]:
    with _readable(origin, kind):
        row = 0
        for batch in rows():
            yield Batch(origin, row, batch)
            row += batch.num_rows


@contextmanager
def _readable(origin: str, kind: TableFormat) -> Iterator[None]:
    try:
        yield
    except ScalrError:
        raise
    except ImportError as error:
        raise UnreadableInput(
            f"is a table of format {kind}, and {error.name} is not installed",
            where=origin,
            next_step=f"pip install 'scalr-prod[{kind}]'",
        ) from error
    except Exception as error:
        # The two libraries, and the object stores below them, raise many kinds of exceptions.
        raise UnreadableInput(
            f"cannot be read as a table of format {kind}: {first_error_line(error)}",
            where=origin,
            next_step="check that its log and data files are there, and storage_options",
        ) from error


def _named_for(kind: TableFormat, options: dict[str, str]) -> dict[str, str]:
    """Translate fsspec's names of S3 options for the table's library; other options stay."""
    named = {_S3_OPTIONS[key][kind] if key in _S3_OPTIONS else key: value for key, value in options.items()}
    if kind == "delta" and options.get("endpoint_url", "").startswith("http://"):
        named["AWS_ALLOW_HTTP"] = "true"
    return named


def _delta(
    url: str, origin: str, wanted: ColumnSelection, version: int | None, options: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    from deltalake import DeltaTable

    table = DeltaTable(url, storage_options=options)
    if version is not None:
        if version > table.version():
            raise _no_version(origin, f"the latest is {table.version()}")
        table.load_as_version(version)
    names = resolve_columns([field.name for field in table.schema().fields], wanted, origin)
    for batch in _delta_reader(table, names):
        yield batch.select(names)


def read_delta_table(url: str, options: dict[str, str]) -> pa.RecordBatchReader:
    """Stream every column of a Delta table's current version.

    Args:
        url: Its folder.
        options: ``storage_options`` of the settings.
    """
    from deltalake import DeltaTable

    table = DeltaTable(url, storage_options=_named_for("delta", options))
    return _delta_reader(table, [field.name for field in table.schema().fields])


def _delta_reader(table: DeltaTable, names: list[str]) -> pa.RecordBatchReader:
    """Stream the rows in the order of the files; in any order for a table with deletion vectors or column mapping."""
    import pyarrow as pa
    from deltalake.exceptions import DeltaProtocolError

    mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    if not mapped:
        with suppress(DeltaProtocolError):  # pyarrow's datasets do not support the table's features
            dataset = table.to_pyarrow_dataset()
            return dataset.scanner(columns=names, batch_size=_ROWS, batch_readahead=2, fragment_readahead=1).to_reader()
    return pa.RecordBatchReader.from_stream(table.scan(columns=names))


def _iceberg(
    metadata: str, origin: str, wanted: ColumnSelection, version: int | None, options: dict[str, str]
) -> Iterator[pa.RecordBatch]:
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.io import load_file_io
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    # Not `StaticTable.from_metadata`: it opens files with the class and address that the table's own properties name.
    io = load_file_io(properties=options, location=metadata)
    content = FromInputFile.table_metadata(io.new_input(metadata))
    table = StaticTable(("static", metadata), content, metadata, io, NoopCatalog("static"))
    snapshot = table.current_snapshot() if version is None else table.snapshot_by_id(version)
    if version is not None and snapshot is None:
        snapshots = ", ".join(str(listed.snapshot_id) for listed in table.snapshots()[-_SHOWN:])
        raise _no_version(origin, f"its latest snapshots are {snapshots}" if snapshots else "it has no snapshot")
    scan = table.scan(snapshot_id=snapshot.snapshot_id if snapshot else None)
    names = resolve_columns([field.name for field in scan.projection().fields], wanted, origin)
    for batch in scan.select(*names).to_arrow_batch_reader():
        yield batch.select(names)


def _latest_metadata(url: str, options: dict[str, str]) -> str:
    """Return the current metadata file of an Iceberg table's folder: the one with the highest number.

    Raises:
        UnreadableInput: There is none, or two have that number, and only the table's catalogue knows which is current.
    """
    with resolve_location(url, options) as (_, filesystem, path):
        folder = f"{path.rstrip('/')}/metadata"
        paths = filesystem.ls(folder, detail=False) if filesystem.isdir(folder) else []
    numbered: dict[int, list[str]] = {}
    for name in (PurePosixPath(path).name for path in paths):
        if number := _METADATA.fullmatch(name):
            numbered.setdefault(int(number[1]), []).append(name)
    latest = numbered[max(numbered)] if numbered else []
    if len(latest) != 1:
        reason = " and ".join(latest) + " both claim to be the latest" if latest else "there is no metadata file"
        raise UnreadableInput(
            f"is no Iceberg table that can be read without its catalogue: {reason}",
            where=f"{redact_url(url)}/metadata",
            next_step="name the metadata file that the catalogue points to (its metadata_location)",
        )
    return f"{url.rstrip('/')}/metadata/{latest[0]}"


def _no_version(origin: str, versions: str) -> UnreadableInput:
    return UnreadableInput(
        f"there is no such version: {versions}",
        where=origin,
        next_step="correct version (of an item file: items_version) in scalr.toml, or leave it out",
    )
