# SPDX-License-Identifier: Apache-2.0
"""Selection of the input columns to read, and the errors for missing ones."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scalr_prod.errors import BadValue, ColumnNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ColumnSelection:
    """Columns to read, by their names in the input.

    Attributes:
        required: Must exist.
        optional: Read if they exist.
        all_columns: Read every column, to inspect an unknown log.
        setting: The settings section that maps them, for the error.
        location: The setting or option that names the log, for the error.
        nullable: Required columns that may be null: a block of JSON lines may lack them, a file may not.
        seen_columns: All columns of the input; filled by `resolve_columns`.
    """

    required: tuple[str, ...]
    setting: str
    optional: tuple[str, ...] = ()
    all_columns: bool = False
    location: str = "the path under [domains] in scalr.toml"
    nullable: tuple[str, ...] = ()
    seen_columns: set[str] = field(default_factory=set, compare=False, repr=False)


def resolve_columns(available: Sequence[str], wanted: ColumnSelection, origin: str) -> list[str]:
    """Return the wanted columns that exist, each once.

    Raises:
        ColumnNotFound: A required column is missing; lists the existing ones and the closest match.
        BadValue: A wanted column exists twice.
    """
    wanted.seen_columns.update(available)
    for name in wanted.required:
        if name not in available:
            close = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
            listed = ", ".join(f"'{column}'" for column in list(available)[:40])
            raise ColumnNotFound(
                f"no column '{name}'; there are: {listed}",
                where=origin,
                next_step=(f"did you mean '{close[0]}'? " if close else "")
                + f"map the column under [{wanted.setting}] in scalr.toml",
            )
    selected = available if wanted.all_columns else (*wanted.required, *wanted.optional)
    names = [name for name in dict.fromkeys(selected) if name in available]
    for name in names:
        if list(available).count(name) > 1:
            raise BadValue(
                f"the column '{name}' is there {list(available).count(name)} times",
                where=f"{origin}, column '{name}'",
                next_step="rename or drop the other one",
            )
    return names
