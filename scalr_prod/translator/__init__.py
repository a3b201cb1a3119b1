# SPDX-License-Identifier: Apache-2.0
"""The translator: a mixture of estimators of P(target item | user, source event, history).

Where to start reading:

- `training` is the entry point of training, `trainer` holds its steps, `estimators` what is fitted, `calibration` the mixture's weights.
- `module` answers requests; draws are made in `sampling`, and by the compiled executors of `kernels`.
- `registry` stores versions, `evaluation` and `challenger_test` measure them, `attribution` explains a probability.

The weight λ of synthetic events in a training set is not part of the translator: see `scalr_prod.evaluation` and `scalr_prod.training_set`.

Names are imported on first use, so that the serving environment, which has only torch and numpy, can load the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.translator.attribution import Attribution, attribute
    from scalr_prod.translator.challenger_test import compare_versions
    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS, NO_ITEM, PADDING, ConsumedItems, Contexts, Samples
    from scalr_prod.translator.data.domain_log import DomainLog, pair_log, with_first_items
    from scalr_prod.translator.data.event_log import EventLog, data_end, target_weighting
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice
    from scalr_prod.translator.devices import resolve_device
    from scalr_prod.translator.estimators.protocol import Estimator, ProductEstimator
    from scalr_prod.translator.evaluation import BacktestReport, evaluate
    from scalr_prod.translator.information_gain import OwnOverOthers
    from scalr_prod.translator.module import TranslatorModule
    from scalr_prod.translator.quick_translator import QuickTranslator, quick_settings
    from scalr_prod.translator.registry import (
        ItemVocabulary,
        TranslatorVersion,
        load_version,
        models_dir,
        record_version,
        resolve_version,
        version_numbers,
    )
    from scalr_prod.translator.reliability import ReliabilityClass
    from scalr_prod.translator.requests import MAX_ABS_TIME_US, RequestBounds, check_sampling
    from scalr_prod.translator.retraining import find_kept_version, retraining_reason
    from scalr_prod.translator.train_report import TrainReport
    from scalr_prod.translator.trainer import time_quantile
    from scalr_prod.translator.training import train
    from scalr_prod.translator.training_budget import LogCounts, estimate_training_minutes
    from scalr_prod.translator.worker_pool import check_cancelled, open_worker_pool

__all__ = [
    "ALL_USERS",
    "COLD_USERS",
    "MAX_ABS_TIME_US",
    "NO_ITEM",
    "PADDING",
    "Attribution",
    "BacktestReport",
    "ConsumedItems",
    "ContextBatch",
    "Contexts",
    "DomainLog",
    "Estimator",
    "EventLog",
    "ItemVocabulary",
    "LogCounts",
    "OwnOverOthers",
    "Parameters",
    "ProductEstimator",
    "QuickTranslator",
    "ReliabilityClass",
    "RequestBounds",
    "Samples",
    "TrainReport",
    "TrainingSlice",
    "TranslatorModule",
    "TranslatorVersion",
    "attribute",
    "check_cancelled",
    "check_sampling",
    "compare_versions",
    "data_end",
    "estimate_training_minutes",
    "evaluate",
    "find_kept_version",
    "load_version",
    "models_dir",
    "open_worker_pool",
    "pair_log",
    "quick_settings",
    "record_version",
    "resolve_device",
    "resolve_version",
    "retraining_reason",
    "target_weighting",
    "time_quantile",
    "train",
    "version_numbers",
    "with_first_items",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ALL_USERS": "data.contexts",
        "Attribution": "attribution",
        "BacktestReport": "evaluation",
        "COLD_USERS": "data.contexts",
        "ConsumedItems": "data.contexts",
        "ContextBatch": "context_batch",
        "Contexts": "data.contexts",
        "DomainLog": "data.domain_log",
        "Estimator": "estimators.protocol",
        "EventLog": "data.event_log",
        "ItemVocabulary": "registry",
        "LogCounts": "training_budget",
        "MAX_ABS_TIME_US": "requests",
        "NO_ITEM": "data.contexts",
        "OwnOverOthers": "information_gain",
        "PADDING": "data.contexts",
        "Parameters": "data.training_pairs",
        "ProductEstimator": "estimators.protocol",
        "QuickTranslator": "quick_translator",
        "ReliabilityClass": "reliability",
        "RequestBounds": "requests",
        "Samples": "data.contexts",
        "TrainReport": "train_report",
        "TrainingSlice": "data.training_pairs",
        "TranslatorModule": "module",
        "TranslatorVersion": "registry",
        "attribute": "attribution",
        "check_cancelled": "worker_pool",
        "check_sampling": "requests",
        "compare_versions": "challenger_test",
        "data_end": "data.event_log",
        "estimate_training_minutes": "training_budget",
        "evaluate": "evaluation",
        "find_kept_version": "retraining",
        "load_version": "registry",
        "models_dir": "registry",
        "open_worker_pool": "worker_pool",
        "pair_log": "data.domain_log",
        "quick_settings": "quick_translator",
        "resolve_device": "devices",
        "record_version": "registry",
        "resolve_version": "registry",
        "retraining_reason": "retraining",
        "target_weighting": "data.event_log",
        "time_quantile": "trainer",
        "train": "training",
        "version_numbers": "registry",
        "with_first_items": "data.domain_log",
    },
)
