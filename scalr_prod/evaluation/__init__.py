# SPDX-License-Identifier: Apache-2.0
"""Downstream evaluation: reference recommenders, arms and controls, compared on a global timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.evaluation.evaluation import evaluate
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.interactions import DownstreamModel, Interactions

__all__ = ["DownstreamModel", "EvaluationReport", "Interactions", "evaluate"]

__getattr__ = lazy_exports(
    __name__,
    {
        "DownstreamModel": "interactions",
        "EvaluationReport": "evaluation_report",
        "Interactions": "interactions",
        "evaluate": "evaluation",
    },
)
