# SPDX-License-Identifier: Apache-2.0
"""Readers of Parquet, CSV and JSON lines at any path, glob or fsspec URL: stream the wanted columns as Arrow batches."""

from __future__ import annotations

import io
import json
import lzma
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

from scalr_prod.compute import task_size
from scalr_prod.core.redaction import redact, redact_url, url_secrets
from scalr_prod.core.row_groups import iter_batches
from scalr_prod.errors import BadValue, UnreadableInput
from scalr_prod.ingest.column_mapping import resolve_columns
from scalr_prod.ingest.sources.protocol import Batch
from scalr_prod.ingest.sources.table_formats import detect_table_format, ensure_no_tables

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    import pyarrow as pa
    from pyarrow.csv import InvalidRow

    from scalr_prod.compute import ShuffleFolder
    from scalr_prod.ingest.column_mapping import ColumnSelection
    from scalr_prod.ingest.sources.protocol import LogSource


_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    # RecBole's files of events and of items: tables with tabs.
    ".inter": "csv",
    ".item": "csv",
}
#: Formats of files, in the order in which errors list them.
FILE_FORMATS: Final = tuple(dict.fromkeys(_FORMATS.values()))
_ENDINGS = ", ".join(f".{name}" for name in FILE_FORMATS[:-1]) + f" or .{FILE_FORMATS[-1]}"
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}
_DELIMITERS = (",", ";", "\t", "|")
_ROWS = 65_536
_BYTES = 4 << 20
_UNPACKED_BYTES = 1 << 20
#: Processor time of all of an ingest for a byte of a log, by format, and how many times larger a compressed file is unpacked.
_SECONDS_PER_BYTE: Final = {"parquet": 2e-7, "csv": 1e-7, "jsonl": 1e-7}
_EXPANSION: Final = 6
#: Processor time of an ingest for what a task reads: about 250 thousand to two million rows.
_LEAST_TASK_S: Final = 1.0
_MOST_TASK_S: Final = 8.0
#: Files of at most this size when decompressed are exempt from the limit on the compression ratio.
_ANY_EXPANSION_BYTES: Final = 64 << 20


class LogFile(NamedTuple):
    """A file of a log, or some row groups of one.

    Attributes:
        url: The file's name in errors.
        path: Its path in its file system.
        work_s: Estimate of the processor time that its rows take, in seconds.
        is_local: Whether it is on this machine.
        groups: The row groups, of a Parquet file; None: all rows.
        row: Number of rows that precede these in the file.
        shared: Path of a copy that tasks elsewhere read; None: they read the file itself.
    """

    url: str
    path: str
    work_s: float
    is_local: bool
    groups: range | None = None
    row: int = 0
    shared: str | None = None


class LogFiles(NamedTuple):
    """Files, or row groups of one, that one task reads."""

    files: tuple[LogFile, ...]

    @property
    def work_s(self) -> float:
        """Estimate of the processor time that their rows take, in seconds."""
        return sum(file.work_s for file in self.files)

    def share(self, folder: ShuffleFolder) -> LogFiles:
        """Copy files of this machine to a folder that tasks elsewhere reach."""
        copies = iter(folder.put_all(Path(file.path) for file in self.files if file.is_local))
        return LogFiles(tuple(file._replace(shared=next(copies)) if file.is_local else file for file in self.files))


