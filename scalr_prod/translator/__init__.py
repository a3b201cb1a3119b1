# SPDX-License-Identifier: Apache-2.0
"""The translator: a mixture of estimators of P(target item | user, source event, history).

Only the names asked for are imported, so that the serving environment, which has torch and numpy alone, can load the module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.contexts import Contexts, Samples
    from scalr_prod.translator.data.event_log import data_end
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice
    from scalr_prod.translator.estimators.protocol import Estimator, ProductEstimator
    from scalr_prod.translator.evaluation import BacktestReport, evaluate
    from scalr_prod.translator.module import TranslatorModule
    from scalr_prod.translator.registry import ItemVocabulary, TranslatorVersion, load_version, resolve_version
    from scalr_prod.translator.training import TrainReport, train

__all__ = [
    "BacktestReport",
    "ContextBatch",
    "Contexts",
    "Estimator",
    "ItemVocabulary",
    "Parameters",
    "ProductEstimator",
    "Samples",
    "TrainReport",
    "TrainingSlice",
    "TranslatorModule",
    "TranslatorVersion",
    "data_end",
    "evaluate",
    "load_version",
    "resolve_version",
    "train",
]

_HOMES = {
    "Batch": "batch",
    "Estimator": "estimators.protocol",
    "Pairs": "pairs",
    "Parameters": "pairs",
    "ProductEstimator": "estimators.protocol",
    "Contexts": "contexts",
    "EvaluationReport": "evaluation",
    "Samples": "contexts",
    "TrainReport": "training",
    "TranslatorModule": "module",
    "TranslatorVersion": "versions",
    "Vocabulary": "versions",
    "data_end": "log",
    "evaluate": "evaluation",
    "load_version": "versions",
    "named_version": "versions",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
