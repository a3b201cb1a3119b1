# SPDX-License-Identifier: Apache-2.0
"""What a log reader is to the ingest: one method, which streams the rows of a log.

A reader of your own is a class with ``read``; name it in ``[domains.*] format``. See docs/plugins.md for a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from scalr_prod.ingest.columns import Wanted

__all__ = ["Batch", "LogReader", "LogSource"]


@dataclass(frozen=True)
class LogSource:
    """What is to be read.

    Attributes:
        location: ``events`` of the settings: an absolute path, glob or folder, or a URL as it stands there.
        wanted: The columns to read, by their foreign names.
        version: Of a table that has versions; None: the current one.
        storage_options: ``storage_options`` of the settings; may hold secrets.
    """

    location: str
    wanted: Wanted
    version: int | None = None
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Batch:
    """Some rows of one file, table or query.

    Attributes:
        origin: Where they come from, for errors: the file's URL, or the database.
        row: Number of rows of the origin before these.
        rows: The wanted columns, under their foreign names. Ids are int64 or string, timestamps of any type that
            `scalr_prod.ingest.instants` reads; other columns may be there and are not looked at.
        untyped: Whether all is text because the format carries no types.
    """

    origin: str
    row: int
    rows: pa.RecordBatch
    untyped: bool = False


class LogReader(Protocol):
    """Reads logs of one format; made without arguments, once for every read."""

    def read(self, source: LogSource) -> Iterator[Batch]:
        """Stream a log's rows, in batches that fit in memory; the same log gives the same rows.

        Args:
            source: The log.

        Returns:
            Batches of raw columns, in the order of the log.

        Raises:
            UnreadableInput: It is not there, cannot be decoded, or has no such version.
            ColumnNotFound: A required column is missing.
        """
