# SPDX-License-Identifier: Apache-2.0
"""The training set: real and synthetic target events with point-in-time features, as a versioned folder of Parquet.

`build_training_set` makes it; `TrainingSet` reads it into Arrow, pandas, Polars or a torch ``DataLoader``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.training_set.build import build_training_set
    from scalr_prod.training_set.reader import TrainingSet
    from scalr_prod.training_set.report import TrainingSetReport

__all__ = ["TrainingSet", "TrainingSetReport", "build_training_set"]

_HOMES = {"TrainingSet": "reader", "TrainingSetReport": "report", "build_training_set": "build"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
