# SPDX-License-Identifier: Apache-2.0
"""Users' rows out of the lake's tables, and out of everything by which a former version could be read again."""

from __future__ import annotations

import logging
import re
import uuid
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import USER_ID, Table, id_type_of
from scalr_prod.errors import CommitFailed

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.forgetting.traces import Users
    from scalr_prod.lake import Lake

__all__ = ["OF_USERS", "forget_rows", "purge", "rows_of"]

logger = logging.getLogger(__name__)

#: Every table whose rows are of users.
OF_USERS: Final = (
    Table.SOURCE_EVENTS,
    Table.TARGET_EVENTS,
    Table.SOURCE_USER_HISTORY,
    Table.TARGET_USER_HISTORY,
    Table.SYNTHETIC_TARGET_EVENTS,
    Table.SYNTHETIC_QUARANTINE,
)
_ATTEMPTS: Final = 8
#: Users of one predicate.
_AT_ONCE: Final = 500


def rows_of(lake: Lake, table: Table, users: Users) -> int:
    """How many rows of a table are of the users."""
    import pyarrow.compute as pc

    if not lake.exists(table):
        return 0
    rows = lake.dataset(table)
    ids = users.of_column(rows.schema.field(USER_ID).type)
    # Not as a filter: a rollback may have left files whose text is of another type, which pyarrow cannot compare.
    batches = rows.to_batches(columns=[USER_ID])
    return sum(pc.sum(pc.is_in(batch.column(0), value_set=ids)).as_py() or 0 for batch in batches)


def forget_rows(lake: Lake, table: Table, users: Users) -> int:
    """Delete the users' rows from a table's current version; gives their number. Files without such a row stay as they are.

    Raises:
        CommitFailed: Nothing was deleted.
    """
    count = rows_of(lake, table, users)
    if not count:
        return 0
    kind = id_type_of(lake.schema(table), USER_ID)
    ids = users.of_column(lake.schema(table).field(USER_ID).type).to_pylist()
    for low in range(0, len(ids), _AT_ONCE):
        some = ids[low : low + _AT_ONCE]
        listed = ", ".join(str(one) if kind == "int64" else "'" + one.replace("'", "''") + "'" for one in some)
        _delete(lake, table, f"{USER_ID} IN ({listed})")
    return count


def _delete(lake: Lake, table: Table, predicate: str) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        version = lake.version(table)
        # Delta's own deletion writes what is left of a file with another type of text, which filters of pyarrow cannot compare.
        nothing = lake.schema(table).empty_table()
        try:
            lake.replace_where(table, nothing, predicate, key=f"forget-{uuid.uuid4().hex}", expected_version=version)
        except CommitFailed:
            if attempt == _ATTEMPTS or lake.version(table) == version:
                raise
            logger.info("%s has moved on while users were forgotten; deleting again", table.value)
        else:
            return


def purge(lake: Lake, table: Table, *, before: datetime) -> int:
    """Delete every file of a table that its current version does not need, and its log up to this version; gives their number.

    A file's log entry holds the least and the greatest user of the file, and a deletion's entry whom it deleted: so the log is summed
    up, and begins with the sum.

    Args:
        lake: The lake.
        table: Which table.
        before: Files that are not in the table and were written later may be of a commit that is under way, and stay.
    """
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, FileType, PyFileSystem

    # A commit of its own, so that the last one that stays says nothing of users.
    lake.describe(table, lake.description(table), key=f"forget-{uuid.uuid4().hex}")
    delta = lake.open_table(table)
    delta.create_checkpoint()
    version, root = delta.version(), len(f"{lake.uri(table)}/")
    needed = {uri[root:] for uri in delta.file_uris()}
    files = PyFileSystem(DeltaStorageHandler(lake.uri(table), lake.storage_options))
    gone = 0
    for found in files.get_file_info(FileSelector("", recursive=True)):
        if found.type is not FileType.File:
            continue
        name = found.path.lstrip("/")
        if name.startswith("_delta_log/"):
            number = re.match(r"_delta_log/(\d{20})\.", name)
            old = int(number[1]) < version if number else name != "_delta_log/_last_checkpoint" and found.mtime < before
        else:
            old = name not in needed and found.mtime is not None and found.mtime < before
        if old:
            files.delete_file(name)
            gone += 1
    return gone
