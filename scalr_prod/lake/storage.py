# SPDX-License-Identifier: Apache-2.0
"""Location of the tables: whether they exist, opening them at any version, and whether this package made them."""

from __future__ import annotations

import math
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scalr_prod.core.delta_log import file_names, first_missing_file, local_paths
from scalr_prod.core.store_errors import REBUILD
from scalr_prod.errors import ForeignFiles, LakeError, TableNotFound
from scalr_prod.schemas import Table
from scalr_prod.workspace import ensure_supported_path, is_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from deltalake import DeltaTable


Value = TypeVar("Value")

_MADE_BY: Final[Mapping[Table, str]] = {
    Table.SOURCE_EVENTS: "scalr ingest",
    Table.TARGET_EVENTS: "scalr ingest",
    Table.SOURCE_ITEMS: "scalr ingest",
    Table.TARGET_ITEMS: "scalr ingest",
    Table.SOURCE_USER_HISTORY: "scalr histories",
    Table.TARGET_USER_HISTORY: "scalr histories",
    Table.TARGET_ITEM_STATS: "scalr histories",
    Table.SYNTHETIC_TARGET_EVENTS: "scalr run",
    Table.SYNTHETIC_EVENT_PROVENANCE: "scalr run",
    Table.SYNTHETIC_QUARANTINE: "scalr run",
}


#: Beginnings of the names of files that we write into a table's folder: rows, and rows on their way between two tasks.
SHUFFLE_PREFIX: Final = "shuffle-"
WRITTEN_PREFIXES: Final = ("part-", SHUFFLE_PREFIX)
#: Files that no commit names are kept for so many hours.
_UNCOMMITTED_HOURS: Final = 24