class FilesReader:
    """Reader of files.

    Args:
        kind: The format of all files; None: by each file's suffix.
    """

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind

    def read(self, source: LogSource) -> Generator[Batch, None, None]:
        """Stream the files of a path, glob, folder or URL, sorted by name.

        ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` are decompressed (text formats).

        Raises:
            UnreadableInput: No file matches; a file is truncated, malformed, or part of a Delta or Iceberg table; or a version was
                given.
            ColumnNotFound: A required column is missing; lists the existing ones.
            BadValue: A wanted column exists twice.
        """
        self._check(source)
        for url, filesystem, path in expand_files(source):
            yield from self._read(_File(filesystem, path, url, source.max_expansion), source)

    def plan(self, source: LogSource) -> list[LogFiles]:
        """Divide the files among tasks: small files together, row groups of large Parquet files apart. Other files are not divided.

        The tasks' rows are in the order of the files' names, which decides between versions of an event without a creation time.

        Raises:
            InputError: As for `read`.
        """
        self._check(source)
        files = [self._measure(resolved) for resolved in expand_files(source)]
        task_s = task_size(sum(file.work_s for _, file in files), least=_LEAST_TASK_S, most=_MOST_TASK_S)
        found: list[LogFiles] = []
        pending: list[LogFile] = []
        for filesystem, file in files:
            kind = self.kind or _format_of(file.url)
            is_large = kind == "parquet" and file.work_s > task_s
            if pending and (is_large or sum(each.work_s for each in pending) + file.work_s > task_s):
                found.append(LogFiles(tuple(pending)))
                pending = []
            if is_large:
                with _readable(file.url, kind, by_name=self.kind is None), filesystem.open(file.path, "rb") as stream:
                    found += [LogFiles((part,)) for part in _divide(file, stream, task_s)]
            else:
                pending.append(file)
        return [*found, LogFiles(tuple(pending))] if pending else found

    def _measure(self, resolved: ResolvedPath) -> tuple[Any, LogFile]:
        """Return a file's file system, and the file with an estimate of its work."""
        url, filesystem, path = resolved
        kind, size = self.kind or _format_of(url), int(filesystem.info(path).get("size") or 0)
        work_s = size * _SECONDS_PER_BYTE[kind] * (_EXPANSION if _is_compressed(path) else 1)
        return filesystem, LogFile(url, path, work_s, is_local=_is_local(filesystem))

    def read_files(self, source: LogSource, files: LogFiles, folder: ShuffleFolder) -> Generator[Batch, None, None]:
        """Stream some of the files that `plan` found.

        Args:
            source: The log.
            files: The files.
            folder: Where the shared ones are.

        Raises:
            InputError: As for `read`.
        """
        from fsspec.implementations.local import LocalFileSystem

        shared = [file.shared for file in files.files if file.shared is not None]
        with folder.open_local_files(shared) as copies:
            copied = dict(zip(shared, copies, strict=True))
            for file in files.files:
                if file.shared is not None:
                    filesystem, path = LocalFileSystem(), str(copied[file.shared])
                else:
                    with resolve_location(source.location, source.storage_options) as (_, filesystem, _):
                        path = file.path
                yield from self._read(_File(filesystem, path, file.url, source.max_expansion, file.groups), source, file.row)

    def _read(self, file: _File, source: LogSource, row: int = 0) -> Generator[Batch, None, None]:
        kind = self.kind or _format_of(file.url)
        with _readable(file.url, kind, by_name=self.kind is None):
            for rows in _STREAMS[kind](file, source.wanted):
                yield Batch(file.url, row, rows, untyped=kind == "csv")
                row += rows.num_rows

    def _check(self, source: LogSource) -> None:
        if self.kind is not None:
            self._refuse_table(source)
        if source.version is not None:
            raise UnreadableInput(
                f"has no version {source.version}: only Delta and Iceberg tables have versions",
                where=redact_url(source.location),
                next_step="name the table's own folder, or leave the version out",
            )

    def _refuse_table(self, source: LogSource) -> None:
        with resolve_location(source.location, source.storage_options) as (url, filesystem, path):
            table = detect_table_format(filesystem, path)
            if table is not None:
                raise UnreadableInput(
                    f"contains a table of format {table}, not loose {self.kind} files",
                    where=url,
                    next_step=f'leave format out, or set format = "{table}"',
                )


#: The readers that `READERS` names. CSV files have a header, one of , ; | and tab as separator, and only text.
PARQUET, CSV, JSON_LINES = FilesReader("parquet"), FilesReader("csv"), FilesReader("jsonl")


