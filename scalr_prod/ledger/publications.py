# SPDX-License-Identifier: Apache-2.0
"""Publications: the intent is written before the lake's commit, its outcome after; so a crash between the two can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scalr_prod.errors import LedgerError
from scalr_prod.ledger.models import PublicationRow
from scalr_prod.ledger.records import Publication, PublicationStatus, RunState, from_row
from scalr_prod.ledger.runs import Runs
from scalr_prod.ledger.spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

__all__ = ["Publications"]


class Publications(Runs):
    """The part of the ledger that knows what the feature view holds."""

    def intend_publication(
        self,
        run_id: str,
        *,
        base_version: int,
        rows: int,
        replaced: Mapping[str, int],
        canary: Mapping[str, Any] | None = None,
        widens: int | None = None,
    ) -> Publication:
        """Write down that a run is about to be committed; a pending attempt is taken up again, with the new figures.

        Args:
            run_id: A validated run, or one rolled back or replaced since.
            base_version: The table's Delta version.
            rows: How many will be committed.
            replaced: Rows that the commit will remove, by run.
            canary: The users whom it is for, see `scalr_prod.holdout.Canary`; None: everybody.
            widens: The attempt, for fewer users, in whose place it comes.
        """
        with self._writing() as session:
            run = self._row(session, run_id, lock=True)
            spec = RunSpec.from_json(run.spec)
            now = self._now(session)
            last = self._last(session, run_id)
            if last is None or last.status != PublicationStatus.PENDING:
                former = None if last is None else last.status
                attempt = 1 if last is None else last.attempt + 1
                last = PublicationRow(project_id=run.project_id, run_id=run_id, attempt=attempt)
                last.key = f"publish:{run_id}:{attempt}"
                last.status, last.start, last.end = PublicationStatus.PENDING.value, spec.start, spec.end
                self._follow(session, last, former, cause=f"{rows} rows to follow version {base_version}")
            last.base_version, last.rows, last.replaced, last.created_at = base_version, rows, dict(replaced), now
            last.canary, last.widens = None if canary is None else dict(canary), widens
            session.add(last)
            session.flush()
            return _publication(last)

    def record_publication(self, run_id: str, *, attempt: int, delta_version: int, rows: int, cause: str) -> Publication:
        """Confirm a pending publication, and the run with it, in one transaction. Repeating it changes nothing.

        Raises:
            LedgerError: There is no such attempt, or the run cannot become published.
        """
        with self._writing() as session:
            row = self._attempt(session, run_id, attempt)
            if row.status == PublicationStatus.PENDING:
                row.status, row.delta_version, row.rows = PublicationStatus.PUBLISHED.value, delta_version, rows
                row.published_at = self._now(session)
                self._follow(session, row, PublicationStatus.PENDING, cause=cause)
            self._move(session, run_id, RunState.PUBLISHED, cause)
            return _publication(row)

    def record_rollback(self, run_id: str, *, attempt: int, delta_version: int, cause: str) -> Publication:
        """Record that a publication was taken out of the feature view, with the run and its former attempts."""
        with self._writing() as session:
            row = self._attempt(session, run_id, attempt)
            for former in session.scalars(_up_to(row)):
                former.status, former.rollback_version = PublicationStatus.ROLLED_BACK.value, delta_version
                former.rolled_back_at = self._now(session)
                self._follow(session, former, PublicationStatus.PUBLISHED, cause=cause)
            self._move(session, run_id, RunState.ROLLED_BACK, cause)
            return _publication(row)

    def publications(self, run_id: str | None = None) -> list[Publication]:
        """Every publication of the project, or a run's, the oldest first."""
        query = sa.select(PublicationRow).order_by(PublicationRow.id)
        if run_id is not None:
            query = query.where(PublicationRow.run_id == run_id)
        return [_publication(row) for row in self._listed(query)]

    def standing_publications(self) -> list[Publication]:
        """The latest confirmed publication of each run that was not rolled back since, in the order in which they were made."""
        made = [one for one in self.publications() if one.status is not PublicationStatus.PENDING]
        latest = {one.run_id: one for one in sorted(made, key=lambda one: one.attempt)}
        standing = [one for one in latest.values() if one.status is PublicationStatus.PUBLISHED]
        return sorted(standing, key=lambda one: one.delta_version or 0)

    def last_publication(self, run_id: str) -> Publication | None:
        """A run's latest attempt.

        Raises:
            RunNotFound: The project has no such run.
        """
        with self._reading() as session:
            self._row(session, run_id)
            row = self._last(session, run_id)
            return None if row is None else _publication(row)

    def replaced_since(self, publication: Publication) -> list[Publication]:
        """Later publications, by any run, whose windows overlap this one's: what it held there is gone."""
        version = publication.delta_version
        if version is None:
            return []
        query = (
            sa.select(PublicationRow)
            .where(
                PublicationRow.run_id != publication.run_id,
                PublicationRow.delta_version > version,
                PublicationRow.start < publication.end,
                PublicationRow.end > publication.start,
            )
            .order_by(PublicationRow.delta_version)
        )
        return [_publication(row) for row in self._listed(query)]

    def _last(self, session: Session, run_id: str) -> PublicationRow | None:
        query = (
            sa.select(PublicationRow)
            .where(PublicationRow.project_id == self._mine(session), PublicationRow.run_id == run_id)
            .order_by(PublicationRow.attempt.desc())
            .limit(1)
        )
        return session.scalars(query).one_or_none()

    def _follow(self, session: Session, row: PublicationRow, former: str | None, *, cause: str) -> None:
        key = f"{row.run_id}/{row.attempt}"
        self._note(session, "publication", key, former, row.status, cause=cause, run_id=row.run_id)

    def _attempt(self, session: Session, run_id: str, attempt: int) -> PublicationRow:
        query = sa.select(PublicationRow).where(
            PublicationRow.project_id == self._row(session, run_id).project_id,
            PublicationRow.run_id == run_id,
            PublicationRow.attempt == attempt,
        )
        row = session.scalars(query.with_for_update()).one_or_none()
        if row is None:
            raise LedgerError(
                f"no attempt {attempt} to publish it is recorded",
                where=self.address,
                next_step=f"see those that are: scalr runs show {run_id}",
            ).at(run_id=run_id)
        return row


def _up_to(row: PublicationRow) -> sa.Select[PublicationRow]:
    """A run's published attempts up to one."""
    return (
        sa.select(PublicationRow)
        .where(
            PublicationRow.project_id == row.project_id,
            PublicationRow.run_id == row.run_id,
            PublicationRow.attempt <= row.attempt,
            PublicationRow.status == PublicationStatus.PUBLISHED,
        )
        .order_by(PublicationRow.attempt)
    )


def _publication(row: PublicationRow) -> Publication:
    return from_row(row, Publication, status=PublicationStatus(row.status))
