# SPDX-License-Identifier: Apache-2.0
"""`Lake`: create tables, read them at any version, write to them and hide their rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.delta_log import arrow_schema, cast_batch, ensure_files_intact, first_missing_file, local_paths
from scalr_prod.errors import CommitFailed, LakeError
from scalr_prod.lake.commits import (
    NO_METADATA,
    CommitMetadata,
    CommitResult,
    commit_once,
    commit_records,
    commits_after,
    find_commit_version,
)
from scalr_prod.lake.exclusive_commits import check_exclusive_commits
from scalr_prod.lake.storage import TableStore, flatten_message
from scalr_prod.lake.table_files import ROW_GROUP_ROWS, TableFile, remove_table_files, write_table_file
from scalr_prod.lake.time_windows import files_to_replace, window_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime
    from typing import Literal, TypeAlias

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import CommitProperties, DeltaTable, WriterProperties

    from scalr_prod.config import Settings
    from scalr_prod.schemas import Table

    RowSource: TypeAlias = "pa.Table | pa.RecordBatchReader"


#: Checkpoint every ten commits (delta-rs's default: 100), so that opening a table stays cheap. Never delete log
#: entries older than a checkpoint: runs read the versions that they are pinned to.
_LOG_SETTINGS: Final[dict[str, str | None]] = {"delta.checkpointInterval": "10", "delta.enableExpiredLogCleanup": "false"}
#: App ids whose value is a version of the table: the one that was hidden, and the one that was restored last.
_HIDDEN_VERSION, _RESTORED_VERSION = "scalr.set-aside", "scalr.brought-back"


class Lake(TableStore):
    """The Delta tables below one folder or URL."""

    @classmethod
    def open(cls, settings: Settings) -> Lake:
        """Open a project's lake: ``[project] lake``, or ``<home>/lake``."""
        return cls(settings.lake_url, dict(settings.project.storage_options))

    def create(
        self, table: Table, schema: pa.Schema, *, description: str | None = None, opened: DeltaTable | None = None
    ) -> DeltaTable:
        """Create an empty table if it does not exist.

        Args:
            table: Which table.
            schema: Its columns.
            description: Stored in its log from the first version on.
            opened: The table, if already open.

        Returns:
            The table at its latest version.

        Raises:
            ForeignFiles: A table or files that this package did not make are there.
            LakeError: The store would lose commits, see `check_exclusive_commits`.
            CommitFailed: The lake cannot be written to.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if opened is not None:
            self.refresh(table, opened)
        else:
            opened = self.find_table(table)
        if opened is not None:
            return self.open_owned(table, opened)
        uri = self.uri(table)
        self.ensure_no_files(table)
        check_exclusive_commits(self)
        try:
            return DeltaTable.create(
                uri,
                schema=schema,
                mode="ignore",
                name=table.value,
                description=description,
                configuration=_LOG_SETTINGS,
                storage_options=self.storage_options,
            )
        except (DeltaError, OSError) as error:
            if self.exists(table):  # another process created it at the same time
                return self.open_owned(table)
            raise CommitFailed(
                f"the table cannot be created: {flatten_message(error)}",
                where=uri,
                next_step="check that the lake is writable and has space, then run the command again",
            ) from error

    def add_missing_columns(self, table: Table, schema: pa.Schema, *, opened: DeltaTable | None = None) -> None:
        """Add the columns that a table of an earlier version lacks, as nulls, in one commit.

        All rows are rewritten: readers that read the files without the log would not find the column in old files.

        Args:
            table: Which table.
            schema: Its columns.
            opened: The table at its latest version, if already open.

        Raises:
            CommitFailed: Nothing changed; another writer may have been faster.
        """
        import pyarrow as pa

        delta = self.open_table(table) if opened is None else opened
        existing = arrow_schema(delta)
        lacking = set(schema.names) - set(existing.names)
        if not lacking:
            return
        wanted = [column.with_nullable(nullable=True) if column.name in lacking else column for column in schema]
        others = [column for column in existing if column.name not in schema.names]
        key = f"columns: {', '.join(sorted(lacking))}"
        self._rewrite(table, pa.schema([*wanted, *others]), key=key, expected_version=delta.version())

    def drop_columns(self, table: Table, names: Collection[str], *, expected_version: int) -> None:
        """Remove columns from a table, in one commit; all rows are rewritten. Earlier versions keep the columns.

        Raises:
            CommitFailed: Nothing changed; the table may have a newer version.
        """
        import pyarrow as pa

        left = pa.schema([column for column in self.schema(table) if column.name not in names])
        self._rewrite(table, left, key=f"without columns: {', '.join(sorted(names))}", expected_version=expected_version)

    def _rewrite(self, table: Table, schema: pa.Schema, *, key: str, expected_version: int) -> None:
        """Write all rows with other columns; those that the table lacks are null."""
        import pyarrow as pa

        rows = self.dataset(table, version=expected_version)
        reader = pa.RecordBatchReader.from_batches(schema, (cast_batch(batch, schema) for batch in rows.to_batches()))
        self._write(table, reader, key=key, mode="overwrite", schema_mode="overwrite", expected_version=expected_version)

    def description(self, table: Table, *, opened: DeltaTable | None = None) -> str:
        """Return the table's description, perhaps empty; ``opened``: the table, if already open."""
        return self.open_owned(table, opened).metadata().description or ""

    def set_description(self, table: Table, description: str, *, key: str) -> CommitResult:
        """Change the table's description, once per key.

        Raises:
            CommitFailed: Nothing changed; another writer may have committed first.
        """

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            delta.alter.set_table_description(description, commit_properties=properties)

        return commit_once(self, table, key, write)

    def version(self, table: Table) -> int:
        """Return the table's latest Delta version."""
        return self.open_table(table).version()

    def versions(self, tables: Iterable[Table]) -> dict[str, int]:
        """Return the latest Delta version of each table, by name."""
        return {table.value: opened.version() for table, opened in self.open_tables(tables).items()}

    def schema(self, table: Table, *, opened: DeltaTable | None = None) -> pa.Schema:
        """Return the table's Arrow schema from its log; ``opened``: the table, if already open."""
        return arrow_schema(self.open_table(table) if opened is None else opened)

    def dataset(self, table: Table, *, version: int | None = None) -> ds.Dataset:
        """Return the table as a lazy pyarrow dataset with filter pushdown; DuckDB and Polars can scan it."""
        opened = self.open_table(table, version=version)
        if version is None:
            ensure_files_intact(opened)
        return opened.to_pyarrow_dataset()

    def read(
        self,
        table: Table,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Read rows into memory; for tables or selections known to be small."""
        return self.dataset(table, version=version).to_table(columns=list(columns) if columns else None, filter=where)

    def commit_version(self, table: Table, key: str) -> int | None:
        """Return the version of the commit with this key, or None if the table's history does not reach back to it."""
        return find_commit_version(self.open_table(table), key)

    def append(
        self,
        table: Table,
        rows: RowSource,
        *,
        key: str,
        expected_version: int | None = None,
        metadata: CommitMetadata = NO_METADATA,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Append rows once per key.

        Args:
            table: Which table.
            rows: A table, or a reader that is streamed.
            key: Idempotency key of this write.
            expected_version: The version that the rows were computed from. The commit lands on top of this version or fails: of several
                writers that started from one version, only one succeeds.
            metadata: What the table's log stores with the commit.
            opened: The table, if already open; afterwards it is at the version of the commit.

        Raises:
            CommitFailed: Nothing changed; with ``expected_version``, the table may have a newer version.
        """
        return self._write(
            table, rows, key=key, mode="append", expected_version=expected_version, metadata=metadata, opened=opened
        )

    def replace(
        self,
        table: Table,
        rows: RowSource,
        *,
        key: str,
        expected_version: int | None = None,
        metadata: CommitMetadata = NO_METADATA,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Replace the whole table once per key; arguments as for `append`."""
        return self._write(
            table, rows, key=key, mode="overwrite", expected_version=expected_version, metadata=metadata, opened=opened
        )

    def write_file(
        self,
        table: Table,
        batches: Iterable[pa.RecordBatch],
        schema: pa.Schema,
        *,
        number: int,
        commit_id: str | None = None,
    ) -> TableFile | None:
        """Write rows to a new file in the table's folder, from any process; `append_files` and `replace_with_files` commit it.

        Arguments as for `write_table_file`.
        """
        return write_table_file(self.uri(table), self.storage_options, batches, schema, number=number, commit_id=commit_id)

    def remove_files(self, table: Table, files: Iterable[TableFile]) -> None:
        """Remove files of `write_file` that will not be committed; those that are left are removed by `vacuum`."""
        remove_table_files(self.uri(table), self.storage_options, files)

    def replace_with_files(
        self,
        table: Table,
        files: Iterable[TableFile],
        *,
        key: str,
        expected_version: int,
        metadata: CommitMetadata = NO_METADATA,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Replace the whole table with files of `write_file`, in one commit, once per key; other arguments as for `append`.

        Raises:
            CommitFailed: Nothing changed. The files are removed.
        """
        return self._commit_files(table, files, "overwrite", key, expected_version, metadata=metadata, opened=opened)

    def append_files(
        self,
        table: Table,
        files: Iterable[TableFile],
        *,
        key: str,
        expected_version: int,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Append files of `write_file`, in one commit, once per key; see `replace_with_files`."""
        return self._commit_files(table, files, "append", key, expected_version, opened=opened)

    def replace_window(
        self,
        table: Table,
        rows: RowSource,
        *,
        start: datetime,
        end: datetime,
        key: str,
        expected_version: int | None = None,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Replace the rows with ``start <= event_timestamp < end`` in one commit, once per key.

        ``expected_version`` and ``opened`` as for `append`.

        Raises:
            CommitFailed: Nothing changed: a row lies outside the window, another writer won, or the disk is full.
            CommitOutcomeUnknown: The table's log could not be read after the failure.
        """
        return self.replace_where(
            table, rows, window_sql(start, end), key=key, expected_version=expected_version, opened=opened
        )

    def replace_window_with_files(
        self,
        table: Table,
        write_files: Callable[[], Sequence[TableFile]],
        *,
        start: datetime,
        end: datetime,
        key: str,
        expected_version: int,
        opened: DeltaTable,
    ) -> CommitResult | None:
        """Replace the files that hold a window's rows with files of `write_file`, in one commit, once per key.

        Args:
            table: Which table.
            write_files: Writes the files.
            start: The window's first instant.
            end: The instant after its last.
            key: See `append`.
            expected_version: See `append`.
            opened: The table, at ``expected_version``; it stays at that version.

        Returns:
            The commit; None if a file may also hold rows outside of the window, see `replace_window`. Nothing is written then.

        Raises:
            CommitFailed: See `replace_with_files`.
            CommitOutcomeUnknown: See `replace_window`.
        """
        former = files_to_replace(opened, start, end) if opened.version() == expected_version else None
        if former is None:
            return None
        return self._commit_files(
            table, write_files(), "append", key, expected_version, replaced=former, reload=False, opened=opened
        )

    def replace_where(
        self,
        table: Table,
        rows: RowSource,
        predicate: str,
        *,
        key: str,
        expected_version: int | None = None,
        metadata: CommitMetadata = NO_METADATA,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Replace the rows that match a SQL predicate, in one commit, once per key; the new rows must match it too.

        The other arguments are those of `append`.
        """
        return self._write(
            table,
            rows,
            key=key,
            mode="overwrite",
            predicate=predicate,
            expected_version=expected_version,
            metadata=metadata,
            opened=opened,
        )

    def transaction_version(self, table: Table, app_id: str) -> int | None:
        """Return the latest number of an app id in the table's log, see `CommitMetadata`, or None if there is none."""
        return self.open_table(table).transaction_version(app_id)

    def commit_records(self, table: Table, *, after: int = -1, opened: DeltaTable | None = None) -> list[tuple[int, str]]:
        """List the records of a table's commits (see `CommitMetadata`) with their versions, oldest first.

        Args:
            table: Which table.
            after: Only versions after this one; one file is read for each.
            opened: The table, if already open.
        """
        return commit_records(self.open_table(table) if opened is None else opened, after=after)

    def delete(
        self,
        table: Table,
        predicate: str,
        *,
        key: str,
        expected_version: int | None = None,
        opened: DeltaTable | None = None,
    ) -> CommitResult:
        """Delete the rows that match a SQL predicate, in one commit, once per key.

        Implemented as a replacement by no rows: Delta's own delete writes ``string_view`` columns, which pyarrow cannot filter.
        """
        opened = self.open_current(table, opened)
        none = arrow_schema(opened).empty_table()
        return self.replace_where(table, none, predicate, key=key, expected_version=expected_version, opened=opened)

    def hide_rows(self, table: Table, *, key: str, expected_version: int) -> CommitResult:
        """Make the table read as empty, in one commit; `restore_rows` undoes it. The log keeps the version before.

        Raises:
            CommitFailed: Nothing changed; the table may have a newer version.
        """
        none, metadata = self.schema(table).empty_table(), CommitMetadata(app_transactions={_HIDDEN_VERSION: expected_version})
        return self._write(table, none, key=key, mode="overwrite", expected_version=expected_version, metadata=metadata)

    def restore_rows(self, table: Table, hidden_version: int, *, key: str, expected_version: int) -> CommitResult:
        """Restore the files of the hidden version, byte for byte, in one commit.

        Args:
            table: Which table.
            hidden_version: The hidden version, from `hidden_version`.
            key: Idempotency key of this write.
            expected_version: The commit lands on top of this version or fails.

        Raises:
            LakeError: Files of that version no longer exist.
            CommitFailed: Nothing changed; the table may have a newer version.
        """
        if missing := first_missing_file(local_paths(self.open_log(table, version=hidden_version))):
            raise LakeError(
                f"the hidden rows cannot be restored: {missing} is no longer there",
                where=self.uri(table),
                next_step="put the file back from a copy, then run: scalr publication enable",
            )

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            delta.restore(hidden_version, commit_properties=properties)

        metadata = CommitMetadata(app_transactions={_RESTORED_VERSION: hidden_version})
        return commit_once(self, table, key, write, expected_version=expected_version, metadata=metadata)

    def hidden_version(self, table: Table, *, version: int | None = None, opened: DeltaTable | None = None) -> int | None:
        """Return the hidden version, see `hide_rows`, or None if nothing is hidden, or there is no table.

        Args:
            table: Which table.
            version: As of this version; default: the latest.
            opened: As of the version of this open table.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:  # only the log is read: files of an earlier version need not exist
            delta = opened or DeltaTable(self.uri(table), version=version, storage_options=self.storage_options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self.unreadable_error(table, error) from error
        aside = delta.transaction_version(_HIDDEN_VERSION)
        return None if aside == delta.transaction_version(_RESTORED_VERSION) else aside

    def committed_at(self, table: Table, version: int) -> datetime | None:
        """Return when a version was committed (UTC, the writer's clock), or None if the history does not reach back to it."""
        from datetime import UTC, datetime

        entries = commits_after(self.open_table(table), version - 1)
        millis = next((entry["timestamp"] for entry in entries if entry.get("version") == version), None)
        return None if millis is None else datetime.fromtimestamp(millis / 1000, UTC)

    def _commit_files(
        self,
        table: Table,
        files: Iterable[TableFile],
        mode: Literal["append", "overwrite"],
        key: str,
        expected_version: int,
        *,
        replaced: Iterable[str] = (),
        reload: bool = True,
        **commit: Any,
    ) -> CommitResult:
        """Commit files on top of a version of a table, or remove them.

        Args:
            table: Which table.
            files: The files.
            mode: What Delta does.
            key: See `append`.
            expected_version: See `append`.
            replaced: Names of files that leave the table; only with ``mode="append"``.
            reload: Whether the open table moves to the version of the commit, which takes as long as the commit.
            **commit: Passed to `commit_once`.
        """
        from deltalake.transaction import RemoveAction

        files, now = list(files), int(time.time() * 1000)
        actions: list[Any] = [file.to_add_action() for file in files]
        actions += [RemoveAction(name, data_change=True, deletion_timestamp=now) for name in sorted(replaced)]

        def write(delta: DeltaTable, properties: CommitProperties) -> int:
            properties.max_commit_retries = 0  # else the commit may land on top of another writer's
            delta.create_write_transaction(actions, mode, delta.schema(), commit_properties=properties)
            if reload:  # Delta leaves the opened table at the version before
                delta.load_as_version(expected_version + 1)
            return expected_version + 1

        try:
            return commit_once(self, table, key, write, expected_version=expected_version, **commit)
        except CommitFailed:
            self.remove_files(table, files)
            raise

    def _write(
        self,
        table: Table,
        rows: RowSource,
        *,
        key: str,
        mode: Any,
        predicate: str | None = None,
        schema_mode: Literal["overwrite"] | None = None,
        **commit: Any,
    ) -> CommitResult:
        """Commit rows; other keyword arguments go to `commit_once`."""
        from deltalake import write_deltalake

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(
                delta,
                rows,
                mode=mode,
                predicate=predicate,
                schema_mode=schema_mode,
                commit_properties=properties,
                writer_properties=_writer_properties(),
            )

        return commit_once(self, table, key, write, **commit)


def _writer_properties() -> WriterProperties:
    """Return the Parquet writer settings; measured in docs/adr/0002-delta-lake-for-every-table.md."""
    from deltalake import ColumnProperties, WriterProperties

    # A row group is held in memory until it is full. A user's histories repeat one another, so plain values compress far better than
    # dictionary codes.
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        max_row_group_size=ROW_GROUP_ROWS,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
    )
