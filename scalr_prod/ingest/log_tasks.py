# SPDX-License-Identifier: Apache-2.0
"""What all tasks of an ingest have in common: where they run, and where they write."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import InProcessExecutor, ShuffleFolder, open_executor, shuffle_folder
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scalr_prod.compute import Executor
    from scalr_prod.config import Settings
    from scalr_prod.ingest.sources.files import LogFiles
    from scalr_prod.lake import Lake


#: Processor time of an ingest for the rows of a range of time.
_RANGE_S: Final = 2.0


@dataclass(frozen=True)
class LogTasks:
    """What runs the tasks of an ingest, and what they share.

    Attributes:
        executor: Runs the tasks.
        connection: DuckDB connection of this process.
        folder: Where tasks write what later tasks and this process read.
        local_folder: A folder of this machine.
    """

    executor: Executor
    connection: Any
    folder: ShuffleFolder
    local_folder: Path

    def fetch(self, paths: Sequence[str]) -> list[Path]:
        """Return where files of the folder are on this machine: in place, or copies of them."""
        if "://" not in self.folder.root:
            return [Path(self.folder.root, path) for path in paths]
        copies = [self.local_folder / path for path in paths]
        self.folder.take_all(zip(paths, copies, strict=True))
        return copies

    def in_this_process(self) -> LogTasks:
        """Return what runs tasks in this process, which see the tables and views of its connection."""
        folder = self.folder if self.executor.is_local else ShuffleFolder(str(self.local_folder))
        return replace(self, executor=InProcessExecutor(self.connection), folder=folder)


@contextmanager
def open_log_tasks(
    settings: Settings, lake: Lake, connection: Any, folder: Path, logs: Iterable[list[LogFiles]]
) -> Iterator[LogTasks]:
    """Open what runs the tasks of an ingest.

    Args:
        settings: The project's settings.
        lake: The lake.
        connection: DuckDB connection of this process.
        folder: A folder on this machine.
        logs: What each task that parses files of a log reads, by log.

    Raises:
        SchedulerUnreachable: No scheduler answers at the address, or it has no worker.
    """
    files = [some for log in logs for some in log]
    work_s = sum(some.work_s for some in files)
    tasks = max(len(files), int(work_s / _RANGE_S))
    with open_executor(settings, connection, tasks=tasks, work_s=work_s, stage="ingest") as executor:
        # Workers elsewhere share no folder with this machine, but they reach the lake.
        root = (str(folder), {}) if executor.is_local else (lake.uri(Table.SOURCE_EVENTS), lake.storage_options)
        with _existing_folder(root[0]), shuffle_folder(*root) as shuffled:
            yield LogTasks(executor, connection, shuffled, folder)


@contextmanager
def _existing_folder(root: str) -> Iterator[None]:
    """Create a folder if it does not exist, for the duration of the block if it stays empty."""
    if "://" in root or Path(root).exists():
        yield
        return
    Path(root).mkdir(parents=True)
    try:
        yield
    finally:
        with suppress(OSError):
            Path(root).rmdir()
