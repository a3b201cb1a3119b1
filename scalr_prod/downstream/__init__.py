# SPDX-License-Identifier: Apache-2.0
"""Downstream evaluation: reference recommenders, arms and controls, compared on a global timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.lazy import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.downstream.evaluation import evaluate
    from scalr_prod.downstream.protocol import DownstreamModel, Interactions
    from scalr_prod.downstream.report import EvaluationReport

__all__ = ["DownstreamModel", "EvaluationReport", "Interactions", "evaluate"]

__getattr__ = lazy_exports(
    __name__,
    {
        "DownstreamModel": "protocol",
        "EvaluationReport": "report",
        "Interactions": "protocol",
        "evaluate": "evaluation",
    },
)
