# SPDX-License-Identifier: Apache-2.0
"""Deletion of rows of users or items from the lake's tables, and of the files that keep old table versions readable."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

from scalr_prod.core.delta_log import file_names
from scalr_prod.errors import LakeError
from scalr_prod.lake import CommitMetadata, Correction, retry_on_new_version
from scalr_prod.schemas import EVENT_TIMESTAMP, Table
from scalr_prod.workspace import quote_literal

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.lake import Lake
    from scalr_prod.operations.erasure.scrubbing import Subjects
    from scalr_prod.workspace import SuppressedKind


#: Tables with rows of users, and of items of the target domain.
AFFECTED_TABLES: Final[dict[SuppressedKind, tuple[Table, ...]]] = {
    "user": (
        Table.SOURCE_EVENTS,
        Table.TARGET_EVENTS,
        Table.SOURCE_USER_HISTORY,
        Table.TARGET_USER_HISTORY,
        Table.SYNTHETIC_TARGET_EVENTS,
        Table.SYNTHETIC_EVENT_PROVENANCE,
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
DERIVED_FROM_ITEMS: Final = (Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)
#: Event tables that translators are trained on.
EVENT_TABLES: Final[dict[SuppressedKind, tuple[Table, ...]]] = {
    "user": (Table.SOURCE_EVENTS, Table.TARGET_EVENTS),
    "item": (Table.TARGET_EVENTS,),
}
#: Ids per delete predicate.
_IDS_PER_DELETE: Final = 500


def count_rows(lake: Lake, table: Table, subjects: Subjects) -> int:
    """Return how many rows of a table belong to the subjects."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return 0
    rows = lake.dataset(table)
    ids = subjects.as_array(rows.schema.field(subjects.column).type)
    # No filter on the scan: files restored by a rollback may have another string type, which pyarrow filters cannot compare.
    batches = rows.to_batches(columns=[subjects.column])
    return sum(pc.sum(pc.is_in(batch.column(0), value_set=ids)).as_py() or 0 for batch in batches)


def find_ids(lake: Lake, table: Table, subjects: Subjects) -> set[int | str]:
    """Return the ids that have rows in a table."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return set()
    rows = lake.dataset(table)
    wanted = subjects.as_array(rows.schema.field(subjects.column).type)
    ids: set[int | str] = set()
    for batch in rows.to_batches(columns=[subjects.column]):
        column = batch.column(0)
        ids.update(column.filter(pc.is_in(column, value_set=wanted)).unique().to_pylist())
    return ids


def first_event_times(lake: Lake, subjects: Subjects) -> dict[int | str, datetime]:
    """Return the time of the first event of each subject (UTC), over the event tables; ids without events are missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first: dict[int | str, datetime] = {}
    for table in (table for table in EVENT_TABLES[subjects.kind] if lake.exists(table)):
        rows = lake.dataset(table)
        wanted = subjects.as_array(rows.schema.field(subjects.column).type)
        for batch in rows.to_batches(columns=[subjects.column, EVENT_TIMESTAMP]):
            theirs = pa.table(batch.filter(pc.is_in(batch.column(0), value_set=wanted)))
            earliest = theirs.group_by(subjects.column).aggregate([(EVENT_TIMESTAMP, "min")])
            for row in earliest.to_pylist():
                identifier, time = row[subjects.column], row[f"{EVENT_TIMESTAMP}_min"]
                first[identifier] = min(time, first.get(identifier, time))
    return first


def delete_rows(lake: Lake, table: Table, subjects: Subjects) -> int:
    """Delete the subjects' rows from a table's current version; return their number. Files without such rows are not rewritten.

    Rows of other users are derived from an item's events, so deleting an item's events is recorded as a correction.

    Raises:
        CommitFailed: Nothing was deleted.
    """
    count = count_rows(lake, table, subjects)
    if not count:
        return 0
    ids = subjects.as_array(lake.schema(table).field(subjects.column).type)
    first = _earliest_event(lake, table, subjects, ids) if subjects.kind == "item" and table is Table.TARGET_EVENTS else None
    correction = None if first is None else Correction(first, count, 0)
    literals = [quote_literal(value) for value in ids.to_pylist()]
    for start in range(0, len(literals), _IDS_PER_DELETE):
        _delete(lake, table, f"{subjects.column} IN ({', '.join(literals[start : start + _IDS_PER_DELETE])})", correction)
    return count


def _earliest_event(lake: Lake, table: Table, subjects: Subjects, ids: pa.Array) -> datetime:
    """Return the time of the subjects' earliest event."""
    import pyarrow.compute as pc

    batches = lake.dataset(table).to_batches(columns=[subjects.column, EVENT_TIMESTAMP])
    times = (batch.column(1).filter(pc.is_in(batch.column(0), value_set=ids)) for batch in batches)
    earliest: datetime = min(time for time in (pc.min(batch).as_py() for batch in times) if time is not None)
    return earliest


def _delete(lake: Lake, table: Table, predicate: str, correction: Correction | None) -> None:
    def delete(version: int) -> None:
        lake.replace_where(
            table,
            # Not Delta's delete: it rewrites files with another string type, which pyarrow filters cannot compare.
            lake.schema(table).empty_table(),
            predicate,
            key=f"forget-{uuid.uuid4().hex}",
            expected_version=version,
            metadata=correction.commit_metadata(version + 1) if correction else CommitMetadata(),
        )

    retry_on_new_version(lake, table, delete)


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
    lake.set_description(table, lake.description(table), key=f"forget-{uuid.uuid4().hex}")
    delta = lake.open_table(table)
    delta.create_checkpoint()
    version, needed = delta.version(), file_names(delta)
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
