# SPDX-License-Identifier: Apache-2.0
"""Consent of users to the use of their source events, where a source domain requires it.

Ingest records each user's latest answer in ``<home>/consent``: a Parquet file per state, named by its digest, and ``current.json``, which
names the current one. A run reads the state that it was planned with, so its contexts stay the same.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.core.atomic_io import atomic_path, write_json
from scalr_prod.errors import InputError
from scalr_prod.schemas import USER_ID
from scalr_prod.workspace.duckdb import parquet_sql, quote_literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import Settings


_FOLDER: Final = "consent"
_CURRENT: Final = "current.json"
#: Key in a run's specification.
_SECTION: Final = "consent"


@dataclass(frozen=True)
class ConsentState:
    """The users' answers at one time.

    A user must have consented in every domain that requires it, because a history combines the events of all source domains.

    Attributes:
        digest: Name of the file of answers.
        domains: Names of the source domains that require consent, sorted.
        all_domains: Whether these are all source domains. Then users without an answer have not consented; otherwise they may be users of
            a domain that does not require consent.
    """

    digest: str
    domains: tuple[str, ...]
    all_domains: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return the current state, or None if no source domain requires consent.

        Raises:
            InputError: No ingest has recorded the consent of a domain that requires it.
        """
        domains = settings.domains.consent_domains
        if not domains:
            return None
        current = _read_current(settings.home)
        if missing := sorted(set(domains) - set(current.get("domains", ()))):
            raise InputError(
                f"the consent of the users of {' and '.join(missing)} is not known yet",
                where="[domains] consent",
                next_step="read the logs again: scalr ingest",
            )
        return cls(current["digest"], domains, all_domains=set(domains) == set(settings.domains.source_names))

    @classmethod
    def from_run(cls, settings: Mapping[str, Any]) -> Self | None:
        """Return the state with which a run was planned, from the settings in its specification; None if consent was not required."""
        section = settings.get(_SECTION)
        return None if section is None else cls(section["digest"], tuple(section["domains"]), section["all_domains"])

    def to_run_settings(self) -> dict[str, Any]:
        """Return the settings that a run's specification records, for `from_run`."""
        return {_SECTION: asdict(self) | {"domains": list(self.domains)}}

    def without_consent_sql(self, home: Path) -> str:
        """Return a DuckDB query of the users without consent: they refused, or gave no answer.

        Raises:
            InputError: The answers were removed.
        """
        return f"SELECT {USER_ID} FROM {self._answers_sql(home)} WHERE NOT consent AND domain IN ({self._domains_sql})"

    def deciding_users_sql(self, home: Path) -> str:
        """Return a DuckDB query of the users whose answers decide: who consented, if all domains ask for consent; else who refused.

        Raises:
            InputError: The answers were removed.
        """
        if not self.all_domains:
            return self.without_consent_sql(home)
        answers = f"FROM {self._answers_sql(home)} WHERE domain IN ({self._domains_sql})"
        return f"SELECT {USER_ID} {answers} GROUP BY {USER_ID} HAVING bool_and(consent)"

    def permits_sql(self, user: str, deciding_users: str) -> str:
        """Return a DuckDB expression: whether a user's events may be used.

        Args:
            user: An expression of the id.
            deciding_users: A query of the users of `deciding_users_sql`.
        """
        return f"{user} {'IN' if self.all_domains else 'NOT IN'} ({deciding_users})"

    @property
    def _domains_sql(self) -> str:
        return ", ".join(map(quote_literal, self.domains))

    def _answers_sql(self, home: Path) -> str:
        path = _path(home, self.digest)
        if not path.is_file():
            raise InputError(
                "the users' consent at that time is no longer stored",
                where=str(path),
                next_step="plan a new run: scalr run",
            )
        return parquet_sql(path)

    def users_without_consent(self, home: Path, source_users: pa.Array | None = None) -> pa.Array:
        """Return the ids of the users without consent, sorted: they refused, or gave no answer.

        Args:
            home: The project's home.
            source_users: Ids of users with source events. Where all domains ask, those of whom ingest recorded no answer are included.
        """
        import duckdb
        import pyarrow as pa

        with duckdb.connect(config={"threads": 1}) as db:
            query = self.without_consent_sql(home)
            if source_users is not None and self.all_domains:
                db.register("source_users", pa.table({USER_ID: source_users}))
                query += (
                    f" UNION ALL SELECT {USER_ID} FROM source_users WHERE {USER_ID} NOT IN ({self.deciding_users_sql(home)})"
                )
            users = db.sql(f"SELECT DISTINCT {USER_ID} FROM ({query}) ORDER BY 1").to_arrow_table()
        return users.column(0).combine_chunks()

    def count_withdrawn(self, home: Path, now: ConsentState) -> int:
        """Count the users who had given their consent in this state and have not in a later one."""
        import duckdb

        then = f"SELECT {USER_ID} FROM {self._answers_sql(home)} WHERE domain IN ({self._domains_sql})"
        with duckdb.connect(config={"threads": 1}) as db:
            query = f"({now.without_consent_sql(home)}) INTERSECT ({then}) EXCEPT ({self.without_consent_sql(home)})"
            return int(db.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0])


