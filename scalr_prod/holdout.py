# SPDX-License-Identifier: Apache-2.0
"""Who is held out, and who comes first: users that get no synthetic event, and users for whom runs are published before all others.

A user's place is a hash of the id under a key, and nothing else: not logs, translators or runs. Held-out users are those with the
least hashes, canary users those with the greatest. So a user stays on one side, a larger share keeps those whom it has already, a
user who comes tomorrow has a side today, and no user is held out and a canary user at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.jsonable import Jsonable
from scalr_prod.naming import read_mark
from scalr_prod.ownership import claim_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from scalr_prod.settings import Settings

__all__ = ["CANARY", "HELD_OUT", "Canary", "Holdout", "not_held_out_sql"]

#: The columns of a training set that mark rows of held-out users, and of canary users.
HELD_OUT: Final = "held_out"
CANARY: Final = "canary"
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
        return cls(settings.experiment.holdout, _salt(settings))

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
        return f"({_place_sql(self.salt, user)} < {min(_part(self.share), 2**64 - 1)}::UBIGINT)"


@dataclass(frozen=True)
class Canary(Jsonable):
    """The users for whom runs are published first.

    Attributes:
        share: Of all users, over 0 and under 1.
        salt: 32 hex digits that follow from the key.
    """

    share: float
    salt: str

    @classmethod
    def of(cls, settings: Settings, share: float | None = None) -> Self | None:
        """The project's; None where runs are published for everybody at once.

        Args:
            settings: ``[experiment]``.
            share: Instead of ``[experiment] canary``.

        Raises:
            ProjectsMixed: The home is another project's.
            ForeignFiles: The home holds what this package did not make.
        """
        share = settings.experiment.canary if share is None else share
        return cls(share, _salt(settings)) if share else None

    @classmethod
    def of_publication(cls, found: Mapping[str, Any] | None) -> Self | None:
        """The one that a publication was for, as the ledger has it; None: it was for everybody."""
        return None if found is None else cls(**found)

    def __le__(self, other: Canary | None) -> bool:
        """Whether every user of this one is one of the other's (None: everybody) for certain."""
        return other is None or (self.salt == other.salt and self.share <= other.share)

    def sql(self, user: str) -> str:
        """DuckDB expression (BOOLEAN): whether a user is one of them; ``user`` as for `Holdout.sql`."""
        return f"({_place_sql(self.salt, user)} >= {max(2**64 - _part(self.share), 1)}::UBIGINT)"

    def among(self, users: pa.Array) -> pa.BooleanArray:
        """Which of these users are among them."""
        import duckdb
        import pyarrow as pa

        with duckdb.connect(config={"threads": 1}) as db:
            db.register("asked", pa.table({"user_id": users}))
            found = db.sql(f"SELECT {self.sql('user_id')} AS chosen FROM asked").to_arrow_table()["chosen"]
        return found.combine_chunks()


def _salt(settings: Settings) -> str:
    """The key is ``[experiment] key``, else the id that the home got when it was made."""
    key = settings.experiment.key
    if key is None:
        claim_home(settings)
        mark = read_mark(settings.home)
        key = mark.id if mark else ""
    return hashlib.sha256(f"scalr holdout:{key}".encode()).hexdigest()[:32]


def _place_sql(salt: str, user: str) -> str:
    return f"md5_number_lower(concat('{salt}:', CAST({user} AS VARCHAR)))"


def _part(share: float) -> int:
    return round(share * 2**64)


def not_held_out_sql(settings: Mapping[str, Any], user: str) -> str:
    """DuckDB expression: whether a run may translate a user's events.

    Args:
        settings: Those of the run's specification.
        user: An expression of the id.
    """
    held = Holdout.of_run(settings)
    return "true" if held is None else f"NOT {held.sql(user)}"
