# SPDX-License-Identifier: Apache-2.0
"""Idempotent commits with optimistic concurrency: one per key, on the version it was computed from, with a record of what it did."""

from __future__ import annotations

import itertools
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scalr_prod.core.commit_events import emit_commit
from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown
from scalr_prod.lake.storage import flatten_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltalake import CommitProperties, DeltaTable

    from scalr_prod.lake.storage import TableStore
    from scalr_prod.schemas import Table


logger = logging.getLogger(__name__)

#: App id shared by all commits that require a table version.
_GUARD: Final = "expected-version"
#: Metadata entry with the key, which the table's history shows.
_KEY: Final = "scalr.key"
#: Metadata entry with the commit's record.
_RECORD: Final = "scalr.record"
#: Most attempts to recompute a commit after another writer was faster.
_ATTEMPTS: Final = 50

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class CommitResult:
    """Result of a write.

    Attributes:
        table: The table's name.
        version: The Delta version of the commit.
        written: False if the key had been committed before, so that nothing was written.
    """

    table: str
    version: int
    written: bool


@dataclass(frozen=True)
class CommitMetadata:
    """What the table's log stores with a commit, if and only if the commit lands.

    Attributes:
        record: Text, read with `commit_record` and `Lake.commit_records`.
        app_transactions: App ids with numbers, read with `Lake.transaction_version`; later commits keep them.
    """

    record: str | None = None
    app_transactions: Mapping[str, int] = field(default_factory=dict)


NO_METADATA: Final = CommitMetadata()


def commit_once(
    storage: TableStore,
    table: Table,
    key: str,
    write: Callable[[DeltaTable, CommitProperties], int | None],
    *,
    expected_version: int | None = None,
    metadata: CommitMetadata = NO_METADATA,
    opened: DeltaTable | None = None,
) -> CommitResult:
    """Commit, unless a commit with this key has landed.

    Args:
        storage: Where the table is.
        table: Which table.
        key: Idempotency key of this write.
        write: Makes the commit, with these properties; returns its version, or None if it moved the table to it.
        expected_version: The commit lands on top of this version or fails.
        metadata: What the table's log stores with the commit.
        opened: The table, if already open; afterwards it is at the version of the commit.

    Raises:
        ForeignFiles: This package did not make the table.
        CommitFailed: Nothing changed.
        CommitOutcomeUnknown: The table's log could not be read after the failure.
    """
    delta = storage.open_owned(table, storage.open_current(table, opened))
    if delta.transaction_version(key) is not None:
        return CommitResult(table.value, _version_with_key(delta, key), written=False)
    try:
        _check_version(delta, expected_version)
        version = write(delta, _properties(key, expected_version, metadata))
    except Exception as error:
        # deltalake raises exceptions of many types (DeltaError, OSError, pyarrow's); only the log shows what happened.
        _raise_unless_landed(storage, table, key, error)
        if opened is not None:
            storage.refresh(table, opened)
        version = _version_with_key(storage.open_table(table), key)
    if version is None:
        version = delta.version()  # that of our own commit, even if others have committed since
    emit_commit(storage.uri(table), version)
    return CommitResult(table.value, version, written=True)


def retry_on_new_version(
    storage: TableStore, table: Table, attempt: Callable[[int], Outcome], *, opened: DeltaTable | None = None
) -> Outcome:
    """Call ``attempt`` with the table's version, and again with the new one if another writer committed in the meantime.

    Args:
        storage: Where the table is.
        table: Which table.
        attempt: Called with the version; commits on top of it.
        opened: The table, if already open; it is moved to the version of each attempt.

    Raises:
        CommitFailed: It failed though the table's version did not change; or other writers were faster every time.
    """
    for number in itertools.count(1):
        version = storage.open_current(table, opened).version()
        try:
            return attempt(version)
        except CommitFailed:
            if number == _ATTEMPTS or storage.open_current(table, opened).version() == version:
                raise
            logger.info("another writer committed to %s in the meantime; computing the commit again", table.value)
            time.sleep(random.uniform(0.0, 0.02 * number))  # noqa: S311 - jitter, not a secret
    raise AssertionError("unreachable")


def _check_version(delta: DeltaTable, expected_version: int | None) -> None:
    if expected_version is not None and delta.version() != expected_version:
        raise RuntimeError(f"the table is at version {delta.version()}, the rows were computed from {expected_version}")


def _raise_unless_landed(storage: TableStore, table: Table, key: str, error: Exception) -> None:
    """Find out from the log whether a failed write landed.

    Raises:
        CommitFailed: It did not land.
        CommitOutcomeUnknown: The log cannot be read.
    """
    try:
        landed = storage.has_commit(table, key)
    except Exception as unreadable:
        raise CommitOutcomeUnknown(
            f"the commit may have landed, and the log cannot be read ({flatten_message(unreadable)}); "
            f"the write said: {flatten_message(error)}",
            where=storage.uri(table),
            next_step="when the lake can be reached, run the command again: a landed commit is recognised",
        ) from error
    if not landed:
        raise CommitFailed(
            f"nothing was written: {flatten_message(error)}",
            where=storage.uri(table),
            next_step="fix the cause and run the command again",
        ) from error


def _properties(key: str, expected_version: int | None, metadata: CommitMetadata) -> CommitProperties:
    from deltalake import CommitProperties, Transaction

    # Two commits with the same app id from the same version conflict, so only one of two concurrent writers succeeds.
    guard = {} if expected_version is None else {_GUARD: expected_version}
    custom_metadata = {_KEY: key} if metadata.record is None else {_KEY: key, _RECORD: metadata.record}
    numbers = {key: 1} | guard | dict(metadata.app_transactions)
    transactions = [Transaction(app_id, number) for app_id, number in numbers.items()]
    return CommitProperties(custom_metadata=custom_metadata, app_transactions=transactions)


def find_commit_version(delta: DeltaTable, key: str) -> int | None:
    """Return the version of the commit with this key, or None if the table's history does not reach back to it.

    Each commit is a file, so read the latest ten, then the latest hundred, and so on.
    """
    limit = 10
    while True:
        entries = delta.history(limit)
        found = next((int(entry["version"]) for entry in entries if entry.get(_KEY) == key), None)
        if found is not None or len(entries) < limit:
            return found
        limit *= 10


def _version_with_key(delta: DeltaTable, key: str) -> int:
    known = find_commit_version(delta, key)
    return delta.version() if known is None else known


def commit_record(table: DeltaTable) -> str | None:
    """Return the record of the commit that made this version of a table, see `CommitMetadata`, or None if it has none."""
    latest = next((entry for entry in table.history(1) if entry.get("version") == table.version()), {})
    return latest.get(_RECORD)


def commits_after(delta: DeltaTable, version: int) -> list[dict[str, Any]]:
    """List the table's commits after a version, latest first, as far as its history reaches back; reads one file for each."""
    count = delta.version() - version
    return [entry for entry in delta.history(count) if entry["version"] > version] if count > 0 else []


def commit_records(delta: DeltaTable, *, after: int = -1) -> list[tuple[int, str]]:
    """List the records of a table's commits after a version, with their versions, oldest first."""
    entries = [(int(entry["version"]), entry.get(_RECORD)) for entry in commits_after(delta, after)]
    return sorted((version, record) for version, record in entries if record is not None)