def has_consent_sql(home: Path, settings: Mapping[str, Any], user: str) -> str:
    """Return a DuckDB expression: whether a run may translate a user's events by the consent with which it was planned.

    Args:
        home: The project's home.
        settings: Settings in the run's specification.
        user: An expression of the id.

    Raises:
        InputError: The answers were removed.
    """
    state = ConsentState.from_run(settings)
    return "true" if state is None else state.permits_sql(user, state.deciding_users_sql(home))


def ensure_consent_not_withdrawn(settings: Settings, run_id: str, run_settings: Mapping[str, Any]) -> None:
    """Ensure that no user has withdrawn their consent since a run was planned, and that it was required then where it is now.

    Args:
        settings: The project's settings.
        run_id: The run.
        run_settings: Settings in the run's specification.

    Raises:
        InputError: Some have; or the answers of that time were removed; or consent was not required then.
    """
    planned, now = ConsentState.from_run(run_settings), ConsentState.from_settings(settings)
    if now is None or planned == now:
        return
    if new := sorted(set(now.domains) - set(() if planned is None else planned.domains)):
        raise InputError(
            f"consent of the users of {' and '.join(new)} was not required when the run was planned",
            where="[domains] consent",
            next_step="plan its window anew (scalr run), or take its canary back (scalr publication withdraw RUN)",
        ).add_context(run_id=run_id)
    if planned is None:
        return
    if withdrawn := planned.count_withdrawn(settings.home, now):
        raise InputError(
            f"{withdrawn} users have withdrawn their consent since the run was planned",
            where="[domains] consent",
            next_step="plan a new run: scalr run",
        ).add_context(run_id=run_id)


@contextmanager
def open_consent(home: Path) -> Iterator[Path | None]:
    """Lock the consents of a home, and return the current file of answers, or None if there is none yet.

    Its columns are ``domain``, ``user_id``, ``consent`` and ``event_timestamp``, the time of the answer; null: from no event.
    """
    from filelock import FileLock

    folder = home / _FOLDER
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        digest = _read_current(home).get("digest")
        yield None if digest is None else _path(home, digest)


def write_consent(db: Any, home: Path, query: str, domain: str, *, others: Collection[str]) -> None:
    """Write a new state, within `open_consent`; it is present once this returns. The answers are in the temporary table ``all_answers``.

    Args:
        db: DuckDB connection.
        home: The project's home.
        query: Query of all answers, with the columns of `open_consent`.
        domain: Domain whose answers are new.
        others: Other domains that require consent; those with answers in the current state keep them.
    """
    known = {domain, *(name for name in _read_current(home).get("domains", ()) if name in others)}
    db.execute(f"CREATE OR REPLACE TEMP TABLE all_answers AS {query}")
    # Of the answers alone: a later event with the same answer is no new state.
    hashed = f"md5_number_lower(concat_ws('|', domain, consent, {USER_ID}))"
    totals = db.sql(f"SELECT count(*), sum({hashed}::HUGEINT) FROM all_answers").fetchall()[0]
    digest = hashlib.sha256(":".join(map(str, totals)).encode()).hexdigest()[:16]
    with atomic_path(_path(home, digest)) as unfinished:
        order = f"FROM all_answers ORDER BY domain, {USER_ID}"
        db.execute(f"COPY ({order}) TO {quote_literal(str(unfinished))} (FORMAT parquet)")
    write_json(home / _FOLDER / _CURRENT, {"digest": digest, "domains": sorted(known)})


def copy_consent(home: Path, other: Path, state: ConsentState) -> None:
    """Make a state the current one of another home."""
    import shutil

    (other / _FOLDER).mkdir(exist_ok=True)
    with atomic_path(_path(other, state.digest)) as unfinished:
        shutil.copyfile(_path(home, state.digest), unfinished)
    write_json(other / _FOLDER / _CURRENT, {"digest": state.digest, "domains": list(state.domains)})


def superseded_consent_files(home: Path) -> list[Path]:
    """Return the files of all states but the current one, sorted."""
    current = _path(home, _read_current(home).get("digest", ""))
    return sorted(path for path in (home / _FOLDER).glob("*.parquet") if path != current)


def _path(home: Path, digest: str) -> Path:
    return home / _FOLDER / f"{digest}.parquet"


def _read_current(home: Path) -> dict[str, Any]:
    path = home / _FOLDER / _CURRENT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), next_step="remove it, then run: scalr ingest") from error
    return found
