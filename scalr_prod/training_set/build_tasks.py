# SPDX-License-Identifier: Apache-2.0
"""What all tasks of a training set's build have in common: where they run, where they write, and the feature store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scalr_prod.compute import SharedFiles, ShuffleFolder, open_executor, shuffle_folder
from scalr_prod.features import StoreSnapshot, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.workspace import open_duckdb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from scalr_prod.compute import Executor
    from scalr_prod.config import Settings


@dataclass(frozen=True)
class BuildTasks:
    """What runs the tasks of a build, and what they share.

    Attributes:
        executor: Runs the tasks.
        connection: DuckDB connection of this process.
        folder: Where tasks write what later tasks and this process read.
        store: The project's Feast store.
        taken: File of this machine → its path in the folder, of files that tasks wrote and read again.
    """

    executor: Executor
    connection: DuckDBPyConnection
    folder: ShuffleFolder
    store: StoreSnapshot
    taken: dict[Path, str] = field(default_factory=dict)

    def open_inner_folder(self) -> AbstractContextManager[ShuffleFolder]:
        """Open a folder for rows that are removed before the others."""
        return shuffle_folder(self.folder.root, self.folder.storage_options)

    def take(self, moves: Sequence[tuple[str, Path]]) -> None:
        """Move files that tasks wrote to paths on this machine. Workers elsewhere keep theirs until the end, to read them again."""
        self.folder.take_all(moves, keep=not self.executor.is_local)
        self.taken.update({destination: path for path, destination in moves})

    def share(self, root: Path, files: Sequence[Path]) -> SharedFiles:
        """Return where tasks read files below a folder of this machine: in place, or where tasks wrote them, or copied there."""
        if self.executor.is_local:
            return SharedFiles(ShuffleFolder(str(root)), [file.relative_to(root).as_posix() for file in files])
        elsewhere = [file for file in files if file not in self.taken]
        copies = self.taken | dict(zip(elsewhere, self.folder.put_all(elsewhere), strict=True))
        return SharedFiles(self.folder, [copies[file] for file in files])


@contextmanager
def open_build_tasks(settings: Settings, staging: Path, *, tasks: int, work_s: float) -> Iterator[BuildTasks]:
    """Open what runs the tasks of a build.

    Args:
        settings: The project's settings.
        staging: A folder on this machine.
        tasks: Number of tasks.
        work_s: Estimate of their processor time, in seconds.

    Raises:
        SchedulerUnreachable: No scheduler answers at the address, or it has no worker.
        FeatureStoreError: The feature store cannot be opened.
    """
    with (
        open_duckdb(settings, staging) as connection,
        open_executor(settings, connection, tasks=tasks, work_s=work_s, stage="dataset build") as executor,
    ):
        # Workers elsewhere share no folder with this machine, but they reach the lake.
        lake = Lake.open(settings)
        root = (str(staging), {}) if executor.is_local else (lake.uri(Table.TARGET_EVENTS), lake.storage_options)
        with shuffle_folder(*root) as folder:
            yield BuildTasks(executor, connection, folder, StoreSnapshot.from_store(open_feature_store(settings)))
