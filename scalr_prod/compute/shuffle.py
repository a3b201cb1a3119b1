# SPDX-License-Identifier: Apache-2.0
"""Shuffle in two rounds of tasks: the first writes rows by range partition of a key, the second reads one partition of all files.

Each task of the first round writes one file: an Arrow stream for each partition, one after the other. Files lie where all tasks reach
them, so a finished task is not repeated if its worker dies. Partitions are bounded by the data (`quantile_bounds`) and not by
the number of workers.
"""

from __future__ import annotations

import shutil
import uuid
from bisect import bisect_left
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, tee
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NewType, TypeVar

from scalr_prod.core.file_systems import link_or_copy, open_file_system

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from pyarrow.fs import FileSystem


T = TypeVar("T")
R = TypeVar("R")

#: Column of the value that rows are partitioned by.
_KEY: Final = "partition_key"
_BATCH: Final = 65_536
_BUFFER_BYTES: Final = 1 << 20
#: Segments that follow each other in a file are read at once, up to about so many bytes.
_READ_BYTES: Final = 4 << 20
#: Requests to an object store at a time: a task reads hundreds of segments, and waits tens of milliseconds for each.
_REQUESTS: Final = 16
#: Open files of an object store that a process keeps, because the next task reads them, too.
_OPEN_FILES: Final = 2_048


#: The rows of one partition in one file: the file's path, relative to the folder; the first byte; the number of bytes. A plain tuple:
#: tasks exchange hundreds of thousands, and pickling a named one takes eight times as long.
Segment = NewType("Segment", tuple[str, int, int])


@dataclass(frozen=True)
class ShuffleFolder:
    """Where the tasks of a shuffle write.

    Attributes:
        root: A folder or URL that all tasks reach.
        storage_options: Of the object store.
        prefix: Beginning of each file's name.
    """

    root: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    prefix: str = field(default_factory=lambda: f"shuffle-{uuid.uuid4()}-")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine, or mounted here; otherwise it is in an object store."""
        return "://" not in self.root

    def open(self) -> FileSystem:
        """Open the folder."""
        return open_file_system(self.root, self.storage_options)

    def read(self, segment: Segment) -> bytes:
        """Read the bytes of a segment."""
        path, offset, size = segment
        if self.is_local:
            with Path(self.root, path).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        lock, file = _open_object(self.root, tuple(self.storage_options.items()), self.prefix, path)
        with lock:  # the Delta library's files fail if two threads read one
            return bytes(file.read_at(size, offset))

    def new_path(self, suffix: str) -> str:
        """Return the path of a new file, relative to the folder. Two attempts of a task never write to one file."""
        return f"{self.prefix}{uuid.uuid4()}{suffix}"

    def put(self, path: Path) -> str:
        """Copy or hard-link a file of this machine to the folder, and return its path there."""
        copied = self.new_path(path.suffix)
        if self.is_local:
            link_or_copy(path.resolve(), Path(self.root, copied))
            return copied
        options: dict[str, Any] = {"compression": None, "buffer_size": _BUFFER_BYTES}
        with path.open("rb") as source, self.open().open_output_stream(copied, **options) as target:
            shutil.copyfileobj(source, target, _READ_BYTES)
        return copied

    def put_all(self, paths: Iterable[Path]) -> list[str]:
        """Copy or hard-link several files, see `put`; to an object store, some at the same time."""
        return list(_map_ahead(self.put, paths, self))

    def take(self, path: str, destination: Path, *, keep: bool = False) -> None:
        """Move a file to a path on this machine; with ``keep``, it stays where it is, too. It must not change any more."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        if self.is_local:
            if keep:
                link_or_copy(Path(self.root, path), destination)
            else:
                shutil.move(Path(self.root, path), destination)
            return
        with self.open().open_input_file(path) as source, destination.open("wb") as target:
            shutil.copyfileobj(source, target, _READ_BYTES)

    def take_all(self, moves: Iterable[tuple[str, Path]], *, keep: bool = False) -> None:
        """Move several files, see `take`; from an object store, some at the same time."""
        for _ in _map_ahead(lambda move: self.take(*move, keep=keep), moves, self):
            pass

    @contextmanager
    def open_local_folder(self) -> Iterator[ShuffleFolder]:
        """Yield a folder on this machine for files that only the caller reads; it is removed at the end."""
        from scalr_prod.compute.cluster import worker_folder

        with TemporaryDirectory(prefix=self.prefix, dir=self.root if self.is_local else worker_folder()) as folder:
            yield ShuffleFolder(folder)

    @contextmanager
    def open_local_files(self, paths: Sequence[str]) -> Iterator[list[Path]]:
        """Yield where files are on this machine: in place, or copies of them, which are removed at the end. Their order stays."""
        if self.is_local:
            yield [Path(self.root, path) for path in paths]
            return
        from scalr_prod.compute.cluster import worker_folder

        with TemporaryDirectory(prefix="files-", dir=worker_folder()) as folder:
            copies = [Path(folder, f"{number:05d}{Path(path).suffix}") for number, path in enumerate(paths)]
            self.take_all(zip(paths, copies, strict=True))
            yield copies


