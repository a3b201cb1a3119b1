# SPDX-License-Identifier: Apache-2.0
"""Imports for tasks of local workers, done once in the process that they are forked from.

Importing Feast and the other libraries takes seconds. Forked workers share these imports and their memory, and a lost worker is
replaced quickly. Importing this module only imports; it opens nothing.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__: list[str] = []

_MODULES: Final = (
    "deltalake",
    "distributed.nanny",
    "duckdb",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "scalr_prod.features.retrieval_job",
    "scalr_prod.features.offline_store",
    "scalr_prod.generation.task",
    "scalr_prod.histories.full_build",
    "scalr_prod.lake",
    "scalr_prod.serving.client.factory",
    "scalr_prod.serving.client.triton",
    "scalr_prod.serving.local_server.watchdog",
    "scalr_prod.translator.registry",
    "tritonclient.grpc",
)


@contextmanager
def _skip_unneeded_imports() -> Iterator[None]:
    """Skip torch (150 MB) and Feast's run-time type checks, which cost seconds."""
    import typeguard

    checked, absent = typeguard.typechecked, "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # how Python itself marks what cannot be imported
    typeguard.typechecked = lambda target=None, **_: (lambda same: same) if target is None else target  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = checked
        if absent:
            del sys.modules["torch"]


with _skip_unneeded_imports():
    for _name in _MODULES:
        importlib.import_module(_name)
