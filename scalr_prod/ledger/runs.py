# SPDX-License-Identifier: Apache-2.0
"""Runs, their states and their partitions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from scalr_prod.errors import LedgerError, RunNotFound, RunOfOtherProject, ScalrError
from scalr_prod.ledger.database import insert_or_get
from scalr_prod.ledger.dto import ALLOWED_TRANSITIONS, Partition, Run, RunState, record_from_row
from scalr_prod.ledger.orm_tables import PartitionRow, RunRow
from scalr_prod.ledger.run_spec import RunSpec, check_run_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.change_log import ChangeLog
    from scalr_prod.ledger.tenancy import ProjectScope


class RunRepository:
    """Runs and their partitions in the ledger."""

    def __init__(self, scope: ProjectScope, changes: ChangeLog) -> None:
        self._scope = scope
        self._database = scope.database
        self._changes = changes

    def begin(self, spec: RunSpec, *, cause: str = "planned") -> Run:
        """Record a run as planned, or return the existing one: the same spec is always the same run.

        Raises:
            LedgerError: A run with another spec has this id.
        """
        check_run_id(spec.run_id)
        content = spec.to_json()
        with self._database.write_session() as session:
            created = False
            row = session.get(RunRow, (self._scope.ensure_project_id(session), spec.run_id))
            if row is None:
                row, created = self._insert_run(session, spec.run_id, content, cause)
            if RunSpec.from_json(row.spec) != spec:
                differing = sorted(key for key in content if content[key] != row.spec.get(key))
                raise LedgerError(
                    f"another run has this id; they differ in {', '.join(differing)}",
                    where=self._database.address,
                    next_step=f"see it with: scalr runs show {spec.run_id}",
                ).add_context(run_id=spec.run_id)
            return self._to_run(row, created=created)

    def get(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            RunNotFound: There is none with this id.
            RunOfOtherProject: It belongs to another project.
        """
        with self._database.read_session() as session:
            return self._to_run(self.load_row(session, run_id))

    def find(self, *, state: RunState | str | None = None, limit: int | None = None) -> list[Run]:
        """List the runs of the project, newest first."""
        query = sa.select(RunRow).order_by(RunRow.created_at.desc(), RunRow.run_id)
        if state is not None:
            query = query.where(RunRow.state == RunState(state).value)
        if limit is not None:
            query = query.limit(limit)
        return [self._to_run(row) for row in self._scope.select_own(query)]

    def count_by_state(self) -> dict[RunState, int]:
        """Count the runs of the project by state, in the database."""
        query = sa.select(RunRow.state, sa.func.count())
        with self._database.read_session() as session:
            query = query.where(RunRow.project_id == self._scope.project_id(session)).group_by(RunRow.state)
            return {RunState(state): count for state, count in session.execute(query)}

    def set_state(self, run_id: str, state: RunState | str, *, cause: str) -> Run:
        """Move a run to a state, and record when and why; no change if it is in this state already.

        Raises:
            RunNotFound: There is no such run.
            LedgerError: The transition is not allowed.
        """
        with self._database.write_session() as session:
            return self.move(session, run_id, RunState(state), cause)

    def record_partitions(
        self, run_id: str, manifests: Iterable[tuple[int, Mapping[str, Any]]], *, partitions: int | None = None
    ) -> None:
        """Record what partitions' tasks reported, in place of earlier reports, in one transaction.

        Args:
            run_id: The run.
            manifests: Partition numbers with plain JSON values, among them (all optional) ``state`` (default ``done``),
                ``rows``, ``sha256``, ``path``.
            partitions: Number of partitions that the run has now; records of higher partitions are deleted.
        """
        with self._database.write_session() as session:
            run = self.load_row(session, run_id)
            now = self._database.now(session)
            if partitions is not None:
                surplus = (*_partitions_of_run(run), PartitionRow.partition >= partitions)
                session.execute(sa.delete(PartitionRow).where(*surplus))
            for partition, manifest in manifests:
                content = json.loads(json.dumps(dict(manifest), default=str))
                self._merge_partition(session, run, int(partition), content, now)

    def _merge_partition(self, session: Session, run: RunRow, partition: int, content: dict[str, Any], now: datetime) -> None:
        run_id = run.run_id
        previous = session.get(PartitionRow, (run.project_id, run_id, partition))
        former = None if previous is None else previous.state
        state, sha256 = str(content.get("state", "done")), content.get("sha256")
        if previous is None or (previous.state, previous.sha256) != (state, sha256):
            cause = f"{int(content.get('rows', 0))} rows staged" + ("" if previous is None else ", made again")
            self._changes.add(session, "partition", f"{run_id}/{partition}", former, state, cause=cause, run_id=run_id)
        session.merge(
            PartitionRow(
                project_id=run.project_id,
                run_id=run_id,
                partition=partition,
                state=state,
                rows=int(content.get("rows", 0)),
                sha256=sha256,
                path=content.get("path"),
                updated_at=now,
                manifest=content,
            )
        )

    def partitions(self, run_id: str) -> list[Partition]:
        """List the run's recorded partitions, by number."""
        with self._database.read_session() as session:
            run = self.load_row(session, run_id)
            query = sa.select(PartitionRow).where(*_partitions_of_run(run)).order_by(PartitionRow.partition)
            return [record_from_row(row, Partition) for row in session.scalars(query)]

    def _insert_run(self, session: Session, run_id: str, content: dict[str, Any], cause: str) -> tuple[RunRow, bool]:
        now = self._database.now(session)
        row = RunRow(
            project_id=self._scope.ensure_project_id(session),
            run_id=run_id,
            spec=content,
            state=RunState.PLANNED.value,
            created_at=now,
            updated_at=now,
        )
        row, created = insert_or_get(session, row)
        if created:
            self._changes.add(session, "run", run_id, None, RunState.PLANNED.value, cause=cause, run_id=run_id)
        return row, created

    def move(self, session: Session, run_id: str, state: RunState, cause: str) -> Run:
        """Move a run to a state, in an open transaction. See `set_state`."""
        row = self.load_row(session, run_id, lock=True)
        current = RunState(row.state)
        if current is not state:
            if state not in ALLOWED_TRANSITIONS[current]:
                allowed = ", ".join(sorted(ALLOWED_TRANSITIONS[current]))
                raise LedgerError(
                    f"a {current.value} run cannot become {state.value}; from {current.value} it can become: {allowed}",
                    where=self._database.address,
                    next_step=f"see how it came there: scalr runs show {run_id}",
                ).add_context(run_id=run_id)
            self._changes.add(session, "run", run_id, current.value, state.value, cause=cause, run_id=run_id)
            row.state, row.updated_at = state.value, self._database.now(session)
        return self._to_run(row)

    def load_row(self, session: Session, run_id: str, *, lock: bool = False) -> RunRow:
        """Load a run's row in an open transaction, and lock it until the end of the transaction if ``lock``.

        Raises:
            RunNotFound: There is none with this id.
            RunOfOtherProject: It belongs to another project.
        """
        key = (self._scope.project_id(session), check_run_id(run_id))
        row = session.get(RunRow, key, with_for_update=True if lock else None)
        if row is None:
            raise self._run_not_found(session, run_id).add_context(run_id=run_id)
        return row

    def _run_not_found(self, session: Session, run_id: str) -> ScalrError:
        others = self._scope.other_projects_with(session, sa.select(RunRow.project_id).where(RunRow.run_id == run_id))
        if not others:
            return RunNotFound(
                "there is no run with this id", where=self._database.address, next_step="list the runs: scalr runs list"
            )
        owners = " and of ".join(self._scope.describe_project(row) for row in others)
        return RunOfOtherProject(
            f"this is a run of {owners}; the settings name project '{self._scope.project.name}'",
            where=self._database.address,
            next_step="name that project's scalr.toml with --config; list this one's: scalr runs list",
        )

    def _to_run(self, row: RunRow, *, created: bool = False) -> Run:
        spec, state = RunSpec.from_json(row.spec), RunState(row.state)
        return record_from_row(row, Run, project=self._scope.project.name, spec=spec, state=state, created=created)


def _partitions_of_run(run: RunRow) -> tuple[sa.ColumnElement[bool], ...]:
    return PartitionRow.project_id == run.project_id, PartitionRow.run_id == run.run_id
