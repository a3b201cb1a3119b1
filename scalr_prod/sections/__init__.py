# SPDX-License-Identifier: Apache-2.0
"""Sections of scalr.toml other than ``[domains]``: their keys, defaults and allowed values."""

from __future__ import annotations

from scalr_prod.sections.computing import ComputeSettings, ServingSettings
from scalr_prod.sections.learning import DownstreamSettings, TrainingSetSettings
from scalr_prod.sections.places import FeastSettings, ForgettingSettings, LedgerSettings, ProjectSettings, RetentionSettings
from scalr_prod.sections.publishing import ExperimentSettings, PublicationSettings, QualitySettings
from scalr_prod.sections.telling import LineageSettings, LoggingSettings, MetricsSettings, UiSettings
from scalr_prod.sections.translating import GenerationSettings, HistorySettings, TranslatorSettings

__all__ = [
    "ComputeSettings",
    "DownstreamSettings",
    "ExperimentSettings",
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
    "ServingSettings",
    "TrainingSetSettings",
    "TranslatorSettings",
    "UiSettings",
]
