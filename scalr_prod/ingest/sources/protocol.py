# SPDX-License-Identifier: Apache-2.0
"""Log reader protocol: one method that streams the rows of a log.

A custom reader is a class with a ``read`` method, named in ``[domains.*] format``. See docs/guides/plugins.md for a complete example.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from scalr_prod.ingest.column_mapping import ColumnSelection


@dataclass(frozen=True)
class LogSource:
    """A log to read, and how.

    Attributes:
        location: ``events`` of the settings: an absolute path, glob or folder, or a URL as it stands there.
        wanted: The columns to read, by their names in the log.
        version: Version of a versioned table; None: the current one.
        storage_options: ``storage_options`` of the settings; may hold secrets.
        max_expansion: ``[compute] max_expansion`` of the settings: unpacked size of a compressed file as a multiple of its size.
    """

    location: str
    wanted: ColumnSelection
    version: int | None = None
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)
    max_expansion: float = 200.0


@dataclass(frozen=True)
class Batch:
    """Some rows of one file, table or query.

    Attributes:
        origin: Where they come from, for errors: the file's URL, or the database.
        row: Number of rows that precede these in the origin.
        rows: The wanted columns, under their names in the log. Ids are int64 or string, timestamps of any type that
            `scalr_prod.ingest.timestamp_parser` reads; other columns are ignored.
        untyped: Whether every column is text because the format carries no types.
    """

    origin: str
    row: int
    rows: pa.RecordBatch
    untyped: bool = False


class LogReader(Protocol):
    """Reader of logs of one format; instantiated without arguments for every read."""

    def read(self, source: LogSource) -> Iterator[Batch]:
        """Stream a log's rows, in batches that fit in memory; the same log gives the same rows.

        Args:
            source: The log.

        Returns:
            Batches of raw columns, in the order of the log.

        Raises:
            UnreadableInput: The log does not exist, cannot be decoded, or has no such version.
            ColumnNotFound: A required column is missing.
        """