class ResolvedPath(NamedTuple):
    """A URL, the fsspec file system that serves it, and its path there."""

    url: str
    filesystem: Any
    path: str


@contextmanager
def resolve_location(location: str, storage_options: dict[str, str]) -> Iterator[ResolvedPath]:
    """Yield the URL, fsspec file system and path of an absolute path, glob or folder, or of a URL.

    Raises:
        UnreadableInput: The file system cannot be opened, or fails inside the block.
    """
    import fsspec

    url = redact_url(location)
    try:
        filesystem, path = fsspec.core.url_to_fs(location, **storage_options)
        yield ResolvedPath(url, filesystem, path)
    except UnreadableInput:
        raise
    except Exception as error:
        # fsspec's file systems raise what their client libraries raise (botocore, aiohttp, ImportError for a missing extra).
        raise UnreadableInput(
            f"cannot be opened: {redact(first_error_line(error), url_secrets(location))}",
            where=url,
            next_step="check the URL, storage_options and credentials; for a table whose options are not fsspec's, "
            'set format = "delta" or "iceberg"',
        ) from error


def expand_files(source: LogSource) -> list[ResolvedPath]:
    """Return the files of a path, glob, folder or URL, sorted by name.

    Raises:
        UnreadableInput: No file matches, or one is part of a Delta or Iceberg table.
    """
    with resolve_location(source.location, source.storage_options) as (url, filesystem, path):
        if _has_magic(path) and not filesystem.exists(path):
            paths = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            # Hidden folders above the requested one do not count.
            paths = sorted(name for name in filesystem.find(path) if has_known_format(name.removeprefix(path)))
        else:
            paths = [path] if filesystem.exists(path) else []
        ensure_no_tables(filesystem, paths, url)
    if not paths:
        next_step = f"correct {source.wanted.location}"
        if filesystem.isdir(path):
            raise UnreadableInput(
                f"the folder contains no file whose name ends with {_ENDINGS}",
                where=url,
                next_step=f"{next_step}, or give the files in it the ending of their format",
            )
        found = "no file matches" if _has_magic(path) else "no such file"
        raise UnreadableInput(found, where=url, next_step=next_step)
    return [ResolvedPath(_url_of(name, url), filesystem, name) for name in paths]


def _url_of(name: str, requested: str) -> str:
    """Return a file system's path in the form of the requested URL or plain path."""
    scheme, separator, _ = requested.partition("://")
    if not separator or separator in name:  # HTTP's file system names a file by its full URL
        return redact_url(name)
    return f"{scheme}{separator}{name if scheme == 'file' else name.lstrip('/')}"


def _is_local(filesystem: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _is_compressed(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in _COMPRESSED


def _divide(file: LogFile, stream: Any, task_s: float) -> Iterator[LogFile]:
    """Divide the row groups of a Parquet file among tasks, about evenly by rows."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(stream)
    tasks = -(-file.work_s // task_s)
    first = row = since = 0
    for number in range(metadata.num_row_groups):
        row += metadata.row_group(number).num_rows
        if row - since >= metadata.num_rows / tasks or number == metadata.num_row_groups - 1:
            work_s = file.work_s * (row - since) / max(metadata.num_rows, 1)
            yield file._replace(work_s=work_s, groups=range(first, number + 1), row=since)
            first, since = number + 1, row


def _has_magic(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def has_known_format(name: str) -> bool:
    """Return whether a file's name tells that it is a log: it has a known suffix, and no part of it is hidden or temporary.

    Args:
        name: The name, or the path from the log's folder on; a partition such as ``_day=2024-01-01`` is not temporary.
    """
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts)
    return not hidden and any(suffix.lower() in _FORMATS for suffix in path.suffixes[-2:])


def format_suffix(name: str) -> str:
    """Return the lower-case suffix of a file's name without that of its compression; empty if there is none."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(url: str) -> str:
    suffix = format_suffix(url)
    if suffix not in _FORMATS:
        raise UnreadableInput(
            "its name does not show its format",
            where=url,
            next_step=f"name it {_ENDINGS}, or (for a log) set format to one of {', '.join(FILE_FORMATS)}",
        )
    return _FORMATS[suffix]


@contextmanager
def _readable(url: str, kind: str, *, by_name: bool) -> Iterator[None]:
    import csv

    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error) as error:
        next_step = "check that the file is complete, and of this format"
        found = first_error_line(error)
        if isinstance(error, UnicodeDecodeError):
            found, next_step = f"it is not text in UTF-8 ({error.reason})", "write the file again as UTF-8"
            if b"\0" in error.object:
                found = "it is not text, or not in UTF-8: it has zero bytes"
                next_step += (
                    f"; if it is compressed or not text, give it the ending of its format, such as .parquet or .{kind}.gz"
                )
        elif by_name:
            next_step = f"check that the file is complete; if it is not {kind}, give it the ending of its format: {_ENDINGS}"
        raise UnreadableInput(f"cannot be read as {kind}: {found}", where=url, next_step=next_step) from error


def first_error_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]


