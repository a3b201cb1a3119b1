# SPDX-License-Identifier: Apache-2.0
"""Tenancy: several projects may share one database, and each sees only its own rows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from scalr_prod.errors import ProjectsMixed
from scalr_prod.ledger.orm_tables import ProjectRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.database import LedgerDatabase
    from scalr_prod.workspace import ProjectIdentity


Row = TypeVar("Row")

logger = logging.getLogger(__name__)

#: An id that no row has: used by a project that has not written anything yet.
_NO_PROJECT = 0
#: Key under which a session keeps the project's id: a rolled-back session must not leave one behind.
_PROJECT_KEY = "project"


class ProjectScope:
    """One project's rows in a database. A project is recorded with its first row.

    Args:
        database: The database.
        project: The project.

    Raises:
        ProjectsMixed: The ledger records another lake or home for the project, or the lake or home for another project.
        LedgerError: The database cannot be reached.
    """

    def __init__(self, database: LedgerDatabase, project: ProjectIdentity) -> None:
        self.database = database
        self.project = project
        with database.read_session() as session:
            known = self._find_project(session)
        if known is not None and self._differs(known):
            with database.write_session() as session:
                known = self._update_project(session)
        self._known_project_id = known.id if known is not None else None

    def project_id(self, session: Session) -> int:
        """Return the project's id for reading; an id without rows if the project is not recorded yet."""
        project_id = self._known_project_id or session.info.get(_PROJECT_KEY)
        if project_id is None:
            project_id = session.scalar(sa.select(ProjectRow.id).where(ProjectRow.name == self.project.name))
        return _NO_PROJECT if project_id is None else int(project_id)

    def ensure_project_id(self, session: Session) -> int:
        """Return the project's id for writing; records the project if necessary."""
        project_id = self._known_project_id or session.info.get(_PROJECT_KEY)
        if project_id is None:
            project_id = session.info[_PROJECT_KEY] = self._get_or_create_project(session).id
        return int(project_id)

    def select_own(self, query: sa.Select[Row]) -> list[Row]:
        """Run a query restricted to this project's rows."""
        with self.database.read_session() as session:
            return list(session.scalars(query.filter_by(project_id=self.project_id(session))))

    def _get_or_create_project(self, session: Session) -> ProjectRow:
        project = self.project
        while (row := self._find_project(session)) is None:
            row = ProjectRow(name=project.name, lake=project.lake, home=project.home, home_id=project.home_id)
            row.created_at = self.database.now(session)
            try:
                with session.begin_nested():
                    session.add(row)
            except IntegrityError:  # another driver was faster, of this project or of another on the same lake
                continue
            break
        return row

    def _find_project(self, session: Session) -> ProjectRow | None:
        """Find the project's row, also under an earlier name or location, or None if it has none.

        Raises:
            ProjectsMixed: The name, the lake or the home belongs to another project.
        """
        project = self.project
        rows = session.scalars(sa.select(ProjectRow).where(ProjectRow.name.is_not(None)).order_by(ProjectRow.id))
        named = {row.name: row for row in rows}
        known = named.get(project.name)
        if known is not None and not project.is_located_at(known.lake, known.home, known.home_id):
            raise self._moved_error(known)
        former = named.get(project.formerly or "")
        if known is None and former is not None and project.is_located_at(former.lake, former.home, former.home_id):
            known = former
        for row in named.values():
            if row is not known and (row.lake == project.lake or project.is_home(row.home, row.home_id)):
                raise self._taken_error(row)
        return known

    def _update_project(self, session: Session) -> ProjectRow | None:
        """Update the row of a project that was renamed or moved."""
        row = self._find_project(session)
        if row is None or not self._differs(row):
            return row
        project = self.project
        logger.info(
            "the ledger knew project '%s' (lake %s, home %s) as '%s' (lake %s, home %s)",
            *(project.name, project.lake, project.home),
            *(row.name, row.lake, row.home),
        )
        row.name, row.lake, row.home, row.home_id = project.name, project.lake, project.home, project.home_id
        return row

    def _differs(self, row: ProjectRow) -> bool:
        project = self.project
        return row.name != project.name or row.lake != project.lake or not project.is_home(row.home, row.home_id)

    def other_projects_with(self, session: Session, query: sa.Select[int]) -> Sequence[ProjectRow]:
        """Return the other projects among those that a query of project ids selects."""
        others = sa.select(ProjectRow).where(ProjectRow.id.in_(query), ProjectRow.id != self.project_id(session))
        return session.scalars(others.order_by(ProjectRow.id)).all()

    @staticmethod
    def describe_project(row: ProjectRow) -> str:
        """Name a project and its place for a message."""
        return f"project '{row.name}' (lake {row.lake})"

    def _moved_error(self, row: ProjectRow) -> ProjectsMixed:
        project = self.project
        if row.lake != project.lake:
            finding = f"project '{row.name}' is on lake {row.lake}; the settings name lake {project.lake} for it"
            known = row.lake
        else:
            finding = (
                f"project '{row.name}' is at home {row.home}; the settings name home {project.home} for it (lake {row.lake})"
            )
            known = row.home
        return ProjectsMixed(
            finding,
            where=self.database.address,
            next_step=f'if these are two projects, rename one: [project] name, and formerly = "{row.name}"; if it is one project that was '
            f'moved, set [project] moved_from = "{known}"',
        )

    def _taken_error(self, row: ProjectRow) -> ProjectsMixed:
        place = f"lake {row.lake}" if row.lake == self.project.lake else f"home {row.home}"
        return ProjectsMixed(
            f"{place} belongs to project '{row.name}'; the settings name project '{self.project.name}'",
            where=self.database.address,
            next_step=f"name another [project] home and lake for '{self.project.name}'; if it is the same project under a new "
            f'name, set [project] formerly = "{row.name}"',
        )
