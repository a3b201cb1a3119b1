# SPDX-License-Identifier: Apache-2.0
"""The `Ledger`, composed of its parts."""

from __future__ import annotations

from scalr_prod.ledger.leases import LeaseStore
from scalr_prod.ledger.publications import PublicationStore
from scalr_prod.ledger.versions import ArtifactStore

__all__ = ["Ledger"]


class Ledger(LeaseStore, PublicationStore, ArtifactStore):
    """Runs, leases, publications, model versions and training sets of a project, in SQLite or PostgreSQL.

    >>> with Ledger.open(settings) as ledger:  # doctest: +SKIP
    ...     run = ledger.begin_run(spec)
    ...     ledger.set_state(run.run_id, "generating", cause="scalr generate")
    """