@dataclass(frozen=True)
class _File:
    """A file to read.

    Attributes:
        filesystem: The fsspec file system.
        path: Its path there.
        url: Its name in errors.
        max_expansion: Largest unpacked size, as a multiple of the compressed size.
        groups: The row groups to read, of a Parquet file; None: all.
    """

    filesystem: Any
    path: str
    url: str
    max_expansion: float
    groups: range | None = None

    def open(self) -> Any:
        """Open the file as it is stored."""
        return self.filesystem.open(self.path, "rb")


class _Unpacked(io.RawIOBase):
    """A decompressed stream that ends with an error where it expands too much.

    Args:
        file: The file.
        packed: The compressed stream.
        stream: The decompressed stream.
    """

    def __init__(self, file: _File, packed: Any, stream: Any) -> None:
        self._file, self._packed, self._stream, self._size = file, packed, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._size += len(data)
        packed = self._packed.tell()
        if self._size > max(_ANY_EXPANSION_BYTES, self._file.max_expansion * packed):
            raise UnreadableInput(
                f"unpacks to over {self._size >> 20} MiB, {self._size / packed:,.0f} times its size: more than "
                f"max_expansion = {self._file.max_expansion:g}",
                where=self._file.url,
                next_step="look at its rows; if they are genuine, unpack the file, or raise [compute] max_expansion",
            )
        return len(data)


@contextmanager
def _binary(file: _File) -> Iterator[Any]:
    """Open a text file as bytes, decompressed according to its suffix.

    Raises:
        UnreadableInput: From a read: it expands too much.
    """
    import pyarrow as pa
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    zstd, name = file.path.lower().endswith(".zst"), infer_compression(file.path)
    with file.open() as packed:
        if not zstd and name is None:
            yield packed
            return
        # fsspec (through zstandard) would read a truncated file without an error.
        unpacked = pa.CompressedInputStream(packed, "zstd") if zstd else compr[name](packed, mode="r")
        with unpacked as stream, io.BufferedReader(_Unpacked(file, packed, stream), _UNPACKED_BYTES) as bounded:
            yield bounded


