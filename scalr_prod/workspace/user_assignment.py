# SPDX-License-Identifier: Apache-2.0
"""Assignment of users to the holdout (no synthetic events) and to the canary (runs are published for them first).

The assignment depends only on a keyed hash of the user's id, not on logs, translators or runs. Held-out users have the smallest hashes,
canary users the greatest. So assignments are stable, a larger share keeps its present users, new users are assigned without any state, and
no user is in both.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.core.directory_marker import read_marker
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.workspace.ownership import claim_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from scalr_prod.config import Settings


#: Training-set columns that mark rows of held-out users and of canary users.
HELD_OUT_COLUMN: Final = "held_out"
CANARY_COLUMN: Final = "canary"
#: Key in a run's specification.
_SECTION: Final = "experiment"


@dataclass(frozen=True)
class Holdout:
    """The holdout: users who get no synthetic events.

    Attributes:
        share: Share of users that are held out, 0 to 1.
        salt: 32 hex digits derived from the key.
    """

    share: float
    salt: str

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return the project's holdout, or None if nobody is held out.

        Raises:
            ProjectsMixed: The home belongs to another project.
            ForeignFiles: The home holds files that this package did not make.
        """
        if not settings.experiment.holdout:
            return None
        return cls(settings.experiment.holdout, experiment_salt(settings))

    @classmethod
    def from_run(cls, settings: Mapping[str, Any]) -> Self | None:
        """Return the holdout with which a run was planned, from the settings in its specification, or None if it had none."""
        section = settings.get(_SECTION)
        return None if section is None else cls(**section)

    def to_run_settings(self) -> dict[str, Any]:
        """Return the settings that a run's specification records, for `from_run`."""
        return {_SECTION: asdict(self)}

    def membership_sql(self, user: str) -> str:
        """Return a DuckDB expression (BOOLEAN): whether a user is held out.

        Args:
            user: An expression of the id; 7 and '7' are the same user.
        """
        return f"({_hash_sql(self.salt, user)} < {min(_hash_bound(self.share), 2**64 - 1)}::UBIGINT)"


@dataclass(frozen=True)
class Canary(Jsonable):
    """The users for whom runs are published first.

    Attributes:
        share: Share of all users, over 0 and under 1.
        salt: 32 hex digits derived from the key.
    """

    share: float
    salt: str

    @classmethod
    def from_settings(cls, settings: Settings, share: float | None = None) -> Self | None:
        """Return the project's canary, or None if runs are published for everybody at once.

        Args:
            settings: The project's settings.
            share: Overrides ``[experiment] canary``.

        Raises:
            ProjectsMixed: The home belongs to another project.
            ForeignFiles: The home holds files that this package did not make.
        """
        share = settings.experiment.canary if share is None else share
        return cls(share, experiment_salt(settings)) if share else None

    @classmethod
    def from_publication(cls, found: Mapping[str, Any] | None) -> Self | None:
        """Return the canary of a publication from its ledger record, or None if it was for everybody."""
        return None if found is None else cls(**found)

    def is_subset_of(self, other: Canary | None) -> bool:
        """Return whether every user of this canary is certainly in the other one (None: everybody)."""
        return other is None or (self.salt == other.salt and self.share <= other.share)

    def membership_sql(self, user: str) -> str:
        """Return a DuckDB expression (BOOLEAN): whether a user is in the canary; ``user`` as for `Holdout.membership_sql`."""
        return f"({_hash_sql(self.salt, user)} >= {max(2**64 - _hash_bound(self.share), 1)}::UBIGINT)"

    def membership_mask(self, users: pa.Array) -> pa.BooleanArray:
        """Return a mask of the users that are in the canary: [N]."""
        import duckdb
        import pyarrow as pa

        with duckdb.connect(config={"threads": 1}) as db:
            db.register("users", pa.table({"user_id": users}))
            members = db.sql(f"SELECT {self.membership_sql('user_id')} AS chosen FROM users").to_arrow_table()["chosen"]
        return members.combine_chunks()


def experiment_salt(settings: Settings) -> str:
    """Return the salt of the project's experiment, 32 hex digits, from ``[experiment] key``, else from the home's id."""
    key = settings.experiment.key
    if key is None:
        claim_home(settings)
        mark = read_marker(settings.home)
        key = mark.id if mark else ""
    return hashlib.sha256(f"scalr holdout:{key}".encode()).hexdigest()[:32]


def _hash_sql(salt: str, user: str) -> str:
    return f"md5_number_lower(concat('{salt}:', CAST({user} AS VARCHAR)))"


def _hash_bound(share: float) -> int:
    return round(share * 2**64)


def not_held_out_sql(settings: Mapping[str, Any], user: str) -> str:
    """Return a DuckDB expression: whether a run may translate a user's events.

    Args:
        settings: Settings in the run's specification.
        user: An expression of the id.
    """
    held = Holdout.from_run(settings)
    return "true" if held is None else f"NOT {held.membership_sql(user)}"
