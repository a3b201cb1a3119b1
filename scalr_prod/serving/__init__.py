# SPDX-License-Identifier: Apache-2.0
"""Triton serving: start and stop the local server, load and promote versions.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.serving.client import Scorer, open_scorer
    from scalr_prod.serving.client.latency import LatencyHistogram, merge_histograms
    from scalr_prod.serving.diagnostics import DiagnosticCheck, serving_checks
    from scalr_prod.serving.install.environment import require_environment
    from scalr_prod.serving.install.installer import install_serving, plan_serving
    from scalr_prod.serving.install.virtualenvs import Torch
    from scalr_prod.serving.local_server.process import start_triton, stop_triton, triton_status
    from scalr_prod.serving.local_server.session import ensure_serving, stop_unused_server
    from scalr_prod.serving.local_server.watchdog import serve_with_watchdog
    from scalr_prod.serving.model_repository import model_folder
    from scalr_prod.serving.promotion import PromotionDecision, PromotionReport, promote, promote_if_better, rollback
    from scalr_prod.serving.promotion_stack import served_version, versions_in_use

__all__ = [
    "DiagnosticCheck",
    "LatencyHistogram",
    "PromotionDecision",
    "PromotionReport",
    "Scorer",
    "Torch",
    "ensure_serving",
    "install_serving",
    "merge_histograms",
    "model_folder",
    "open_scorer",
    "plan_serving",
    "promote",
    "promote_if_better",
    "require_environment",
    "rollback",
    "serve_with_watchdog",
    "served_version",
    "serving_checks",
    "start_triton",
    "stop_triton",
    "stop_unused_server",
    "triton_status",
    "versions_in_use",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DiagnosticCheck": "diagnostics",
        "LatencyHistogram": "client.latency",
        "PromotionDecision": "promotion",
        "PromotionReport": "promotion",
        "Scorer": "client",
        "Torch": "install.virtualenvs",
        "ensure_serving": "local_server.session",
        "install_serving": "install.installer",
        "merge_histograms": "client.latency",
        "model_folder": "model_repository",
        "open_scorer": "client",
        "plan_serving": "install.installer",
        "promote": "promotion",
        "promote_if_better": "promotion",
        "require_environment": "install.environment",
        "rollback": "promotion",
        "serve_with_watchdog": "local_server.watchdog",
        "served_version": "promotion_stack",
        "serving_checks": "diagnostics",
        "start_triton": "local_server.process",
        "stop_triton": "local_server.process",
        "stop_unused_server": "local_server.session",
        "triton_status": "local_server.process",
        "versions_in_use": "promotion_stack",
    },
)
