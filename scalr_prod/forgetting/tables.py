# SPDX-License-Identifier: Apache-2.0
"""Rows of users or items out of the lake's tables, and out of everything by which a former version could be read again."""

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

#: Every table whose rows are of users, and of items of the target domain.
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
#: Tables of rows of others that are made from the items' events.
MADE_OF_ITEMS: Final = (Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)
#: What is learned from.
HELD: Final[dict[Kind, tuple[Table, ...]]] = {
    "user": (Table.SOURCE_EVENTS, Table.TARGET_EVENTS),
    "item": (Table.TARGET_EVENTS,),
}
#: Ids of one predicate.
_AT_ONCE: Final = 500


def rows_of(lake: Lake, table: Table, users: Ids) -> int:
    """How many rows of a table are of them."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return 0
    rows = lake.dataset(table)
    ids = users.of_column(rows.schema.field(users.column).type)
    # Not as a filter: a rollback may have left files whose text is of another type, which pyarrow cannot compare.
    batches = rows.to_batches(columns=[users.column])
    return sum(pc.sum(pc.is_in(batch.column(0), value_set=ids)).as_py() or 0 for batch in batches)


def held_of(lake: Lake, table: Table, users: Ids) -> set[int | str]:
    """Which of them a table has rows of."""
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
    """Delete their rows from a table's current version; gives their number. Files without such a row stay as they are.

    What other users' rows were made from changes with an item's events: the commit counts as a replacement of them.

    Raises:
        CommitFailed: Nothing was deleted.
    """
    count = rows_of(lake, table, users)
    if not count:
        return 0
    ids = users.of_column(lake.schema(table).field(users.column).type)
    first = _first(lake, table, users, ids) if users.kind == "item" and table is Table.TARGET_EVENTS else None
    replaced = None if first is None else Replacement(first, count, 0)
    listed = [literal(one) for one in ids.to_pylist()]
    for low in range(0, len(listed), _AT_ONCE):
        _delete(lake, table, f"{users.column} IN ({', '.join(listed[low : low + _AT_ONCE])})", replaced)
    return count


def _first(lake: Lake, table: Table, users: Ids, ids: pa.Array) -> datetime:
    """The earliest of their events."""
    import pyarrow.compute as pc

    batches = lake.dataset(table).to_batches(columns=[users.column, EVENT_TIMESTAMP])
    times = (batch.column(1).filter(pc.is_in(batch.column(0), value_set=ids)) for batch in batches)
    first: datetime = min(one for one in (pc.min(some).as_py() for some in times) if one is not None)
    return first


def _delete(lake: Lake, table: Table, predicate: str, replaced: Replacement | None) -> None:
    def delete(version: int) -> None:
        lake.replace_where(
            table,
            # Delta's own deletion writes what is left of a file with another type of text, which filters of pyarrow cannot compare.
            lake.schema(table).empty_table(),
            predicate,
            key=f"forget-{uuid.uuid4().hex}",
            expected_version=version,
            record=replaced.to_json() if replaced else None,
            notes={REPLACED: version + 1} if replaced else None,
        )

    repeat_while_moving(lake, table, delete)


def purge(lake: Lake, table: Table, *, before: datetime) -> int:
    """Delete every file of a table that its current version does not need, and its log up to this version; gives their number.

    A file's log entry holds the least and the greatest user of the file, and a deletion's entry whom it deleted: so the log is summed
    up, and begins with the sum.

    Args:
        lake: The lake.
        table: Which table.
        before: Files that are not in the table and were written later may be of a commit that is under way, and stay.

    Raises:
        LakeError: A file of the current version is not among those that are found. None was deleted.
    """
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, FileType, PyFileSystem

    # A commit of its own, so that the last one that stays says nothing of users.
    lake.describe(table, lake.description(table), key=f"forget-{uuid.uuid4().hex}")
    delta = lake.open_table(table)
    delta.create_checkpoint()
    version, needed = delta.version(), names_of(delta)
    files = PyFileSystem(DeltaStorageHandler(lake.uri(table), lake.storage_options))
    gone = 0
    there = {found.path.lstrip("/"): found for found in files.get_file_info(FileSelector("", recursive=True))}
    if lost := sorted(needed - there.keys()):
        raise LakeError(
            f"{len(lost)} of the table's {len(needed)} files are not there, {lost[0]} for one; nothing was removed from its folder",
            where=lake.uri(table),
            next_step="restore them from a copy, and repeat the command",
        )
    for name, found in there.items():
        if found.type is not FileType.File:
            continue
        if name.startswith("_delta_log/"):
            number = re.match(r"_delta_log/(\d{20})\.", name)
            old = int(number[1]) < version if number else name != "_delta_log/_last_checkpoint" and found.mtime < before
        else:
            old = name not in needed and found.mtime is not None and found.mtime < before
        if old:
            files.delete_file(name)
            gone += 1
    return gone
