# SPDX-License-Identifier: Apache-2.0
"""Deletion of rows of users or items from the lake's tables, and of the files that keep old table versions readable."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, Table
from scalr_prod.duck import literal
from scalr_prod.errors import LakeError
from scalr_prod.growth import names_of
from scalr_prod.lake import repeat_while_moving
from scalr_prod.replacements import REPLACED, Replacement

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.forgetting.traces import Ids
    from scalr_prod.lake import Lake
    from scalr_prod.tombstones import Kind

__all__ = ["HELD", "MADE_OF_ITEMS", "TABLES", "forget_rows", "held_of", "purge", "rows_of"]

#: Tables with rows of users, and of items of the target domain.
TABLES: Final[dict[Kind, tuple[Table, ...]]] = {
    "user": (
        Table.SOURCE_EVENTS,
        Table.TARGET_EVENTS,
        Table.SOURCE_USER_HISTORY,
        Table.TARGET_USER_HISTORY,
        Table.SYNTHETIC_TARGET_EVENTS,
        Table.SYNTHETIC_QUARANTINE,
    ),
    "item": (
        Table.TARGET_EVENTS,
        Table.TARGET_ITEMS,
        Table.TARGET_ITEM_STATS,
        Table.SYNTHETIC_TARGET_EVENTS,
        Table.SYNTHETIC_QUARANTINE,
    ),
}
#: Tables whose rows of other users or items are derived from the erased items' events.
MADE_OF_ITEMS: Final = (Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)
#: Event tables that translators are trained on.
HELD: Final[dict[Kind, tuple[Table, ...]]] = {
    "user": (Table.SOURCE_EVENTS, Table.TARGET_EVENTS),
    "item": (Table.TARGET_EVENTS,),
}
#: Ids per delete predicate.
_AT_ONCE: Final = 500


def rows_of(lake: Lake, table: Table, users: Ids) -> int:
    """Return how many rows of a table belong to the subjects."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return 0
    rows = lake.dataset(table)
    ids = users.of_column(rows.schema.field(users.column).type)
    # No filter on the scan: files restored by a rollback may have another string type, which pyarrow filters cannot compare.
    batches = rows.to_batches(columns=[users.column])
    return sum(pc.sum(pc.is_in(batch.column(0), value_set=ids)).as_py() or 0 for batch in batches)


def held_of(lake: Lake, table: Table, users: Ids) -> set[int | str]:
    """Return the ids that have rows in a table."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return set()
    rows = lake.dataset(table)
    ids = users.of_column(rows.schema.field(users.column).type)
    found: set[int | str] = set()
    for batch in rows.to_batches(columns=[users.column]):
        column = batch.column(0)
        found.update(column.filter(pc.is_in(column, value_set=ids)).unique().to_pylist())
    return found


def forget_rows(lake: Lake, table: Table, users: Ids) -> int:
    """Delete the subjects' rows from a table's current version; return their number. Files without such rows are not rewritten.

    Rows of other users are derived from an item's events, so deleting an item's events is recorded as a correction.

    Raises:
        CommitFailed: Nothing was deleted.
    """
    count = rows_of(lake, table, users)
    if not count:
        return 0
    ids = users.of_column(lake.schema(table).field(users.column).type)
    first = _first(lake, table, users, ids) if users.kind == "item" and table is Table.TARGET_EVENTS else None
    correction = None if first is None else Replacement(first, count, 0)
    literals = [literal(value) for value in ids.to_pylist()]
    for start in range(0, len(literals), _AT_ONCE):
        _delete(lake, table, f"{users.column} IN ({', '.join(literals[start : start + _AT_ONCE])})", correction)
    return count


def _first(lake: Lake, table: Table, users: Ids, ids: pa.Array) -> datetime:
    """Return the time of the subjects' earliest event."""
    import pyarrow.compute as pc

    batches = lake.dataset(table).to_batches(columns=[users.column, EVENT_TIMESTAMP])
    times = (batch.column(1).filter(pc.is_in(batch.column(0), value_set=ids)) for batch in batches)
    earliest: datetime = min(time for time in (pc.min(batch).as_py() for batch in times) if time is not None)
    return earliest


def _delete(lake: Lake, table: Table, predicate: str, replaced: Replacement | None) -> None:
    def delete(version: int) -> None:
        lake.replace_where(
            table,
            # Not Delta's delete: it rewrites files with another string type, which pyarrow filters cannot compare.
            lake.schema(table).empty_table(),
            predicate,
            key=f"forget-{uuid.uuid4().hex}",
            expected_version=version,
            record=replaced.to_json() if replaced else None,
            notes={REPLACED: version + 1} if replaced else None,
        )

    repeat_while_moving(lake, table, delete)


def purge(lake: Lake, table: Table, *, before: datetime) -> int:
    """Delete all files and log entries that a table's current version does not need; return how many.

    Log entries contain ids too: the least and greatest user of each file, and the predicates of deletions. So the log is replaced by a
    checkpoint.

    Args:
        lake: The lake.
        table: The table.
        before: Unreferenced files written after this time are kept, since they may belong to a commit in progress.

    Raises:
        LakeError: A file of the current version is missing. Nothing was deleted.
    """
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, FileType, PyFileSystem

    # Add an empty commit, so that the last log entry that stays contains no id.
    lake.describe(table, lake.description(table), key=f"forget-{uuid.uuid4().hex}")
    delta = lake.open_table(table)
    delta.create_checkpoint()
    version, needed = delta.version(), names_of(delta)
    files = PyFileSystem(DeltaStorageHandler(lake.uri(table), lake.storage_options))
    deleted = 0
    present = {info.path.lstrip("/"): info for info in files.get_file_info(FileSelector("", recursive=True))}
    if missing := sorted(needed - present.keys()):
        raise LakeError(
            f"{len(missing)} of the table's {len(needed)} files are missing, for example {missing[0]}; nothing was removed from its folder",
            where=lake.uri(table),
            next_step="restore them from a backup, then repeat the command",
        )
    for name, info in present.items():
        if info.type is not FileType.File:
            continue
        if name.startswith("_delta_log/"):
            number = re.match(r"_delta_log/(\d{20})\.", name)
            old = int(number[1]) < version if number else name != "_delta_log/_last_checkpoint" and info.mtime < before
        else:
            old = name not in needed and info.mtime is not None and info.mtime < before
        if old:
            files.delete_file(name)
            deleted += 1
    return deleted