class TableStore:
    """A folder or URL with Delta tables below it.

    Args:
        root: The folder or URL.
        storage_options: Passed to the library that opens an object store.

    Raises:
        SettingsError: The path holds characters that the Delta library cannot handle.
    """

    def __init__(self, root: str, storage_options: dict[str, str] | None = None) -> None:
        self.root = root.rstrip("/")
        if "://" not in root:
            ensure_supported_path(root, "[project] lake")
        self.storage_options = storage_options or {}

    def uri(self, table: Table) -> str:
        """Return a table's path or URL."""
        return f"{self.root}/{table.value}"

    def exists(self, table: Table) -> bool:
        """Return whether a table exists.

        Raises:
            LakeError: The lake cannot be read.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            return DeltaTable.is_deltatable(self.uri(table), storage_options=self.storage_options)
        except (DeltaError, OSError) as error:
            raise self.unreadable_error(table, error) from error

    def open_table(self, table: Table, *, version: int | None = None) -> DeltaTable:
        """Open a Delta table.

        Raises:
            TableNotFound: It does not exist; names the command that makes it.
            LakeError: This version is no longer available, or the log cannot be read.
        """
        found = self.open_log(table, version=version)
        if version is not None:
            self.ensure_files_exist(table, found)
        return found

    def open_tables(self, tables: Iterable[Table], *, versions: Mapping[Any, int] | None = None) -> dict[Table, DeltaTable]:
        """Open several Delta tables concurrently: opening one from an object store takes several requests, one after the other.

        Args:
            tables: Which tables.
            versions: Version of each table, by table or its name; those without one are opened at their latest version.

        Raises:
            LakeError: As for `open_table`.
        """
        pinned = versions or {}
        return _map_concurrently(lambda table: self.open_table(table, version=pinned.get(table)), tables)

    def find_table(self, table: Table) -> DeltaTable | None:
        """Open a Delta table, or return None if it does not exist.

        Raises:
            LakeError: The lake, or the table's log, cannot be read.
        """
        try:
            return self.open_table(table)
        except TableNotFound:
            if self.exists(table):  # created meanwhile
                return self.open_table(table)
            return None

    def find_tables(self, tables: Iterable[Table]) -> dict[Table, DeltaTable]:
        """Open the existing ones of several Delta tables concurrently; see `find_table`."""
        found = _map_concurrently(self.find_table, tables)
        return {table: opened for table, opened in found.items() if opened is not None}

    def open_log(self, table: Table, *, version: int | None = None) -> DeltaTable:
        """Open a Delta table whose files need not exist.

        Raises:
            LakeError: As for `open_table`.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            return DeltaTable(self.uri(table), version=version, storage_options=self.storage_options)
        except (DeltaError, OSError) as error:
            if version is not None and self.exists(table):
                raise self._gone(table, version, flatten_message(error)) from error
            if isinstance(error, TableNotFoundError):
                raise TableNotFound(
                    "the table does not exist yet", where=self.uri(table), next_step=f"run: {_MADE_BY[table]}"
                ) from error
            raise self.unreadable_error(table, error) from error

    def ensure_files_exist(self, table: Table, opened: DeltaTable) -> None:
        """Check that every local file of an open table still exists.

        Raises:
            LakeError: A file is missing.
        """
        if missing := first_missing_file(local_paths(opened)):
            raise self._gone(table, opened.version(), f"{missing} was removed")

    def open_current(self, table: Table, opened: DeltaTable | None = None) -> DeltaTable:
        """Return the Delta table at its latest version: refreshed if already open.

        Raises:
            LakeError: As for `open_table`.
        """
        if opened is None:
            return self.open_table(table)
        self.refresh(table, opened)
        return opened

    def refresh(self, table: Table, opened: DeltaTable) -> None:
        """Refresh an open table to its latest version: much cheaper than opening it again, even if the log was truncated since.

        Raises:
            LakeError: Its log cannot be read.
        """
        from deltalake.exceptions import DeltaError

        try:
            opened.update_incremental()
        except (DeltaError, OSError) as error:
            raise self.unreadable_error(table, error) from error

    def is_readable(self, table: Table, version: int) -> bool:
        """Return whether an earlier version, with each of its local files, is still available."""
        try:
            self.open_table(table, version=version)
        except LakeError:
            return False
        return True

    def versions_since(self, table: Table, moment: datetime) -> Sequence[int]:
        """Return the versions of a table that were current at a time or later, as far as its log still has them."""
        from deltalake.exceptions import DeltaError

        opened = self.open_log(table)
        latest = opened.version()
        with suppress(DeltaError):  # the log begins later
            opened.load_as_version(moment)
        return range(opened.version(), latest + 1)

    def open_owned(self, table: Table, opened: DeltaTable | None = None) -> DeltaTable:
        """Open a Delta table for writing after checking that this package made it; ``opened``: the table, if already open.

        Raises:
            ForeignFiles: This package did not make it: it names every table that it makes in the table's log.
        """
        delta = self.open_table(table) if opened is None else opened
        if delta.metadata().name != table.value:
            raise self._foreign(table, "is a Delta table that this package did not make")
        return delta

    def ensure_no_files(self, table: Table) -> None:
        """Check that no files are in the way of a new table.

        Local folders only: in an object store, files that our logs do not name are never removed anyway.

        Raises:
            ForeignFiles: The folder holds files.
        """
        folder = Path(self.uri(table))
        if "://" in self.root or not folder.is_dir():
            return
        # Tasks that wrote to the folder may have been killed before there was a table.
        others = (path for path in folder.iterdir() if path.name != "_delta_log" and not path.name.startswith(SHUFFLE_PREFIX))
        if not all(map(is_empty, others)) and not self.exists(table):  # another process may have created it meanwhile
            raise self._foreign(table, "contains files, but no Delta table")

    def check_ownership(self, opened: Mapping[Table, DeltaTable] | None = None) -> dict[Table, DeltaTable]:
        """Check that this package made every table of the lake.

        Args:
            opened: Tables that are already open.

        Returns:
            Every existing table, opened.

        Raises:
            ForeignFiles: A table or folder is foreign; nothing was written.
        """
        known = dict(opened or {})
        known |= self.find_tables(table for table in Table if table not in known)
        for table in Table:
            if table in known:
                self.open_owned(table, known[table])
            else:
                self.ensure_no_files(table)
        return {table: known[table] for table in Table if table in known}

    def has_commit(self, table: Table, key: str) -> bool:
        """Return whether a commit with this key has landed."""
        opened = self.find_table(table)
        return opened is not None and opened.transaction_version(key) is not None

    def vacuum(
        self, table: Table, *, keep_days: float = 7, keep_versions: Callable[[], Collection[int]] = tuple, dry_run: bool = False
    ) -> int:
        """Delete files that no recent version uses, and files that were written but never committed.

        Unlike Delta's own vacuum, which writes two table versions each time, this writes none: results made from the latest version stay
        up to date.

        Args:
            table: Which table.
            keep_days: Versions that were replaced within so many days stay readable.
            keep_versions: Returns the versions that stay readable at any age. It is called once the unused files are known, so that
                a version that is pinned meanwhile counts.
            dry_run: Delete nothing.

        Returns:
            Number of deleted files; files that the log still names but that no longer exist are not counted.
        """
        from deltalake.fs import DeltaStorageHandler
        from pyarrow.fs import FileType, PyFileSystem

        opened, hours = self.open_owned(table), math.ceil(keep_days * 24)
        unused = set(opened.vacuum(hours, dry_run=True, enforce_retention_duration=False))
        # Files that the log has never named. Younger ones may belong to a commit in progress; others may not be ours.
        unnamed = opened.vacuum(max(hours, _UNCOMMITTED_HOURS), dry_run=True, enforce_retention_duration=False, full=True)
        unused |= {name for name in unnamed if name.startswith(WRITTEN_PREFIXES)}
        for version in set(keep_versions()):
            unused -= file_names(self.open_log(table, version=version))  # of files, some may be lost: the others stay
        # A commit since then may have brought files back, as `scalr publication enable` does.
        unused -= file_names(self.open_log(table))
        files = PyFileSystem(DeltaStorageHandler(self.uri(table), self.storage_options))
        existing = [name for name in sorted(unused) if files.get_file_info(name).type is FileType.File]
        if not dry_run:
            for name in existing:
                files.delete_file(name)
        return len(existing)

    def unreadable_error(self, table: Table, error: Exception) -> LakeError:
        """Return the error for a log that cannot be read on this machine."""
        here = "check that the lake can be read; restore the table's _delta_log from a copy if it is damaged"
        there = (
            "check that this machine, and each Dask worker, reaches the store and has its credentials: [project] storage_options "
            "in scalr.toml, or the store's variables in the environment"
        )
        return LakeError(
            f"the table's log cannot be read on {socket.gethostname()}: {flatten_message(error)}",
            where=self.uri(table),
            next_step=there if "://" in self.root else here,
        )

    def _foreign(self, table: Table, finding: str) -> ForeignFiles:
        return ForeignFiles(
            finding,
            where=self.uri(table),
            next_step="name another [project] home or lake; if it is a copy of a table of this package, give it back its name: "
            f"deltalake.DeltaTable(…).alter.set_table_name('{table.value}')",
        )

    def _gone(self, table: Table, version: int, finding: str) -> LakeError:
        return LakeError(
            f"version {version}, which the run is pinned to, is no longer there: {finding}",
            where=self.uri(table),
            next_step=REBUILD
            if self.open_log(table).version() == version
            else "a vacuum has removed it; plan the run on the current tables: scalr generate",
        )


def _map_concurrently(work: Callable[[Table], Value], tables: Iterable[Table]) -> dict[Table, Value]:
    """Return the result for each table; errors are raised in the tables' order."""
    tables = tuple(tables)
    with ThreadPoolExecutor(max(len(tables), 1), "lake") as executor:
        return dict(zip(tables, executor.map(work, tables), strict=True))


def flatten_message(error: Exception) -> str:
    """Return deltalake's message with its causes in one line, without colours and arrows."""
    lines = (re.sub(r"\x1b\[[0-9;]*m|↳", "", line).strip() for line in str(error).splitlines())
    return ": ".join(line for line in lines if line)[:300] or type(error).__name__
