# SPDX-License-Identifier: Apache-2.0
"""Shuffle in two rounds of tasks: the first writes rows by range partition of a key, the second reads one partition of all files.

Each task of the first round writes one file: an Arrow stream for each partition, one after the other. Files lie where all tasks reach
them, so a finished task is not repeated if its worker dies. Partitions are bounded by the data (`quantile_bounds`) and not by
the number of workers.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.core.file_systems import link_or_copy, open_file_system
from scalr_prod.core.partitioned import PARTITION_NUMBER, iter_numbered, partition_number_sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from pyarrow.fs import FileSystem


_BATCH: Final = 65_536
_BUFFER_BYTES: Final = 1 << 20


class Segment(NamedTuple):
    """The rows of one partition in one file.

    Attributes:
        path: The file, relative to the folder.
        offset: First byte.
        size: Number of bytes.
    """

    path: str
    offset: int
    size: int


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

    def open(self) -> FileSystem:
        """Open the folder."""
        return open_file_system(self.root, self.storage_options)

    def new_path(self, suffix: str) -> str:
        """Return the path of a new file, relative to the folder. Two attempts of a task never write to one file."""
        return f"{self.prefix}{uuid.uuid4()}{suffix}"

    def put(self, path: Path) -> str:
        """Copy or hard-link a file of this machine to the folder, and return its path there."""
        from pyarrow.fs import LocalFileSystem, copy_files

        copied = self.new_path(path.suffix)
        if "://" not in self.root:
            link_or_copy(path.resolve(), Path(self.root, copied))
            return copied
        copy_files(str(path), copied, source_filesystem=LocalFileSystem(), destination_filesystem=self.open())
        return copied

    def take(self, path: str, destination: Path, *, keep: bool = False) -> None:
        """Move a file to a path on this machine; with ``keep``, it stays where it is, too. It must not change any more."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        if "://" not in self.root:
            if keep:
                link_or_copy(Path(self.root, path), destination)
            else:
                shutil.move(Path(self.root, path), destination)
            return
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(path, str(destination), source_filesystem=self.open(), destination_filesystem=LocalFileSystem())

    @contextmanager
    def open_local_files(self, paths: Sequence[str]) -> Iterator[list[Path]]:
        """Yield where files are on this machine: in place, or copies of them, which are removed at the end. Their order stays."""
        if "://" not in self.root:
            yield [Path(self.root, path) for path in paths]
            return
        from scalr_prod.compute.cluster import worker_folder

        with TemporaryDirectory(prefix="files-", dir=worker_folder()) as folder:
            copies = [Path(folder, f"{number:05d}{Path(path).suffix}") for number, path in enumerate(paths)]
            for path, copy in zip(paths, copies, strict=True):
                self.take(path, copy)
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
            for found in files.get_file_info(FileSelector("", allow_not_found=True)):
                if found.is_file and found.base_name.startswith(folder.prefix):
                    files.delete_file(found.path)


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
    numbered = f"SELECT *, {partition_number_sql(key, bounds)} AS {PARTITION_NUMBER} FROM ({query})"
    rows = db.sql(f"{numbered} ORDER BY {PARTITION_NUMBER}" if bounds else numbered).to_arrow_reader(_BATCH)
    return write_tables(iter_numbered(rows, PARTITION_NUMBER), folder=folder)


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
            segments[partition] = Segment(path, start, file.tell() - start)
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

    files = folder.open()
    options = pa.ipc.IpcReadOptions(included_fields=None if columns is None else list(range(columns)))
    for segment in segments:
        with files.open_input_file(segment.path) as file:
            file.seek(segment.offset)
            yield pa.ipc.open_stream(file.read_buffer(segment.size), options=options).read_all()


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
