# SPDX-License-Identifier: Apache-2.0
"""Evaluation of synthetic events: recommenders trained with and without them, and with controls, compared on later events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.evaluation.domain_scout import ScoutReport, scout
    from scalr_prod.evaluation.evaluation import evaluate
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.interactions import DownstreamModel, Interactions
    from scalr_prod.evaluation.plan import EvaluationRequest
    from scalr_prod.evaluation.search import HALF_LIFE, Hyperparameter
    from scalr_prod.evaluation.verdict_summary import summarize_verdict

__all__ = [
    "HALF_LIFE",
    "DownstreamModel",
    "EvaluationReport",
    "EvaluationRequest",
    "Hyperparameter",
    "Interactions",
    "ScoutReport",
    "evaluate",
    "scout",
    "summarize_verdict",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DownstreamModel": "interactions",
        "EvaluationReport": "evaluation_report",
        "EvaluationRequest": "plan",
        "HALF_LIFE": "search",
        "Hyperparameter": "search",
        "Interactions": "interactions",
        "ScoutReport": "domain_scout",
        "evaluate": "evaluation",
        "scout": "domain_scout",
        "summarize_verdict": "verdict_summary",
    },
)
