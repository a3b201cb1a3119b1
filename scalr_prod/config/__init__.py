# SPDX-License-Identifier: Apache-2.0
"""Configuration: settings, their sections, environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.config.domains import Domains, DomainSettings, ItemColumns, LogColumns
    from scalr_prod.config.sections import (
        DEFAULT_SYNTHETIC_WEIGHT,
        ComputeSettings,
        ExperimentSettings,
        FeastExportSettings,
        FeastSettings,
        GenerationSettings,
        HistorySettings,
        LedgerSettings,
        LineageSettings,
        MetricsSettings,
        QualitySettings,
        RetentionSettings,
        SegmentWeights,
        TrainingSetSettings,
        TranslatorSettings,
    )
    from scalr_prod.config.settings import Settings, load_settings, settings_from_dict
    from scalr_prod.config.settings_reference import effective_settings

__all__ = [
    "DEFAULT_SYNTHETIC_WEIGHT",
    "ComputeSettings",
    "DomainSettings",
    "Domains",
    "ExperimentSettings",
    "FeastExportSettings",
    "FeastSettings",
    "GenerationSettings",
    "HistorySettings",
    "ItemColumns",
    "LedgerSettings",
    "LineageSettings",
    "LogColumns",
    "MetricsSettings",
    "QualitySettings",
    "RetentionSettings",
    "SegmentWeights",
    "Settings",
    "TrainingSetSettings",
    "TranslatorSettings",
    "effective_settings",
    "load_settings",
    "settings_from_dict",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ComputeSettings": "sections",
        "DEFAULT_SYNTHETIC_WEIGHT": "sections",
        "DomainSettings": "domains",
        "Domains": "domains",
        "ExperimentSettings": "sections",
        "FeastExportSettings": "sections",
        "FeastSettings": "sections",
        "GenerationSettings": "sections",
        "HistorySettings": "sections",
        "ItemColumns": "domains",
        "LedgerSettings": "sections",
        "LineageSettings": "sections",
        "LogColumns": "domains",
        "MetricsSettings": "sections",
        "QualitySettings": "sections",
        "RetentionSettings": "sections",
        "SegmentWeights": "sections",
        "Settings": "settings",
        "TrainingSetSettings": "sections",
        "TranslatorSettings": "sections",
        "effective_settings": "settings_reference",
        "load_settings": "settings",
        "settings_from_dict": "settings",
    },
)
