# SPDX-License-Identifier: Apache-2.0
"""Append-only log of all state changes, with time, cause and actor."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from scalr_prod.ledger.dto import StateChange, record_from_row
from scalr_prod.ledger.orm_tables import TransitionRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.tenancy import ProjectScope


ChangeSubject = Literal["run", "partition", "publication", "lease", "model", "dataset", "forgotten", "experiment"]


class ChangeLog:
    """The append-only change log of the ledger."""

    def __init__(self, scope: ProjectScope) -> None:
        self._scope = scope
        self._database = scope.database
        self.address = scope.database.address

    def find(self, run_id: str | None = None, *, subject: ChangeSubject | None = None) -> list[StateChange]:
        """List the changes, oldest first.

        Args:
            run_id: Only of this run: its states, partitions, publications and lease takeovers.
            subject: Only of this kind.
        """
        query = sa.select(TransitionRow).order_by(TransitionRow.id)
        if run_id is not None:
            query = query.where(TransitionRow.run_id == run_id)
        if subject is not None:
            query = query.where(TransitionRow.subject == subject)
        return [record_from_row(row, StateChange) for row in self._scope.select_own(query)]

    def count_by_target_state(self, subject: ChangeSubject) -> dict[str, int]:
        """Count the changes of a kind by target state, in the database."""
        query = sa.select(TransitionRow.to_state, sa.func.count()).where(TransitionRow.subject == subject)
        with self._database.read_session() as session:
            query = query.where(TransitionRow.project_id == self._scope.project_id(session)).group_by(TransitionRow.to_state)
            return {row[0]: row[1] for row in session.execute(query)}

    def find_hosts(self, *, days: int) -> list[str]:
        """List the names of the machines that made changes within the last days."""
        with self._database.read_session() as session:
            query = (
                sa.select(TransitionRow.actor)
                .where(TransitionRow.project_id == self._scope.project_id(session))
                .where(TransitionRow.at >= self._database.now(session) - timedelta(days=days))
                .distinct()
            )
            return sorted({actor.rpartition(":")[0] for actor in session.scalars(query) if actor})

    def record_erasures(self, causes: Mapping[str, str]) -> None:
        """Record in one transaction that ids were erased and what was removed, without anything that identifies a user.

        Args:
            causes: Keyed hash of an id → counts of what was removed, and the training sets that held the user's rows.
        """
        with self._database.write_session() as session:
            for digest, cause in causes.items():
                self.add(session, "forgotten", digest, None, "forgotten", cause=cause)

    def record_segment(self, key: str, state: str, *, cause: str) -> None:
        """Record what an experiment found of a segment of users, or what follows from it; nothing if that was recorded before.

        Args:
            key: Segment and experiment.
            state: ``harmed`` or ``dropped``.
            cause: What was measured.
        """
        former = [change.to_state for change in self.find(subject="experiment") if change.key == key]
        if state not in former:
            with self._database.write_session() as session:
                self.add(session, "experiment", key, former[-1] if former else None, state, cause=cause)

    def add(
        self,
        session: Session,
        subject: ChangeSubject,
        key: str,
        from_state: str | None,
        to_state: str,
        *,
        cause: str,
        run_id: str | None = None,
    ) -> None:
        """Add a change to the log, in the transaction that makes it."""
        session.add(
            TransitionRow(
                project_id=self._scope.ensure_project_id(session),
                subject=subject,
                key=key,
                run_id=run_id,
                from_state=from_state,
                to_state=to_state,
                at=self._database.now(session),
                cause=cause,
                actor=f"{socket.gethostname()}:{os.getpid()}",
            )
        )
