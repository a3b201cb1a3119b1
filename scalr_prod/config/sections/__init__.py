# SPDX-License-Identifier: Apache-2.0
"""Sections of scalr.toml other than ``[domains]``: their keys, defaults and allowed values."""

from __future__ import annotations

from scalr_prod.config.sections.compute import ComputeSettings, ServingSettings
from scalr_prod.config.sections.observability import LineageSettings, LoggingSettings, MetricsSettings, UiSettings
from scalr_prod.config.sections.publication import ExperimentSettings, PublicationSettings
from scalr_prod.config.sections.quality import QualitySettings
from scalr_prod.config.sections.storage import (
    FeastExportSettings,
    FeastSettings,
    ForgettingSettings,
    LedgerSettings,
    ProjectSettings,
    RetentionSettings,
)
from scalr_prod.config.sections.training_set import (
    DEFAULT_SYNTHETIC_WEIGHT,
    DownstreamSettings,
    SegmentWeights,
    TrainingSetSettings,
)
from scalr_prod.config.sections.translation import GenerationSettings, HistorySettings, TranslatorSettings

__all__ = [
    "DEFAULT_SYNTHETIC_WEIGHT",
    "ComputeSettings",
    "DownstreamSettings",
    "ExperimentSettings",
    "FeastExportSettings",
    "FeastSettings",
    "ForgettingSettings",
    "GenerationSettings",
    "HistorySettings",
    "LedgerSettings",
    "LineageSettings",
    "LoggingSettings",
    "MetricsSettings",
    "ProjectSettings",
    "PublicationSettings",
    "QualitySettings",
    "RetentionSettings",
    "SegmentWeights",
    "ServingSettings",
    "TrainingSetSettings",
    "TranslatorSettings",
    "UiSettings",
]
