# SPDX-License-Identifier: Apache-2.0
"""Every change of state, with its time, its cause and who made it: of runs, partitions, publications, leases, models, data sets."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from scalr_prod.ledger.models import TransitionRow
from scalr_prod.ledger.projects import Projects
from scalr_prod.ledger.records import Change, from_row

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["History", "Subject"]

Subject = Literal["run", "partition", "publication", "lease", "model", "dataset", "forgotten"]


class History(Projects):
    """The part of the ledger that is only ever added to."""

    def history(self, run_id: str | None = None, *, subject: Subject | None = None) -> list[Change]:
        """What changed, the oldest first.

        Args:
            run_id: Of this run only: its own states, its partitions, publications and takeovers.
            subject: Of this kind only.
        """
        query = sa.select(TransitionRow).order_by(TransitionRow.id)
        if run_id is not None:
            query = query.where(TransitionRow.run_id == run_id)
        if subject is not None:
            query = query.where(TransitionRow.subject == subject)
        return [from_row(row, Change) for row in self._listed(query)]

    def changes_to(self, subject: Subject) -> dict[str, int]:
        """How often one of a kind went to a state, by that state; counted by the database, however long the history is."""
        query = sa.select(TransitionRow.to_state, sa.func.count()).where(TransitionRow.subject == subject)
        with self._reading() as session:
            query = query.where(TransitionRow.project_id == self._mine(session)).group_by(TransitionRow.to_state)
            return {row[0]: row[1] for row in session.execute(query)}

    def record_forgotten(self, digest: str, *, cause: str) -> None:
        """Write down that a user was forgotten, and what was removed; nothing by which the user could be told.

        Args:
            digest: Keyed hash of the user's id.
            cause: What was removed, in counts.
        """
        with self._writing() as session:
            self._note(session, "forgotten", digest, None, "forgotten", cause=cause)

    def _note(
        self,
        session: Session,
        subject: Subject,
        key: str,
        from_state: str | None,
        to_state: str,
        *,
        cause: str,
        run_id: str | None = None,
    ) -> None:
        """Add a change to the transaction that makes it."""
        session.add(
            TransitionRow(
                project_id=self._own(session),
                subject=subject,
                key=key,
                run_id=run_id,
                from_state=from_state,
                to_state=to_state,
                at=self._now(session),
                cause=cause,
                actor=f"{socket.gethostname()}:{os.getpid()}",
            )
        )
