# SPDX-License-Identifier: Apache-2.0
"""Which rows are this project's: several projects may keep their runs in one database, and none sees another's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from scalr_prod.errors import ProjectsMixed
from scalr_prod.ledger.database import Database
from scalr_prod.ledger.models import (
    ProjectRow,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from scalr_prod.identity import Identity

__all__ = ["Projects"]

Row = TypeVar("Row")

logger = logging.getLogger(__name__)

#: No row has this number: what a project that has written nothing yet finds.
_NOBODY = 0
#: Where a session keeps the number that it found or made: one that is rolled back has made none.
_NUMBER = "project"


class Projects(Database):
    """The part of the ledger that keeps projects apart. A project is written down with its first row.

    Args:
        url: The database's SQLAlchemy URL.
        project: The project that asks.

    Raises:
        ProjectsMixed: The ledger knows the project by another lake or home, or the lake or home by another project.
        LedgerError: See `Database`.
    """

    def __init__(self, url: str, project: Identity) -> None:
        super().__init__(url, project)
        self._number: int | None = None
        try:
            with self._reading() as session:
                known = self._find(session)
            if known is not None and self._differs(known):
                with self._writing() as session:
                    known = self._settle(session)
            self._number = known.id if known is not None else None
        except BaseException:
            self.close()
            raise

    def _mine(self, session: Session) -> int:
        """The number of this project's rows, for reading: nobody's while it has none."""
        number = self._number or session.info.get(_NUMBER)
        if number is None:
            number = session.scalar(sa.select(ProjectRow.id).where(ProjectRow.name == self.project.name))
        return _NOBODY if number is None else int(number)

    def _own(self, session: Session) -> int:
        """The number of this project's rows, for writing: its row is made where it has none."""
        number = self._number or session.info.get(_NUMBER)
        if number is None:
            number = session.info[_NUMBER] = self._made(session).id
        return int(number)

    def _listed(self, query: sa.Select[Row]) -> list[Row]:
        """This project's rows among those that a query finds, in its order."""
        with self._reading() as session:
            return list(session.scalars(query.filter_by(project_id=self._mine(session))))

    def _made(self, session: Session) -> ProjectRow:
        project = self.project
        while (row := self._find(session)) is None:
            row = ProjectRow(name=project.name, lake=project.lake, home=project.home, home_id=project.home_id)
            row.created_at = self._now(session)
            try:
                with session.begin_nested():
                    session.add(row)
            except IntegrityError:  # another driver was faster: of this project, or of another on its lake
                continue
            break
        return row

    def _find(self, session: Session) -> ProjectRow | None:
        """This project's row, under whatever name or place it may still stand; None where it has none.

        Raises:
            ProjectsMixed: It, its lake or its home is another's.
        """
        project = self.project
        rows = list(session.scalars(sa.select(ProjectRow).order_by(ProjectRow.id)))
        named = {row.name: row for row in rows if row.name is not None}
        known = named.get(project.name)
        if known is not None and not project.is_at(known.lake, known.home, known.home_id):
            raise self._elsewhere(known)
        former = named.get(project.formerly or "")
        if known is None and former is not None and project.is_at(former.lake, former.home, former.home_id):
            known = former
        if known is None:
            known = next((row for row in rows if row.name is None and self._claimable(row)), None)
        for row in named.values():
            if row is not known and (row.lake == project.lake or project.is_home(row.home, row.home_id)):
                raise self._taken(row)
        return known

    def _settle(self, session: Session) -> ProjectRow | None:
        """Write down what is new of a project that was renamed or moved, or claims what is evidently its own."""
        row = self._find(session)
        if row is None or not self._differs(row):
            return row
        project = self.project
        logger.info(
            "the ledger knew project '%s' (lake %s, home %s) as %s (lake %s, home %s)",
            *(project.name, project.lake, project.home),
            *("rows without a project" if row.name is None else f"'{row.name}'", row.lake, row.home),
        )
        row.name, row.lake, row.home, row.home_id = project.name, project.lake, project.home, project.home_id
        return row

    def _differs(self, row: ProjectRow) -> bool:
        project = self.project
        return row.name != project.name or row.lake != project.lake or not project.is_home(row.home, row.home_id)

    def _claimable(self, row: ProjectRow) -> bool:
        """Whether rows from before projects had names are evidently this project's."""
        return self.project.alone or (row.home is not None and row.home in {self.project.home, self.project.moved_from})

    def _others_with(self, session: Session, query: sa.Select[int]) -> Sequence[ProjectRow]:
        """The projects that a query of project numbers finds, without this one."""
        found = sa.select(ProjectRow).where(ProjectRow.id.in_(query), ProjectRow.id != self._mine(session))
        return session.scalars(found.order_by(ProjectRow.id)).all()

    @staticmethod
    def _claim(rows: Sequence[ProjectRow]) -> str | None:
        """How rows from before projects had names become a project's that was moved since."""
        homes = [row.home for row in rows if row.name is None and row.home]
        return f'if this project was at that home before, set [project] moved_from = "{homes[0]}"' if homes else None

    @staticmethod
    def _called(row: ProjectRow) -> str:
        if row.name is not None:
            return f"project '{row.name}' (lake {row.lake})"
        return f"a project that no name is known of (home {row.home or 'unknown'})"

    def _elsewhere(self, row: ProjectRow) -> ProjectsMixed:
        project = self.project
        if row.lake != project.lake:
            found = f"project '{row.name}' is on lake {row.lake}; the settings name lake {project.lake} for it"
            known = row.lake
        else:
            found = (
                f"project '{row.name}' is at home {row.home}; the settings name home {project.home} for it (lake {row.lake})"
            )
            known = row.home
        return ProjectsMixed(
            found,
            where=self.address,
            next_step=f'give one of the two another name, with [project] name and formerly = "{row.name}"; if it is the same project, '
            f'and was moved, set [project] moved_from = "{known}"',
        )

    def _taken(self, row: ProjectRow) -> ProjectsMixed:
        place = f"lake {row.lake}" if row.lake == self.project.lake else f"home {row.home}"
        return ProjectsMixed(
            f"{place} is that of project '{row.name}'; the settings name project '{self.project.name}'",
            where=self.address,
            next_step=f"name another [project] home and lake for '{self.project.name}'; if it is the same project under a new "
            f'name, set [project] formerly = "{row.name}"',
        )
