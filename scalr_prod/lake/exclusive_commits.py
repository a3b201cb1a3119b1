# SPDX-License-Identifier: Apache-2.0
"""Check that an object store lets only one writer commit a version of a table: the lake relies on it."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import Barrier
from typing import TYPE_CHECKING, Final

from scalr_prod.errors import LakeError
from scalr_prod.lake.storage import flatten_message

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.lake.storage import TableStore


#: Number of concurrent writers. A store that ignores the condition usually accepts all of them.
_WRITERS: Final = 4


def check_exclusive_commits(storage: TableStore) -> None:
    """Check that an object store accepts one of several commits of the same version: tried on a small table, which is removed.

    A lake on a local disk is not checked. A store that passed is not checked again by this process.

    Raises:
        LakeError: It accepts several, and so ignores ``If-None-Match``; or it cannot be written to.
    """
    if "://" in storage.root:
        _check(storage.root, tuple(sorted(storage.storage_options.items())))


@cache  # errors are not cached
def _check(root: str, storage_options: tuple[tuple[str, str], ...]) -> None:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    uri, options = f"{root}/_scalr_probe_{uuid.uuid4().hex}", dict(storage_options)
    try:
        DeltaTable.create(uri, schema=_rows().schema, storage_options=options)
        if _count_accepted(uri, options) > 1:
            raise LakeError(
                "the store accepts two commits of one version of a table (it ignores If-None-Match: *): commits would be lost",
                where=root,
                next_step="use a store that honours conditional PUT, or a lake on a shared disk: see docs/guides/lake.md",
            )
    except (DeltaError, OSError) as error:
        raise LakeError(
            f"cannot be written to: {flatten_message(error)}",
            where=root,
            next_step="check the store's address and credentials: [project] storage_options, or the store's environment variables",
        ) from error
    finally:
        _remove(uri, options)


def _rows() -> pa.Table:
    import pyarrow as pa

    return pa.table({"x": pa.array([0], pa.int64())})


def _count_accepted(uri: str, options: dict[str, str]) -> int:
    """Commit several times at once on top of one version, so that only one may be accepted; return how many are."""
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError

    barrier = Barrier(_WRITERS)

    def commit(table: DeltaTable) -> bool:
        # As the lake's own commits: those with one app id from the same version conflict.
        guard = CommitProperties(app_transactions=[Transaction("probe", table.version())])
        barrier.wait()
        try:
            write_deltalake(table, _rows(), mode="append", commit_properties=guard)
        except DeltaError:
            return False
        return True

    with ThreadPoolExecutor(_WRITERS) as pool:
        tables = list(pool.map(lambda _: DeltaTable(uri, storage_options=options), range(_WRITERS)))
        return sum(pool.map(commit, tables))


def _remove(uri: str, options: dict[str, str]) -> None:
    """Remove the table; if the store refuses, a few small objects are left."""
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, PyFileSystem

    with suppress(Exception):
        files = PyFileSystem(DeltaStorageHandler(uri, options))
        for found in files.get_file_info(FileSelector("", recursive=True, allow_not_found=True)):
            if found.is_file:
                files.delete_file(found.path)
