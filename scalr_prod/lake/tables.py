# SPDX-License-Identifier: Apache-2.0
"""`Lake`: what can be done with its tables. They are made, read as of any version, written to and set aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import CommitFailed
from scalr_prod.growth import refuse_lost, schema_of_table
from scalr_prod.lake.commits import Commit, commit_once, records_of, version_of
from scalr_prod.lake.storage import Storage, in_one_line
from scalr_prod.lake.windows import is_empty_between, is_whole_between, only_between, window_sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Literal, TypeAlias

    import pyarrow as pa
    import pyarrow.dataset as ds
    from deltalake import CommitProperties, DeltaTable, WriterProperties

    from scalr_prod.contracts import Table
    from scalr_prod.settings import Settings

    Rows: TypeAlias = "pa.Table | pa.RecordBatchReader"

__all__ = ["Lake"]

#: A log is summed up every ten commits, so that opening a table costs the same on any day. (Delta's default is a hundred.) What was
#: summed up stays: former versions are read by those who are pinned to them.
_LOGGED: Final[dict[str, str | None]] = {"delta.checkpointInterval": "10", "delta.enableExpiredLogCleanup": "false"}
#: App ids whose value is a version of the table: the one that was set aside, and the one that was brought back last.
_ASIDE, _BACK = "scalr.set-aside", "scalr.brought-back"


class Lake(Storage):
    """The Delta tables below one folder or URL."""

    @classmethod
    def open(cls, settings: Settings) -> Lake:
        """The lake of a project: ``[project] lake``, or ``<home>/lake``."""
        return cls(settings.lake_url, dict(settings.project.storage_options))

    def create(
        self, table: Table, schema: pa.Schema, *, description: str | None = None, opened: DeltaTable | None = None
    ) -> DeltaTable:
        """Make an empty table where there is none.

        Args:
            table: Which table.
            schema: Its columns.
            description: Kept in its log, from its first version on.
            opened: The table, where it is open already.

        Returns:
            The table as it is now.

        Raises:
            ForeignFiles: There is a table, or a folder of files, that this package did not make.
            CommitFailed: The lake cannot be written to.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if opened is not None:
            self.follow(table, opened)
        if opened is not None or self.exists(table):
            return self.open_ours(table, opened)
        uri = self.uri(table)
        self.refuse_files(table)
        try:
            return DeltaTable.create(
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
                return self.open_ours(table)
            raise CommitFailed(
                f"the table cannot be made: {in_one_line(error)}",
                where=uri,
                next_step="check that the lake can be written to and has room, and repeat the command",
            ) from error

    def complete(self, table: Table, schema: pa.Schema, *, opened: DeltaTable | None = None) -> None:
        """Give a table of a former version the columns that it lacks, null in its rows, in one commit.

        The rows are written anew: what reads the files of a table without its log would not find the column in the old ones.

        Args:
            table: Which table.
            schema: Its columns.
            opened: The table, where it is open already, as it is now.

        Raises:
            CommitFailed: Nothing changed; another writer may have been faster.
        """
        import pyarrow as pa

        there = self.open_table(table) if opened is None else opened
        version, lacking = there.version(), set(schema.names) - set(schema_of_table(there).names)
        if not lacking:
            return
        rows = self.dataset(table, version=version)
        wanted = pa.schema([column.with_nullable(nullable=True) if column.name in lacking else column for column in schema])
        key = f"columns: {', '.join(sorted(lacking))}"

        def completed() -> Iterator[pa.RecordBatch]:
            for batch in rows.to_batches():
                columns = [
                    pa.nulls(len(batch), column.type) if column.name in lacking else batch.column(column.name).cast(column.type)
                    for column in wanted
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=wanted)

        anew = pa.RecordBatchReader.from_batches(wanted, completed())
        self._write(table, anew, key=key, mode="overwrite", schema_mode="overwrite", expected_version=version)

    def description(self, table: Table, *, opened: DeltaTable | None = None) -> str:
        """What the table's log says of it; empty where it says nothing. ``opened``: the table, where it is open already."""
        return self.open_ours(table, opened).metadata().description or ""

    def describe(self, table: Table, description: str, *, key: str) -> Commit:
        """Change the table's description, once per key.

        Raises:
            CommitFailed: Nothing changed; another writer may have moved the table on.
        """

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            delta.alter.set_table_description(description, commit_properties=properties)

        return commit_once(self, table, key, write)

    def version(self, table: Table) -> int:
        """The table's current Delta version."""
        return self.open_table(table).version()

    def schema(self, table: Table) -> pa.Schema:
        """The table's Arrow schema, in pyarrow's types; no file of it is asked."""
        return schema_of_table(self.open_table(table))

    def dataset(self, table: Table, *, version: int | None = None) -> ds.Dataset:
        """The table as a pyarrow dataset: lazily read, with filters pushed down; DuckDB and Polars scan it."""
        opened = self.open_table(table, version=version)
        if version is None:
            refuse_lost(opened)
        return opened.to_pyarrow_dataset()

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

    def commit_version(self, table: Table, key: str) -> int | None:
        """The Delta version that the commit with this key made; None where the table's history does not reach back to it."""
        return version_of(self.open_table(table), key)

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
        return self._write(table, rows, key=key, mode="append", expected_version=expected_version, record=record, opened=opened)

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
        return self._write(
            table, rows, key=key, mode="overwrite", expected_version=expected_version, record=record, opened=opened
        )

    def replace_window(
        self,
        table: Table,
        rows: Rows,
        *,
        start: datetime,
        end: datetime,
        key: str,
        expected_version: int | None = None,
        opened: DeltaTable | None = None,
    ) -> Commit:
        """Replace the rows with ``start <= event_timestamp < end`` by these, in one commit, once per key.

        With ``expected_version``, the commit follows that version or does not land: see `append`, also for ``opened``.

        Raises:
            CommitFailed: Nothing changed: a row lies outside of the window, another writer won, or the disk is full.
            CommitOutcomeUnknown: The table's log could not be read after the failure.
        """
        if expected_version is not None:
            opened = self.current(table, opened)
            # Planning a replacement takes Delta longer than writing 10 000 rows. The commit follows this version or does not land.
            if opened.version() == expected_version:
                empty, whole = is_empty_between(opened, start, end), is_whole_between(opened, start, end)
                if empty or whole:
                    write, inside = self.append if empty else self.replace, only_between(rows, start, end)
                    return write(table, inside, key=key, expected_version=expected_version, opened=opened)
        return self.replace_where(
            table, rows, window_sql(start, end), key=key, expected_version=expected_version, opened=opened
        )

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
        opened: DeltaTable | None = None,
    ) -> Commit:
        """Replace the rows that a SQL predicate names by these, all of which it must name too, in one commit, once per key.

        ``notes`` are numbers by name that the table's log keeps for `note`, whatever is committed later.
        """
        return self._write(
            table,
            rows,
            key=key,
            mode="overwrite",
            predicate=predicate,
            expected_version=expected_version,
            record=record,
            notes=notes,
            opened=opened,
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
        return [(version, record) for version, record in records_of(self.open_table(table)) if version > after]

    def delete(
        self,
        table: Table,
        predicate: str,
        *,
        key: str,
        expected_version: int | None = None,
        opened: DeltaTable | None = None,
    ) -> Commit:
        """Delete the rows that a SQL predicate names, in one commit, once per key.

        They are replaced by none: files that Delta's own delete rewrites hold ``string_view`` columns, which pyarrow cannot filter.
        """
        opened = self.current(table, opened)
        none = schema_of_table(opened).empty_table()
        return self.replace_where(table, none, predicate, key=key, expected_version=expected_version, opened=opened)

    def set_aside(self, table: Table, *, key: str, expected_version: int) -> Commit:
        """Make the table read as empty, in one commit; `bring_back` undoes it. The version before is kept in its log.

        Raises:
            CommitFailed: Nothing changed; the table may have moved on.
        """
        none, notes = self.schema(table).empty_table(), {_ASIDE: expected_version}
        return self._write(table, none, key=key, mode="overwrite", expected_version=expected_version, notes=notes)

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

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            delta.restore(aside, commit_properties=properties)

        return commit_once(self, table, key, write, expected_version=expected_version, notes={_BACK: aside})

    def aside(self, table: Table, *, version: int | None = None, opened: DeltaTable | None = None) -> int | None:
        """The version that is set aside, see `set_aside`; None: the table reads as what it holds, or is not there.

        Args:
            table: Which table.
            version: As of this version; default: now.
            opened: As of the version at which this table stands.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:  # the log alone is asked: files of a former version need not be there
            found = opened or DeltaTable(self.uri(table), version=version, storage_options=self.storage_options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise self.unreadable(table, error) from error
        aside = found.transaction_version(_ASIDE)
        return None if aside == found.transaction_version(_BACK) else aside

    def committed_at(self, table: Table, version: int) -> datetime | None:
        """When a version was committed (UTC, the writer's clock); None where the table's history does not reach back to it."""
        from datetime import UTC, datetime

        entries = self.open_table(table).history()
        millis = next((entry["timestamp"] for entry in entries if entry.get("version") == version), None)
        return None if millis is None else datetime.fromtimestamp(millis / 1000, UTC)

    def _write(
        self,
        table: Table,
        rows: Rows,
        *,
        key: str,
        mode: Any,
        predicate: str | None = None,
        schema_mode: Literal["overwrite"] | None = None,
        **commit: Any,
    ) -> Commit:
        """Commit rows; what else is said of the commit goes to `commit_once`."""
        from deltalake import write_deltalake

        def write(delta: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(
                delta,
                rows,
                mode=mode,
                predicate=predicate,
                schema_mode=schema_mode,
                commit_properties=properties,
                writer_properties=_writing(),
            )

        return commit_once(self, table, key, write, **commit)


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
