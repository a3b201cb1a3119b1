# SPDX-License-Identifier: Apache-2.0
"""What the user states about a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class LogRequest:
    """Request for one log: what the user specified.

    Attributes:
        place: ``source``, ``sources.<name>`` for each of several sources, or ``target``; ``logs.<name>`` for a log whose role is open.
        location: A path, glob, folder or URL; with a query, a SQLAlchemy URL.
        query: SQL query.
        columns: Role → column, for roles that are not guessed.
        timezone: IANA zone of naive timestamps.
        table: The table that the query reads, if it was found in the database.
    """

    place: str
    location: str
    query: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    table: str | None = None

    @property
    def option(self) -> str:
        """The option that names the log."""
        if self.is_open:
            return "--log"
        return "--target" if self.place == "target" else "--source"

    @property
    def is_open(self) -> bool:
        """Whether the log may be that of a source or of a target."""
        return self.place.startswith("logs.")

    @property
    def value_prefix(self) -> str:
        """What values of its options begin with: ``NAME=`` if there are several such logs."""
        name = self.place.partition(".")[2]
        return f"{name}=" if name else ""
