# SPDX-License-Identifier: Apache-2.0
"""The lake: one Delta table per name of `contracts.Table`, on disk or at any object-store URL.

Every commit carries a *key* as a Delta app transaction, so that repeating it changes nothing. A commit that fails is told apart
from one whose outcome is unknown.
"""

from __future__ import annotations

import math
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, Table
from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown, ForeignFiles, LakeError, TableNotFound
from scalr_prod.growth import schema_of_table
from scalr_prod.ownership import is_empty
from scalr_prod.written import note_written

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import TypeAlias

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import CommitProperties, DeltaTable, WriterProperties

    from scalr_prod.settings import Settings

    Rows: TypeAlias = "pa.Table | pa.RecordBatchReader"

__all__ = ["Commit", "Lake", "record_of", "window_sql"]

_MADE_BY = {
    Table.SOURCE_EVENTS: "scalr ingest",
    Table.TARGET_EVENTS: "scalr ingest",
    Table.SOURCE_ITEMS: "scalr ingest",
    Table.TARGET_ITEMS: "scalr ingest",
    Table.SOURCE_USER_HISTORY: "scalr histories",
    Table.TARGET_USER_HISTORY: "scalr histories",
    Table.TARGET_ITEM_STATS: "scalr histories",
    Table.SYNTHETIC_TARGET_EVENTS: "scalr publish",
    Table.SYNTHETIC_QUARANTINE: "scalr validate",
}

#: App id shared by all commits that depend on the version they were computed from.
_GUARD = "expected-version"
#: The key again, where a table's history shows it.
_KEY = "scalr.key"
#: A log is summed up every ten commits, so that opening a table costs the same on any day. (Delta's default is a hundred.) What was
#: summed up stays: former versions are read by those who are pinned to them.
_LOGGED: Final[dict[str, str | None]] = {"delta.checkpointInterval": "10", "delta.enableExpiredLogCleanup": "false"}
#: What a commit says of itself.
_RECORD = "scalr.record"
#: App ids whose value is a version of the table: the one that was set aside, and the one that was brought back last.
_ASIDE, _BACK = "scalr.set-aside", "scalr.brought-back"


@dataclass(frozen=True)
class Commit:
    """What a write came to.

    Attributes:
        table: The table's name.
        version: The Delta version that the commit made.
        written: False when the same key had been committed before, and nothing was done.
    """

    table: str
    version: int
    written: bool


