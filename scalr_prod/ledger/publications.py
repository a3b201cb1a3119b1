# SPDX-License-Identifier: Apache-2.0
"""Publications: the intent is recorded before the lake's commit and the outcome after it, so that a crash in between is detected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scalr_prod.errors import LedgerError
from scalr_prod.ledger.dto import Publication, PublicationStatus, RunState, record_from_row
from scalr_prod.ledger.orm_tables import PublicationRow
from scalr_prod.ledger.run_spec import RunSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.change_log import ChangeLog
    from scalr_prod.ledger.runs import RunRepository
    from scalr_prod.ledger.tenancy import ProjectScope


class PublicationRepository:
    """Publications in the ledger: what the feature view holds."""

    def __init__(self, scope: ProjectScope, runs: RunRepository, changes: ChangeLog) -> None:
        self._scope = scope
        self._database = scope.database
        self._runs = runs
        self._changes = changes

    def record_intent(
        self,
        run_id: str,
        *,
        base_version: int,
        rows: int,
        replaced: Mapping[str, int],
        canary: Mapping[str, Any] | None = None,
        widens: int | None = None,
    ) -> Publication:
        """Record that a run is about to be committed; a pending attempt is reused with the new values.

        Args:
            run_id: A validated run, or one that was rolled back or replaced since.
            base_version: The table's Delta version.
            rows: Number of rows to be committed.
            replaced: Rows that the commit will remove, by run.
            canary: The users that it is for, see `scalr_prod.workspace.user_assignment.Canary`; None: everybody.
            widens: The earlier attempt, for fewer users, that this one replaces.
        """
        with self._database.write_session() as session:
            run = self._runs.load_row(session, run_id, lock=True)
            spec = RunSpec.from_json(run.spec)
            now = self._database.now(session)
            last = self._last_attempt(session, run_id)
            if last is None or last.status != PublicationStatus.PENDING:
                former = None if last is None else last.status
                attempt = 1 if last is None else last.attempt + 1
                last = PublicationRow(project_id=run.project_id, run_id=run_id, attempt=attempt)
                last.key = f"publish:{run_id}:{attempt}"
                last.status, last.start, last.end = PublicationStatus.PENDING.value, spec.start, spec.end
                self._add_attempt_change(session, last, former, cause=f"{rows} rows to follow version {base_version}")
            last.base_version, last.rows, last.replaced, last.created_at = base_version, rows, dict(replaced), now
            last.canary, last.widens = None if canary is None else dict(canary), widens
            session.add(last)
            session.flush()
            return _to_publication(last)

    def confirm(self, run_id: str, *, attempt: int, delta_version: int, rows: int, cause: str) -> Publication:
        """Confirm a pending publication and its run in one transaction; idempotent.

        Raises:
            LedgerError: There is no such attempt, or the run cannot become published.
        """
        with self._database.write_session() as session:
            row = self._attempt(session, run_id, attempt)
            if row.status == PublicationStatus.PENDING:
                row.status, row.delta_version, row.rows = PublicationStatus.PUBLISHED.value, delta_version, rows
                row.published_at = self._database.now(session)
                self._add_attempt_change(session, row, PublicationStatus.PENDING, cause=cause)
            self._runs.move(session, run_id, RunState.PUBLISHED, cause)
            return _to_publication(row)

    def record_rollback(self, run_id: str, *, attempt: int, delta_version: int, cause: str) -> Publication:
        """Record that a publication, with its run and earlier attempts, was removed from the feature view."""
        with self._database.write_session() as session:
            row = self._attempt(session, run_id, attempt)
            for former in session.scalars(_published_up_to(row)):
                former.status, former.rollback_version = PublicationStatus.ROLLED_BACK.value, delta_version
                former.rolled_back_at = self._database.now(session)
                self._add_attempt_change(session, former, PublicationStatus.PUBLISHED, cause=cause)
            self._runs.move(session, run_id, RunState.ROLLED_BACK, cause)
            return _to_publication(row)

    def find(self, run_id: str | None = None) -> list[Publication]:
        """List the publications of the project, or of a run, oldest first."""
        query = sa.select(PublicationRow).order_by(PublicationRow.id)
        if run_id is not None:
            query = query.where(PublicationRow.run_id == run_id)
        return [_to_publication(row) for row in self._scope.select_own(query)]

    def live(self) -> list[Publication]:
        """List the latest confirmed publication of each run that was not rolled back since, in commit order."""
        confirmed = [entry for entry in self.find() if entry.status is not PublicationStatus.PENDING]
        latest = {entry.run_id: entry for entry in sorted(confirmed, key=lambda entry: entry.attempt)}
        live = [entry for entry in latest.values() if entry.status is PublicationStatus.PUBLISHED]
        return sorted(live, key=lambda entry: entry.delta_version or 0)

    def last(self, run_id: str) -> Publication | None:
        """Return a run's latest attempt.

        Raises:
            RunNotFound: The project has no such run.
        """
        with self._database.read_session() as session:
            self._runs.load_row(session, run_id)
            row = self._last_attempt(session, run_id)
            return None if row is None else _to_publication(row)

    def superseding(self, publication: Publication) -> list[Publication]:
        """List later publications of other runs with overlapping windows: they replaced this one's rows there."""
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
        return [_to_publication(row) for row in self._scope.select_own(query)]

    def _last_attempt(self, session: Session, run_id: str) -> PublicationRow | None:
        query = (
            sa.select(PublicationRow)
            .where(PublicationRow.project_id == self._scope.project_id(session), PublicationRow.run_id == run_id)
            .order_by(PublicationRow.attempt.desc())
            .limit(1)
        )
        return session.scalars(query).one_or_none()

    def _add_attempt_change(self, session: Session, row: PublicationRow, former: str | None, *, cause: str) -> None:
        key = f"{row.run_id}/{row.attempt}"
        self._changes.add(session, "publication", key, former, row.status, cause=cause, run_id=row.run_id)

    def _attempt(self, session: Session, run_id: str, attempt: int) -> PublicationRow:
        query = sa.select(PublicationRow).where(
            PublicationRow.project_id == self._runs.load_row(session, run_id).project_id,
            PublicationRow.run_id == run_id,
            PublicationRow.attempt == attempt,
        )
        row = session.scalars(query.with_for_update()).one_or_none()
        if row is None:
            raise LedgerError(
                f"no attempt {attempt} to publish it is recorded",
                where=self._database.address,
                next_step=f"see those that are: scalr runs show {run_id}",
            ).add_context(run_id=run_id)
        return row


def _published_up_to(row: PublicationRow) -> sa.Select[PublicationRow]:
    """Select a run's published attempts up to this one."""
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


def _to_publication(row: PublicationRow) -> Publication:
    return record_from_row(row, Publication, status=PublicationStatus(row.status))
