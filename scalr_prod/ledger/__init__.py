# SPDX-License-Identifier: Apache-2.0
"""The ledger: runs, partitions, publications, leases, model versions and training sets of a project.

`Ledger` is loaded on first use, so that values such as `RunSpec` can be imported without SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.ledger.dto import (
    DatasetRecord,
    ModelVersion,
    Partition,
    Promotion,
    Publication,
    PublicationStatus,
    Run,
    RunState,
    StateChange,
    Transition,
)
from scalr_prod.ledger.run_spec import STAGING_FOLDERS, RunSpec, check_run_id, run_folder

if TYPE_CHECKING:
    from scalr_prod.ledger.leases import Lease
    from scalr_prod.ledger.store import Ledger

__all__ = [
    "STAGING_FOLDERS",
    "DatasetRecord",
    "Lease",
    "Ledger",
    "ModelVersion",
    "Partition",
    "Promotion",
    "Publication",
    "PublicationStatus",
    "Run",
    "RunSpec",
    "RunState",
    "StateChange",
    "Transition",
    "check_run_id",
    "run_folder",
]


__getattr__ = lazy_exports(__name__, {"Ledger": "store", "Lease": "lease"})
