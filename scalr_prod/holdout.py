# SPDX-License-Identifier: Apache-2.0
"""Who is held out: users that get no synthetic event, so that its effect can be measured on the others.

A user is held out by a hash of the id under a key, and by nothing else: not by logs, translators or runs. So a user stays on one side,
a larger share keeps those who are held out already, and a user who comes tomorrow has a side today.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.naming import read_mark
from scalr_prod.ownership import claim_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.settings import Settings

__all__ = ["HELD_OUT", "Holdout", "not_held_out_sql"]

#: The column of a training set that marks rows of held-out users.
HELD_OUT: Final = "held_out"
#: Where a run's specification keeps it.
_SECTION: Final = "experiment"


@dataclass(frozen=True)
class Holdout:
    """An assignment of every user, known or not, to one of two sides.

    Attributes:
        share: Of users that are held out, 0 to 1.
        salt: 32 hex digits that follow from the key.
    """

    share: float
    salt: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The project's; None where nobody is held out.

        The key is ``[experiment] key``, else the id that the home got when it was made.

        Raises:
            ProjectsMixed: The home is another project's.
            ForeignFiles: The home holds what this package did not make.
        """
        if not settings.experiment.holdout:
            return None
        key = settings.experiment.key
        if key is None:
            claim_home(settings)
            mark = read_mark(settings.home)
            key = mark.id if mark else ""
        salt = hashlib.sha256(f"scalr holdout:{key}".encode()).hexdigest()[:32]
        return cls(settings.experiment.holdout, salt)

    @classmethod
    def of_run(cls, settings: Mapping[str, Any]) -> Self | None:
        """The one that a run was planned with, from the settings in its specification."""
        found = settings.get(_SECTION)
        return None if found is None else cls(**found)

    def to_run(self) -> dict[str, Any]:
        """As a run's specification keeps it: what `of_run` reads."""
        return {_SECTION: asdict(self)}

    def sql(self, user: str) -> str:
        """DuckDB expression (BOOLEAN): whether a user is held out.

        Args:
            user: An expression of the id; 7 and '7' are one user.
        """
        limit = min(round(self.share * 2**64), 2**64 - 1)
        return f"(md5_number_lower(concat('{self.salt}:', CAST({user} AS VARCHAR))) < {limit}::UBIGINT)"


def not_held_out_sql(settings: Mapping[str, Any], user: str) -> str:
    """DuckDB expression: whether a run may translate a user's events.

    Args:
        settings: Those of the run's specification.
        user: An expression of the id.
    """
    held = Holdout.of_run(settings)
    return "true" if held is None else f"NOT {held.sql(user)}"
