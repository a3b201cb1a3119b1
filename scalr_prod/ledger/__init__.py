# SPDX-License-Identifier: Apache-2.0
"""The ledger: runs, partitions, publications, leases, model versions and training sets of a project.

`Ledger` is loaded on first use, so that values such as `RunSpec` can be imported without SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.ledger.database import with_psycopg_driver
    from scalr_prod.ledger.dto import (
        DatasetRecord,
        DatasetUse,
        ModelVersion,
        Partition,
        Promotion,
        Publication,
        PublicationStatus,
        Run,
        RunState,
    )
    from scalr_prod.ledger.leases import Lease
    from scalr_prod.ledger.run_spec import STAGING_FOLDERS, RunSpec, RunWindow, TranslatorPin, check_run_id, run_folder
    from scalr_prod.ledger.store import Ledger

__all__ = [
    "STAGING_FOLDERS",
    "DatasetRecord",
    "DatasetUse",
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
    "RunWindow",
    "TranslatorPin",
    "check_run_id",
    "run_folder",
    "with_psycopg_driver",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DatasetRecord": "dto",
        "DatasetUse": "dto",
        "Lease": "leases",
        "Ledger": "store",
        "ModelVersion": "dto",
        "Partition": "dto",
        "Promotion": "dto",
        "Publication": "dto",
        "PublicationStatus": "dto",
        "Run": "dto",
        "RunSpec": "run_spec",
        "RunState": "dto",
        "RunWindow": "run_spec",
        "STAGING_FOLDERS": "run_spec",
        "TranslatorPin": "run_spec",
        "check_run_id": "run_spec",
        "run_folder": "run_spec",
        "with_psycopg_driver": "database",
    },
)
