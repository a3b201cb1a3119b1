# SPDX-License-Identifier: Apache-2.0
"""The `Ledger`: one repository for each kind of record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from scalr_prod.ledger.change_log import ChangeLog
from scalr_prod.ledger.database import LedgerDatabase, parse_url
from scalr_prod.ledger.leases import LeaseRepository
from scalr_prod.ledger.publications import PublicationRepository
from scalr_prod.ledger.runs import RunRepository
from scalr_prod.ledger.tenancy import ProjectScope
from scalr_prod.ledger.versions import DatasetRepository, ModelRepository
from scalr_prod.workspace import ProjectIdentity, claim_home

if TYPE_CHECKING:
    from types import TracebackType

    from scalr_prod.config import Settings


class Ledger:
    """The records of a project, in SQLite or PostgreSQL.

    >>> with Ledger.open(settings) as ledger:  # doctest: +SKIP
    ...     run = ledger.runs.begin(spec)
    ...     ledger.runs.set_state(run.run_id, "generating", cause="scalr generate")

    Attributes:
        runs: Runs, their states and partitions.
        leases: Leases on runs.
        publications: Attempts to publish a run.
        models: Versions of the translator and their promotions.
        datasets: Versions of training sets, and the models that were trained on them.
        changes: The append-only log of all changes.
        database: The connected database.
        project: The project whose records these are.
    """

    def __init__(self, url: str, project: ProjectIdentity) -> None:
        self.project = project
        self.database = LedgerDatabase(url)
        try:
            scope = ProjectScope(self.database, project)
        except BaseException:
            self.database.close()
            raise
        self.changes = ChangeLog(scope)
        self.runs = RunRepository(scope, self.changes)
        self.leases = LeaseRepository(scope, self.runs, self.changes)
        self.publications = PublicationRepository(scope, self.runs, self.changes)
        self.models = ModelRepository(scope, self.changes)
        self.datasets = DatasetRepository(scope, self.changes)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the project's ledger (``[ledger] url``, or SQLite below home), migrated to the current schema.

        Raises:
            LedgerError: It cannot be reached, its driver is missing, or its schema is newer than this package, or older than 0.1.0.
            ProjectsMixed: Home, lake or name belong to another project.
            ForeignFiles: The home holds files that this package did not make.
            LakeError: The home cannot be created or written to.
        """
        claim_home(settings)
        url = parse_url(settings.ledger_url)
        sqlite_file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        return cls(settings.ledger_url, ProjectIdentity.from_settings(settings, sqlite_file))

    @property
    def address(self) -> str:
        """The database's address without its password."""
        return self.database.address

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
