# SPDX-License-Identifier: Apache-2.0
"""Imports for tasks of local workers, done once in the process from which they are forked.

Importing Feast and the other libraries takes seconds. Forked workers share these imports and their memory, and a lost worker is
replaced quickly. Importing this module only imports; it opens nothing.
"""

from __future__ import annotations

import importlib
from typing import Final

_MODULES: Final = (
    "deltalake",
    "distributed.nanny",
    "duckdb",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "scalr_prod.features.offline_store",
    "scalr_prod.features.store_snapshot",
    "scalr_prod.generation.task",
    "scalr_prod.histories.full_build",
    "scalr_prod.ingest.append",
    "scalr_prod.ingest.staging",
    "scalr_prod.lake",
    "scalr_prod.serving.client.factory",
    "scalr_prod.serving.client.triton",
    "scalr_prod.serving.local_server.watchdog",
    "scalr_prod.training_set.features",
    "scalr_prod.training_set.spine_tasks",
    "scalr_prod.translator.registry",
    "tritonclient.grpc",
)


for _name in _MODULES:
    importlib.import_module(_name)
