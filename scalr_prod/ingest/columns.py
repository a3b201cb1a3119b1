# SPDX-License-Identifier: Apache-2.0
"""Which foreign columns are wanted, and what to say when they are not there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scalr_prod.errors import BadValue, ColumnNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Wanted", "pick"]


@dataclass(frozen=True)
class Wanted:
    """Columns to read, by their foreign names.

    Attributes:
        required: Must be there.
        optional: Read where they are there.
        whole: Read every column, for a look at a log that is not known yet.
        setting: The settings' section that maps them, for the error.
        location: What names the log, for the error.
        seen: Columns that there are, wanted or not; `pick` adds them.
    """

    required: tuple[str, ...]
    setting: str
    optional: tuple[str, ...] = ()
    whole: bool = False
    location: str = "the path under [domains] in scalr.toml"
    seen: set[str] = field(default_factory=set, compare=False, repr=False)


def pick(there: Sequence[str], wanted: Wanted, origin: str) -> list[str]:
    """The wanted columns among those that are there, each once.

    Raises:
        ColumnNotFound: A required one is missing; lists those that are there and the closest match.
        BadValue: One is there twice.
    """
    wanted.seen.update(there)
    for name in wanted.required:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
            listed = ", ".join(f"'{column}'" for column in list(there)[:40])
            raise ColumnNotFound(
                f"no column '{name}'; there are: {listed}",
                where=origin,
                next_step=(f"did you mean '{close[0]}'? " if close else "")
                + f"map the column under [{wanted.setting}] in scalr.toml",
            )
    asked = there if wanted.whole else (*wanted.required, *wanted.optional)
    names = [name for name in dict.fromkeys(asked) if name in there]
    for name in names:
        if list(there).count(name) > 1:
            raise BadValue(
                f"the column '{name}' is there {list(there).count(name)} times",
                where=f"{origin}, column '{name}'",
                next_step="rename or drop the other one",
            )
    return names
