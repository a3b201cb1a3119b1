# SPDX-License-Identifier: Apache-2.0
"""A commit lands once per key, follows the version that it was computed from or does not land, and says what it was."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from scalr_prod.errors import CommitFailed, CommitOutcomeUnknown
from scalr_prod.lake.storage import in_one_line
from scalr_prod.written import note_written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deltalake import CommitProperties, DeltaTable

    from scalr_prod.contracts import Table
    from scalr_prod.lake.storage import Storage

__all__ = ["Commit", "commit_once", "record_of", "records_of", "repeat_while_moving", "version_of"]

logger = logging.getLogger(__name__)

#: App id shared by all commits that depend on the version they were computed from.
_GUARD: Final = "expected-version"
#: The key again, where a table's history shows it.
_KEY: Final = "scalr.key"
#: What a commit says of itself.
_RECORD: Final = "scalr.record"
#: How often a commit is computed anew because another writer was faster.
_ATTEMPTS: Final = 8

Outcome = TypeVar("Outcome")


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


def commit_once(
    storage: Storage,
    table: Table,
    key: str,
    write: Callable[[DeltaTable, CommitProperties], object],
    *,
    expected_version: int | None = None,
    record: str | None = None,
    notes: Mapping[str, int] | None = None,
    opened: DeltaTable | None = None,
) -> Commit:
    """Commit, unless a commit with this key has landed.

    Args:
        storage: Where the table is.
        table: Which table.
        key: Names this write.
        write: Makes the commit, with these properties.
        expected_version: The commit follows this version or does not land.
        record: What it says of itself.
        notes: Numbers by name, which the table's log keeps.
        opened: The table, where it is open already; afterwards it stands at the version that was made.

    Raises:
        ForeignFiles: This package did not make the table.
        CommitFailed: Nothing changed.
        CommitOutcomeUnknown: The table's log could not be read after the failure.
    """
    delta = storage.open_ours(table, storage.current(table, opened))
    if delta.transaction_version(key) is not None:
        return Commit(table.value, _made_by(delta, key), written=False)
    try:
        _must_be_at(delta, expected_version)
        write(delta, _properties(key, expected_version, record, notes or {}))
    except Exception as error:
        # deltalake raises exceptions of many kinds (DeltaError, OSError, pyarrow's); the log alone tells what happened.
        _settle(storage, table, key, error)
        if opened is not None:
            storage.follow(table, opened)
        version = _made_by(storage.open_table(table), key)
    else:
        version = delta.version()  # the one that its own commit made, whatever others have added since
    note_written(storage.uri(table), version)
    return Commit(table.value, version, written=True)


def repeat_while_moving(storage: Storage, table: Table, attempt: Callable[[int], Outcome]) -> Outcome:
    """Call ``attempt`` with the table's version, again if another writer moved the table on in the meantime.

    Raises:
        CommitFailed: It did not land, and the table stands where it stood; or others were faster again and again.
    """
    for number in itertools.count(1):
        version = storage.open_table(table).version()
        try:
            return attempt(version)
        except CommitFailed:
            if number == _ATTEMPTS or storage.open_table(table).version() == version:
                raise
            logger.info("%s has moved on in the meantime; computing the commit again", table.value)
    raise AssertionError("unreachable")


def _must_be_at(delta: DeltaTable, expected_version: int | None) -> None:
    if expected_version is not None and delta.version() != expected_version:
        raise RuntimeError(f"the table is at version {delta.version()}, the rows were computed from {expected_version}")


def _settle(storage: Storage, table: Table, key: str, error: Exception) -> None:
    """Read the log after a failed write: landed after all, not landed, or not to be known."""
    try:
        landed = storage.committed(table, key)
    except Exception as unreadable:
        raise CommitOutcomeUnknown(
            f"the commit may have landed, and the log cannot be read ({in_one_line(unreadable)}); "
            f"the write said: {in_one_line(error)}",
            where=storage.uri(table),
            next_step="when the lake can be reached, repeat the command: a landed commit is recognised",
        ) from error
    if not landed:
        raise CommitFailed(
            f"nothing was written: {in_one_line(error)}",
            where=storage.uri(table),
            next_step="mend the cause and repeat the command",
        ) from error


def _properties(key: str, expected_version: int | None, record: str | None, notes: Mapping[str, int]) -> CommitProperties:
    from deltalake import CommitProperties, Transaction

    # Two commits that share an app id and started from one version conflict: that is what makes one of two writers lose.
    guard = {} if expected_version is None else {_GUARD: expected_version}
    said = {_KEY: key} if record is None else {_KEY: key, _RECORD: record}
    transactions = [Transaction(name, number) for name, number in ({key: 1} | guard | dict(notes)).items()]
    return CommitProperties(custom_metadata=said, app_transactions=transactions)


def version_of(delta: DeltaTable, key: str) -> int | None:
    """The version that the commit with this key made; None where the table's history does not reach back to it."""
    return next((int(entry["version"]) for entry in delta.history() if entry.get(_KEY) == key), None)


def _made_by(delta: DeltaTable, key: str) -> int:
    known = version_of(delta, key)
    return delta.version() if known is None else known


def record_of(table: DeltaTable) -> str | None:
    """What the commit that made this version of a table says of itself, see `Lake.append`; None: nothing."""
    latest = next((entry for entry in table.history(1) if entry.get("version") == table.version()), {})
    return latest.get(_RECORD)


def records_of(delta: DeltaTable) -> list[tuple[int, str]]:
    """What the commits of a table say of themselves, the oldest first, with the versions that they made."""
    told = [(int(entry["version"]), entry.get(_RECORD)) for entry in delta.history()]
    return sorted((version, record) for version, record in told if record is not None)