class SharedFiles(NamedTuple):
    """Files where tasks read them.

    Attributes:
        folder: Where they are.
        paths: Their paths, relative to the folder.
    """

    folder: ShuffleFolder
    paths: Sequence[str]


@contextmanager
def shuffle_folder(root: str, storage_options: Mapping[str, str]) -> Iterator[ShuffleFolder]:
    """Make a folder or URL the place of a shuffle's files; remove them at the end, as far as the folder can be written to.

    Also files of workers that died are removed. If this process is killed, the files stay.
    """
    from pyarrow.fs import FileSelector

    folder = ShuffleFolder(root, storage_options)
    try:
        yield folder
    finally:
        with suppress(OSError):
            files = folder.open()
            found = files.get_file_info(FileSelector("", allow_not_found=True))
            ours = (file.path for file in found if file.is_file and file.base_name.startswith(folder.prefix))
            for _ in _map_ahead(files.delete_file, ours, folder):
                pass


def write_segments(db: Any, query: str, *, key: str, bounds: Sequence[Any], folder: ShuffleFolder) -> dict[int, Segment]:
    """Write the rows of a query to one file, partition by partition.

    Args:
        db: DuckDB connection; it spills what does not fit in memory.
        query: Selects the rows.
        key: The partition column, or SQL of its value: integers or texts, without nulls.
        bounds: The first key of each partition but the first, ascending, as `quantile_bounds` returns them.
        folder: Where to write.

    Returns:
        The segment of each partition that has rows.
    """
    if bounds:
        # By key: SQL that numbers the partition of a row takes time in proportion to the number of partitions.
        column, added = (key, "") if key.isidentifier() else (_KEY, f", {key} AS {_KEY}")
        query = f"SELECT *{added} FROM ({query}) ORDER BY {column}"
    else:
        column = ""
    return write_tables(_iter_partitions(db.sql(query).to_arrow_reader(_BATCH), column, bounds), folder=folder)


def write_tables(tables: Iterable[tuple[int, pa.Table]], *, folder: ShuffleFolder) -> dict[int, Segment]:
    """Write tables of different partitions to one file, and return the segment of each.

    Args:
        tables: Partition and rows.
        folder: Where to write.
    """
    import pyarrow as pa

    path, segments = folder.new_path(".arrow"), {}
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with folder.open().open_output_stream(path, compression=None, buffer_size=_BUFFER_BYTES) as file:
        for partition, table in tables:
            start = file.tell()
            with pa.ipc.new_stream(file, table.schema, options=options) as stream:
                stream.write_table(table)
            segments[partition] = Segment((path, start, file.tell() - start))
    return segments


def read_segments(segments: Iterable[Segment], *, folder: ShuffleFolder, columns: int | None = None) -> pa.Table:
    """Read the rows of segments, of which there is at least one.

    Args:
        segments: The segments.
        folder: Where they are.
        columns: Read so many columns, the first ones; default: all.
    """
    import pyarrow as pa

    return pa.concat_tables(iter_segment_tables(segments, folder=folder, columns=columns))


