# SPDX-License-Identifier: Apache-2.0
"""Errors of the store.

DeltaStoreError      names where, what was found, what to do next
├── TableMissing     no Delta table at the path
├── DataFileMissing  a file that the table's log names does not exist
├── DataFileDamaged  a file is shorter than the table's log says
├── TableNotWritable the settings do not let the store write to the table
├── SpillError       no folder for rows that do not fit in memory
└── WriteFailed      nothing was written; safe to retry
"""

from __future__ import annotations

__all__ = [
    "DataFileDamaged",
    "DataFileMissing",
    "DeltaStoreError",
    "SpillError",
    "TableMissing",
    "TableNotWritable",
    "WriteFailed",
]


class DeltaStoreError(Exception):
    """Base of the store's errors.

    Args:
        found: What was found, in one sentence.
        where: The table, column, argument or folder where it was found.
        next_step: What to do about it.
    """

    def __init__(self, found: str, *, where: str | None = None, next_step: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.next_step = next_step

    def __str__(self) -> str:
        head = f"{self.where}: {self.found}" if self.where else self.found
        return f"{head}\n  next: {self.next_step}" if self.next_step else head

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders: rebuild with the keyword arguments kept.
        return _rebuild, (type(self), self.found, self.where, self.next_step)


def _rebuild(kind: type[DeltaStoreError], found: str, where: str | None, next_step: str | None) -> DeltaStoreError:
    return kind(found, where=where, next_step=next_step)


class TableMissing(DeltaStoreError):
    """There is no Delta table at the path."""


class DataFileMissing(DeltaStoreError):
    """A file that the table's log names does not exist."""


class DataFileDamaged(DeltaStoreError):
    """A file is shorter than the table's log says: it was cut off."""


class TableNotWritable(DeltaStoreError):
    """The settings do not let the store write to the table; nothing was written."""


class SpillError(DeltaStoreError):
    """The folder for rows that do not fit in memory cannot be created."""


class WriteFailed(DeltaStoreError):
    """Nothing was written; it is safe to retry."""