class Lake:
    """The Delta tables below one folder or URL."""

    def __init__(self, root: str, storage_options: dict[str, str] | None = None) -> None:
        self.root = root.rstrip("/")
        self.storage_options = storage_options or {}

    @classmethod
    def open(cls, settings: Settings) -> Lake:
        """The lake of a project: ``[project] lake``, or ``<home>/lake``."""
        return cls(settings.lake_url, dict(settings.project.storage_options))

    def uri(self, table: Table) -> str:
        """Where a table is."""
        return f"{self.root}/{table.value}"

    def exists(self, table: Table) -> bool:
        """Whether a table is there.

        Raises:
            LakeError: The lake cannot be asked.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            return DeltaTable.is_deltatable(self.uri(table), storage_options=self.storage_options)
        except (DeltaError, OSError) as error:
            raise self._unreadable(table, error) from error

    def create(self, table: Table, schema: pa.Schema, *, description: str | None = None) -> None:
        """Make an empty table where there is none.

        Args:
            table: Which table.
            schema: Its columns.
            description: Kept in its log, from its first version on.

        Raises:
            ForeignFiles: There is a table, or a folder of files, that this package did not make.
            CommitFailed: The lake cannot be written to.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if self.exists(table):
            self._open_ours(table)
            return
        uri = self.uri(table)
        self._refuse_files(table)
        try:
            DeltaTable.create(
                uri,
                schema=schema,
                mode="ignore",
                name=table.value,
                description=description,
                configuration=_LOGGED,
                storage_options=self.storage_options,
            )
        except (DeltaError, OSError) as error:
            if self.exists(table):  # another process made it at the same moment
                return
            raise CommitFailed(
                f"the table cannot be made: {_in_one_line(error)}",
                where=uri,
                next_step="check that the lake can be written to and has room, and repeat the command",
            ) from error

    def complete(self, table: Table, schema: pa.Schema) -> None:
        """Give a table of a former version the columns that it lacks, null in its rows, in one commit.

        The rows are written anew: what reads the files of a table without its log would not find the column in the old ones.

        Raises:
            CommitFailed: Nothing changed; another writer may have been faster.
        """
        import pyarrow as pa
        from deltalake import write_deltalake

        version = self.version(table)
        rows = self.dataset(table, version=version)
        lacking = set(schema.names) - set(rows.schema.names)
        if not lacking:
            return
        wanted = pa.schema([column.with_nullable(nullable=True) if column.name in lacking else column for column in schema])
        key = f"columns: {', '.join(sorted(lacking))}"

        def completed() -> Iterator[pa.RecordBatch]:
            for batch in rows.to_batches():
                columns = [
                    pa.nulls(len(batch), column.type) if column.name in lacking else batch.column(column.name).cast(column.type)
                    for column in wanted
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=wanted)

        def write(delta: DeltaTable) -> None:
            _must_be_at(delta, version)
            write_deltalake(
                delta,
                pa.RecordBatchReader.from_batches(wanted, completed()),
                mode="overwrite",
                schema_mode="overwrite",
                commit_properties=_properties(key, version),
                writer_properties=_writing(),
            )

        self._once(table, key, write)

    def require(self, table: Table, column: str) -> None:
        """Make sure that a table, where there is one, has a column that those of former versions lack.

        Raises:
            LakeError: It lacks it.
        """
        if self.exists(table) and column not in self.schema(table).names:
            raise LakeError(
                f"a former version of this package made the table: it has no column '{column}'",
                where=self.uri(table),
                next_step="bring it up to date, which keeps its rows: scalr ingest",
            )

    def open_table(self, table: Table, *, version: int | None = None) -> DeltaTable:
        """The Delta table itself.

        Raises:
            TableNotFound: It is not there; names the command that makes it.
            LakeError: It is no longer there as it was at this version; or its log cannot be read.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            found = DeltaTable(self.uri(table), version=version, storage_options=self.storage_options)
        except (DeltaError, OSError) as error:
            if version is not None and self.exists(table):
                raise self._gone(table, version, _in_one_line(error)) from error
            if isinstance(error, TableNotFoundError):
                raise TableNotFound(
                    "the table does not exist yet", where=self.uri(table), next_step=f"run: {_MADE_BY[table]}"
                ) from error
            raise self._unreadable(table, error) from error
        if version is not None and (missing := _missing_file(found)):
            raise self._gone(table, version, f"{missing} was removed")
        return found

    def follow(self, table: Table, opened: DeltaTable) -> None:
        """Bring an open table up to its latest version: much less work than opening it again, also where the log was cut since.

        Raises:
            LakeError: Its log cannot be read.
        """
        from deltalake.exceptions import DeltaError

        try:
            opened.update_incremental()
        except (DeltaError, OSError) as error:
            raise self._unreadable(table, error) from error

    def readable(self, table: Table, version: int) -> bool:
        """Whether a former version, and on disk each of its files, is still there."""
        try:
            self.open_table(table, version=version)
        except LakeError:
            return False
        return True

    def check_ours(self) -> None:
        """Make sure that every table of the lake is this package's own, or not there.

        Raises:
            ForeignFiles: One is not; nothing was written.
        """
        for table in Table:
            if self.exists(table):
                self._open_ours(table)
            else:
                self._refuse_files(table)

    def _open_ours(self, table: Table) -> DeltaTable:
        """The Delta table itself, to be written to.

        Raises:
            ForeignFiles: This package did not make it: those that it makes bear their name in their log.
        """
        return self._ours(table, self.open_table(table))

    def _ours(self, table: Table, found: DeltaTable) -> DeltaTable:
        if found.metadata().name != table.value:
            raise self._foreign(table, "is a Delta table that this package did not make")
        return found

    def _refuse_files(self, table: Table) -> None:
        # On disk alone: an object store has no folders, and no file there is ever removed that no log of ours names.
        folder = Path(self.uri(table))
        if "://" not in self.root and any(not is_empty(path) for path in _files_beside_log(folder)):
            raise self._foreign(table, "holds files, but no Delta table")

    def _foreign(self, table: Table, found: str) -> ForeignFiles:
        return ForeignFiles(
            found,
            where=self.uri(table),
            next_step="name another [project] home or lake; if it is a copy of a table of this package, give it back its name: "
            f"deltalake.DeltaTable(…).alter.set_table_name('{table.value}')",
        )

    def _unreadable(self, table: Table, error: Exception) -> LakeError:
        here = "check that the lake can be read; restore the table's _delta_log from a copy if it is damaged"
        there = (
            "check that this machine, and each Dask worker, reaches the store and has its credentials: [project] storage_options "
            "in scalr.toml, or the store's variables in the environment"
        )
        return LakeError(
            f"the table's log cannot be read on {socket.gethostname()}: {_in_one_line(error)}",
            where=self.uri(table),
            next_step=there if "://" in self.root else here,
        )

    def _gone(self, table: Table, version: int, found: str) -> LakeError:
        return LakeError(
            f"version {version}, which the run is pinned to, is no longer there: {found}",
            where=self.uri(table),
            next_step="a vacuum has removed it; plan the run on today's tables: scalr generate",
        )

    def description(self, table: Table, *, opened: DeltaTable | None = None) -> str:
        """What the table's log says of it; empty where it says nothing. ``opened``: the table, where it is open already."""
        return self._ours(table, self.open_table(table) if opened is None else opened).metadata().description or ""

    def describe(self, table: Table, description: str, *, key: str) -> Commit:
        """Change the table's description, once per key.

        Raises:
            CommitFailed: Nothing changed; another writer may have moved the table on.
        """
        properties = _properties(key, None)
        return self._once(
            table, key, lambda delta: delta.alter.set_table_description(description, commit_properties=properties)
        )

    def version(self, table: Table) -> int:
        """The table's current Delta version."""
        return self.open_table(table).version()

    def schema(self, table: Table) -> pa.Schema:
        """The table's Arrow schema, in pyarrow's types; no file of it is asked."""
        return schema_of_table(self.open_table(table))

    def dataset(self, table: Table, *, version: int | None = None) -> ds.Dataset:
        """The table as a pyarrow dataset: lazily read, with filters pushed down; DuckDB and Polars scan it."""
        return self.open_table(table, version=version).to_pyarrow_dataset()

    def read(
        self,
        table: Table,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Rows in memory; for tables or slices known to be small."""
        return self.dataset(table, version=version).to_table(columns=list(columns) if columns else None, filter=where)

    def committed(self, table: Table, key: str) -> bool:
        """Whether a commit with this key has landed."""
        return self.exists(table) and self.open_table(table).transaction_version(key) is not None

    def commit_version(self, table: Table, key: str) -> int | None:
        """The Delta version that the commit with this key made; None where the table's history does not reach back to it."""
        return _version_of(self.open_table(table), key)

    def append(
        self,
        table: Table,
        rows: Rows,
        *,
        key: str,
        expected_version: int | None = None,
        record: str | None = None,
        opened: DeltaTable | None = None,
    ) -> Commit:
        """Add rows once per key.

        Args:
            table: Which table.
            rows: A table, or a reader that is streamed.
            key: Names this write.
            expected_version: The version that the rows were computed from. Where it is given, the rows are added to that
                version or not at all: of several writers that started from one version, one lands.
            record: What the commit says of itself, for `record_of`: it is there if and only if the rows are.
            opened: The table, where it is open already; afterwards it stands at the version that was made.

        Raises:
            CommitFailed: Nothing changed; with ``expected_version``, the table may have moved on.
        """
        return self._commit(
            table, rows, key=key, mode="append", expected_version=expected_version, record=record, opened=opened
        )

    def replace(
        self,
        table: Table,
        rows: Rows,
        *,
        key: str,
        expected_version: int | None = None,
        record: str | None = None,
        opened: DeltaTable | None = None,
    ) -> Commit:
        """Replace the whole table once per key; the others as for `append`."""
        return self._commit(
            table, rows, key=key, mode="overwrite", expected_version=expected_version, record=record, opened=opened
        )

    def replace_window(
        self, table: Table, rows: Rows, *, start: datetime, end: datetime, key: str, expected_version: int | None = None
    ) -> Commit:
        """Replace the rows with ``start <= event_timestamp < end`` by these, in one commit, once per key.

        With ``expected_version``, the commit follows that version or does not land: see `append`.

        Raises:
            CommitFailed: Nothing changed: a row lies outside of the window, another writer won, or the disk is full.
            CommitOutcomeUnknown: The table's log could not be read after the failure.
        """
        return self.replace_where(table, rows, window_sql(start, end), key=key, expected_version=expected_version)

    def replace_where(
        self,
        table: Table,
        rows: Rows,
        predicate: str,
        *,
        key: str,
        expected_version: int | None = None,
        record: str | None = None,
        notes: Mapping[str, int] | None = None,
    ) -> Commit:
        """Replace the rows that a SQL predicate names by these, all of which it must name too, in one commit, once per key.

        ``notes`` are numbers by name that the table's log keeps for `note`, whatever is committed later.
        """
        return self._commit(
            table,
            rows,
            key=key,
            mode="overwrite",
            predicate=predicate,
            expected_version=expected_version,
            record=record,
            notes=notes,
        )

    def note(self, table: Table, name: str) -> int | None:
        """The latest number of this name that a commit has left in the table's log, see `replace_where`; None: there is none."""
        return self.open_table(table).transaction_version(name)

    def records(self, table: Table, *, after: int = -1) -> list[tuple[int, str]]:
        """What the commits of a table say of themselves (see `append`), the oldest first, with the versions that they made.

        Args:
            table: Which table.
            after: Only of later versions. Each commit's file is read.
        """
        told = [(int(entry["version"]), entry.get(_RECORD)) for entry in self.open_table(table).history()]
        return sorted((version, record) for version, record in told if record is not None and version > after)

    def delete(self, table: Table, predicate: str, *, key: str, expected_version: int | None = None) -> Commit:
        """Delete the rows that a SQL predicate names, in one commit, once per key.

        They are replaced by none: files that Delta's own delete rewrites hold ``string_view`` columns, which pyarrow cannot filter.
        """
        none = self.schema(table).empty_table()
        return self.replace_where(table, none, predicate, key=key, expected_version=expected_version)

    def set_aside(self, table: Table, *, key: str, expected_version: int) -> Commit:
        """Make the table read as empty, in one commit; `bring_back` undoes it. The version before is kept in its log.

        Raises:
            CommitFailed: Nothing changed; the table may have moved on.
        """
        from deltalake import write_deltalake

        schema = self.schema(table)
        properties = _properties(key, expected_version, notes={_ASIDE: expected_version})

        def write(delta: DeltaTable) -> None:
            _must_be_at(delta, expected_version)
            write_deltalake(delta, schema.empty_table(), mode="overwrite", commit_properties=properties)

        return self._once(table, key, write)

    def bring_back(self, table: Table, aside: int, *, key: str, expected_version: int) -> Commit:
        """Let the table hold the files of the version that was set aside, in one commit: the same rows, byte for byte.

        Args:
            table: Which table.
            aside: From `aside`.
            key: Names this write.
            expected_version: The commit follows this version or does not land.

        Raises:
            LakeError: Files of that version are no longer there.
            CommitFailed: Nothing changed; the table may have moved on.
        """
        self.open_table(table, version=aside)  # says which file is gone
        properties = _properties(key, expected_version, notes={_BACK: aside})

        def write(delta: DeltaTable) -> None:
            _must_be_at(delta, expected_version)
            delta.restore(aside, commit_properties=properties)

        return self._once(table, key, write)

    def aside(self, table: Table, *, version: int | None = None) -> int | None:
        """The version that is set aside, see `set_aside`; None: the table reads as what it holds, or is not there.

        Args:
            table: Which table.
            version: As of this version; default: now.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:  # the log alone is asked: files of a former version need not be there
            found = DeltaTable(self.uri(table), version=version, storage_options=self.storage_options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self._unreadable(table, error) from error
        aside = found.transaction_version(_ASIDE)
        return None if aside == found.transaction_version(_BACK) else aside

    def committed_at(self, table: Table, version: int) -> datetime | None:
        """When a version was committed (UTC, the writer's clock); None where the table's history does not reach back to it."""
        from datetime import UTC, datetime

        entries = self.open_table(table).history()
        millis = next((entry["timestamp"] for entry in entries if entry.get("version") == version), None)
        return None if millis is None else datetime.fromtimestamp(millis / 1000, UTC)

    def tidy(self, table: Table, *, keep_days: float = 7, keep_versions: Collection[int] = (), dry_run: bool = False) -> int:
        """Delete files that no version of the last days uses.

        Delta's own vacuum writes two versions of the table each time. This one writes none: what was made from a version goes on
        being made from the latest.

        Args:
            table: Which table.
            keep_days: Versions that were replaced no longer ago can still be read.
            keep_versions: Those that can be read at any age.
            dry_run: Delete nothing.

        Returns:
            How many files; those that are there no more, though the log still names them, are not counted.
        """
        from deltalake.fs import DeltaStorageHandler
        from pyarrow.fs import FileType, PyFileSystem

        unused = set(self._open_ours(table).vacuum(math.ceil(keep_days * 24), dry_run=True, enforce_retention_duration=False))
        for version in set(keep_versions):
            root = len(f"{self.uri(table)}/")
            unused -= {uri[root:] for uri in self.open_table(table, version=version).file_uris()}
        files = PyFileSystem(DeltaStorageHandler(self.uri(table), self.storage_options))
        there = [name for name in sorted(unused) if files.get_file_info(name).type is FileType.File]
        if not dry_run:
            for name in there:
                files.delete_file(name)
        return len(there)

    def _commit(
        self,
        table: Table,
        rows: Rows,
        *,
        key: str,
        mode: Any,
        predicate: str | None = None,
        expected_version: int | None = None,
        record: str | None = None,
        notes: Mapping[str, int] | None = None,
        opened: DeltaTable | None = None,
    ) -> Commit:
        from deltalake import write_deltalake

        properties = _properties(key, expected_version, record, notes=notes)

        def write(delta: DeltaTable) -> None:
            _must_be_at(delta, expected_version)
            write_deltalake(
                delta,
                rows,
                mode=mode,
                predicate=predicate,
                commit_properties=properties,
                writer_properties=_writing(),
            )

        return self._once(table, key, write, opened)

    def _once(self, table: Table, key: str, write: Callable[[DeltaTable], object], opened: DeltaTable | None = None) -> Commit:
        if opened is not None:
            self.follow(table, opened)  # it may have moved on
        delta = self._ours(table, self.open_table(table) if opened is None else opened)
        if delta.transaction_version(key) is not None:
            known = _version_of(delta, key)
            return Commit(table.value, delta.version() if known is None else known, written=False)
        try:
            write(delta)
        except Exception as error:
            # deltalake raises exceptions of many kinds (DeltaError, OSError, pyarrow's); the log alone tells what happened.
            self._settle(table, key, error)
            delta = self.open_table(table)
            if opened is not None:
                self.follow(table, opened)
            known = _version_of(delta, key)
            return self._written(table, delta.version() if known is None else known)
        # The handle stands at the version that its own commit made, whatever others have added since.
        return self._written(table, delta.version())

    def _written(self, table: Table, version: int) -> Commit:
        note_written(self.uri(table), version)
        return Commit(table.value, version, written=True)

    def _settle(self, table: Table, key: str, error: Exception) -> None:
        """Read the log after a failed write: landed after all, not landed, or not to be known."""
        try:
            landed = self.committed(table, key)
        except Exception as unreadable:
            raise CommitOutcomeUnknown(
                f"the commit may have landed, and the log cannot be read ({_in_one_line(unreadable)}); "
                f"the write said: {_in_one_line(error)}",
                where=self.uri(table),
                next_step="when the lake can be reached, repeat the command: a landed commit is recognised",
            ) from error
        if not landed:
            raise CommitFailed(
                f"nothing was written: {_in_one_line(error)}",
                where=self.uri(table),
                next_step="mend the cause and repeat the command",
            ) from error


def record_of(table: DeltaTable) -> str | None:
    """What the commit that made this version of a table says of itself, see `Lake.append`; None: nothing."""
    latest = next((entry for entry in table.history(1) if entry.get("version") == table.version()), {})
    return latest.get(_RECORD)


def _files_beside_log(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "_delta_log"] if folder.is_dir() else []


def _missing_file(table: DeltaTable) -> str | None:
    """The first file of a table on disk that is not there any more. Object stores are not asked, file by file, beforehand."""
    return next((uri for uri in table.file_uris() if "://" not in uri and not os.path.exists(uri)), None)  # noqa: PTH110 - of each file


def _properties(
    key: str, expected_version: int | None, record: str | None = None, *, notes: Mapping[str, int] | None = None
) -> CommitProperties:
    from deltalake import CommitProperties, Transaction

    # Two commits that share an app id and started from one version conflict: that is what makes one of two writers lose.
    guard = [] if expected_version is None else [Transaction(_GUARD, expected_version)]
    said = {_KEY: key} if record is None else {_KEY: key, _RECORD: record}
    kept = [Transaction(name, number) for name, number in (notes or {}).items()]
    return CommitProperties(custom_metadata=said, app_transactions=[Transaction(key, 1), *guard, *kept])


def _writing() -> WriterProperties:
    """How Parquet is written: measured in docs/adr/0004-histories.md."""
    from deltalake import ColumnProperties, WriterProperties

    # A row group is held in memory until it is full. One user's histories repeat one another: plain values compress far better
    # than numbers of a dictionary.
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=65_536,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
    )


def _must_be_at(delta: DeltaTable, expected_version: int | None) -> None:
    if expected_version is not None and delta.version() != expected_version:
        raise RuntimeError(f"the table is at version {delta.version()}, the rows were computed from {expected_version}")


def _version_of(delta: DeltaTable, key: str) -> int | None:
    return next((int(entry["version"]) for entry in delta.history() if entry.get(_KEY) == key), None)


def window_sql(start: datetime, end: datetime) -> str:
    """SQL of Delta: the rows with ``start <= event_timestamp < end``."""
    return f"{EVENT_TIMESTAMP} >= '{_literal(start)}' AND {EVENT_TIMESTAMP} < '{_literal(end)}'"


def _literal(moment: datetime) -> str:
    from datetime import UTC

    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _in_one_line(error: Exception) -> str:
    """What deltalake says, causes and all, without its colours and arrows."""
    lines = (re.sub(r"\x1b\[[0-9;]*m|↳", "", line).strip() for line in str(error).splitlines())
    return ": ".join(line for line in lines if line)[:300] or type(error).__name__