def iter_segment_tables(
    segments: Iterable[Segment], *, folder: ShuffleFolder, columns: int | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of each segment, see `read_segments`."""
    import pyarrow as pa

    options = pa.ipc.IpcReadOptions(included_fields=None if columns is None else list(range(columns)))
    runs, read = tee(_iter_runs(segments))
    for run, content in zip(runs, _map_ahead(folder.read, map(_span, read), folder), strict=True):
        begin = run[0][1]
        for _, offset, size in run:
            part = memoryview(content)[offset - begin : offset - begin + size]
            yield pa.ipc.open_stream(part, options=options).read_all()


def load_segments(
    db: Any, segments: Collection[Segment], *, folder: ShuffleFolder, name: str, schema: pa.Schema | None = None
) -> int:
    """Create or replace a temporary DuckDB table with the rows of segments, and return the row count.

    DuckDB sorts its own table twice as fast as an Arrow table, and can spill it.

    Args:
        db: DuckDB connection.
        segments: The segments.
        folder: Where they are.
        name: The table's name.
        schema: Columns of the table if there is no segment; None: there is at least one.
    """
    rows = read_segments(segments, folder=folder) if schema is None or segments else schema.empty_table()
    db.register("segments", rows)
    try:
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM segments")
    finally:
        db.unregister("segments")
    return len(rows)


def _iter_partitions(batches: Iterable[pa.RecordBatch], key: str, bounds: Sequence[Any]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each partition that has some, without a column `_KEY`; only one partition is in memory.

    Args:
        batches: The rows; with bounds, sorted by the key.
        key: The key's column, if there are bounds.
        bounds: The first key of each partition but the first, ascending.
    """
    import pyarrow as pa

    number, pending = 0, []
    for batch in batches:
        rows, since = batch.drop_columns(_KEY) if key == _KEY else batch, 0
        while since < len(rows):
            stop = len(rows)
            if number < len(bounds):
                stop = bisect_left(_Values(batch.column(key)), bounds[number], lo=since)
            if stop > since:
                pending.append(rows.slice(since, stop - since))
            if stop < len(rows):
                if pending:
                    yield number, pa.Table.from_batches(pending)
                number, pending = number + 1, []
            since = stop
    if pending:
        yield number, pa.Table.from_batches(pending)


class _Values:
    """The values of an Arrow column as a sequence."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: int) -> Any:
        return self._column[place].as_py()


def _iter_runs(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Yield segments that follow each other in a file together, up to a few MB."""
    run: list[Segment] = []
    for segment in segments:
        if run:
            path, offset, size = _span(run)
            if segment[:2] != (path, offset + size) or size >= _READ_BYTES:
                yield run
                run = []
        run.append(segment)
    if run:
        yield run


def _span(run: Sequence[Segment]) -> Segment:
    """Return the bytes of segments that follow each other, as one segment."""
    (path, begin, _), (_, offset, size) = run[0], run[-1]
    return Segment((path, begin, offset + size - begin))


def _map_ahead(call: Callable[[T], R], values: Iterable[T], folder: ShuffleFolder) -> Iterator[R]:
    """Yield the result of each call, in order; in an object store, some calls are made ahead, at the same time."""
    if folder.is_local:
        yield from map(call, values)
        return
    remaining, pool = iter(values), ThreadPoolExecutor(_REQUESTS)
    try:
        ahead = deque(pool.submit(call, value) for value in islice(remaining, _REQUESTS))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(call, value) for value in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=_OPEN_FILES)
def _open_object(root: str, storage_options: tuple[tuple[str, str], ...], prefix: str, path: str) -> tuple[Lock, pa.NativeFile]:
    """Open an object, which asks the store for its size. Tasks of one worker read other segments of the same objects."""
    return Lock(), _open_store(root, storage_options, prefix).open_input_file(path)


@lru_cache(maxsize=8)
def _open_store(root: str, storage_options: tuple[tuple[str, str], ...], _prefix: str) -> FileSystem:
    """Open a store for one shuffle: the next one may find other credentials in the environment."""
    return open_file_system(root, dict(storage_options))
