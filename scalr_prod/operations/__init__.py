# SPDX-License-Identifier: Apache-2.0
"""Operations on a live project: erasure, retention, the holdout experiment, and the explanation of an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.operations.erasure import AffectedModel, ErasureReport, erase_items, erase_users, models_to_retrain
    from scalr_prod.operations.experiment_power import PowerReport, measure_power
    from scalr_prod.operations.explanation import Explanation, explain_event, explain_rows, read_published_events
    from scalr_prod.operations.holdout_experiment import ExperimentReport, analyze_experiment
    from scalr_prod.operations.retention import RetentionReport, apply_retention

__all__ = [
    "AffectedModel",
    "ErasureReport",
    "ExperimentReport",
    "Explanation",
    "PowerReport",
    "RetentionReport",
    "analyze_experiment",
    "apply_retention",
    "erase_items",
    "erase_users",
    "explain_event",
    "explain_rows",
    "measure_power",
    "models_to_retrain",
    "read_published_events",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "AffectedModel": "erasure",
        "ErasureReport": "erasure",
        "ExperimentReport": "holdout_experiment",
        "Explanation": "explanation",
        "PowerReport": "experiment_power",
        "RetentionReport": "retention",
        "analyze_experiment": "holdout_experiment",
        "apply_retention": "retention",
        "erase_items": "erasure",
        "erase_users": "erasure",
        "explain_event": "explanation",
        "explain_rows": "explanation",
        "models_to_retrain": "erasure",
        "measure_power": "experiment_power",
        "read_published_events": "explanation",
    },
)