@contextmanager
def _text(file: _File, *, newline: str | None = None) -> Iterator[TextIO]:
    with _binary(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text:
        yield text


def _parquet(file: _File, wanted: ColumnSelection) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with file.open() as stream, pq.ParquetFile(stream, buffer_size=_BYTES) as parquet:
        names = resolve_columns(parquet.schema_arrow.names, wanted, file.url)
        for batch in iter_batches(parquet, _ROWS, columns=names, groups=file.groups):
            yield batch.select(names)


def _csv(file: _File, wanted: ColumnSelection) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv

    delimiter, names = _csv_header(file, wanted)
    if not names:
        return
    refused: list[csv.InvalidRow] = []

    def refuse(row: csv.InvalidRow) -> str:
        refused.append(row)
        return "error"

    with _binary(file) as stream:
        # newlines_in_values: a quoted title may hold a line break, which must not split a row between two blocks.
        try:
            yield from csv.open_csv(
                stream,
                read_options=csv.ReadOptions(block_size=_BYTES, use_threads=False),
                parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                convert_options=csv.ConvertOptions(
                    include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid as error:
            if not refused:
                raise
            raise _wrong_length_error(refused[0], delimiter, file.url) from error


def _wrong_length_error(row: InvalidRow, delimiter: str, url: str) -> UnreadableInput:
    """Return the error of a row that has more or fewer values than the file has columns."""
    return UnreadableInput(
        f"has {row.actual_columns} values, and the line of column names {row.expected_columns}: {row.text[:100]!r}",
        where=f"{url}, row {row.number - 1}",  # the names are pyarrow's row 1
        next_step=f"complete the row, or quote a value that contains {delimiter!r}; an empty value is allowed",
    )


def _csv_header(file: _File, wanted: ColumnSelection) -> tuple[str, list[str]]:
    """Return the delimiter that yields the wanted columns, and the names of the columns to read."""
    import csv

    with _text(file, newline="") as stream:
        # Empty lines are skipped, also before the header.
        line = next((line for line in iter(lambda: stream.readline(1 << 20), "") if line.strip("\r\n")), "")
    if not line:
        return ",", []
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    fitting = [sign for sign, names in headers.items() if wanted.required and set(wanted.required) <= set(names)]
    sign = fitting[0] if fitting else max(_DELIMITERS, key=lambda delimiter: len(headers[delimiter]))
    return sign, resolve_columns(headers[sign], wanted, file.url)


def _jsonl(file: _File, wanted: ColumnSelection) -> Iterator[pa.RecordBatch]:
    with _text(file) as stream:
        row = 0
        keys: set[str] = set()
        following = stream.readlines(_BYTES)
        while lines := following:
            objects = [_object(line, row + at, file.url) for at, line in enumerate(lines) if not line.isspace()]
            following = stream.readlines(_BYTES)
            if objects:
                found = dict.fromkeys(key for each in objects for key in each)
                keys.update(found)
                # Lines may omit null keys. Whether the file has a column at all is known at its last block.
                omitted = dict.fromkeys(name for name in wanted.nullable if following or name in keys)
                names = resolve_columns(list(found | omitted), wanted, file.url)
                columns = {name: [each.get(name) for each in objects] for name in names}
                if wanted.all_columns:  # a column that cannot be mapped does not stop the inspection
                    columns = {name: values for name, values in columns.items() if _is_column(values)}
                yield to_record_batch(list(columns), columns.values(), file.url, row)
            row += len(lines)


def _object(line: str, row: int, url: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError and plain ValueError: hostile depth or length
        found = error.msg if isinstance(error, json.JSONDecodeError) else first_error_line(error)
        raise UnreadableInput(
            f"not valid JSON: {found}", where=f"{url}, row {row + 1}", next_step="give one JSON object per line"
        ) from error
    if not isinstance(found, dict):
        raise UnreadableInput(
            f"contains a {type(found).__name__}, not an object",
            where=f"{url}, row {row + 1}",
            next_step="give one JSON object per line",
        )
    return found


def _is_column(values: Sequence[Any]) -> bool:
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return True


def to_record_batch(names: Sequence[str], columns: Iterable[Sequence[Any]], origin: str, row: int) -> pa.RecordBatch:
    """Convert columns of Python values to an Arrow batch with inferred types.

    Raises:
        BadValue: The values of a column have several types.
    """
    import pyarrow as pa

    arrays = []
    for name, values in zip(names, columns, strict=True):
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            kinds = sorted({type(value).__name__ for value in values if value is not None})
            raise BadValue(
                f"contains values of several types ({', '.join(kinds)}) or none that can be taken: {first_error_line(error)}",
                where=f"{origin}, column '{name}', rows {row + 1} to {row + len(values)}",
                next_step="give one type in all rows",
            ) from error
    return pa.RecordBatch.from_arrays(arrays, names=list(names))


_STREAMS: Final = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}
