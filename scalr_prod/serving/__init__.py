# SPDX-License-Identifier: Apache-2.0
"""Triton serving: start and stop the local server, load and promote versions.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports
from scalr_prod.serving.install.self_check import DiagnosticCheck

if TYPE_CHECKING:
    from scalr_prod.serving.diagnostics import serving_checks
    from scalr_prod.serving.install.environment import require_environment
    from scalr_prod.serving.local_server.process import ServerStatus, start_triton, stop_triton, triton_status
    from scalr_prod.serving.local_server.session import ensure_serving, stop_unused_server
    from scalr_prod.serving.local_server.watchdog import serve_with_watchdog
    from scalr_prod.serving.promotion import PromotionDecision, promote_if_better
    from scalr_prod.serving.promotion_stack import served_version
    from scalr_prod.serving.served_versions import PromotionReport, promote, rollback

__all__ = [
    "DiagnosticCheck",
    "PromotionDecision",
    "PromotionReport",
    "ServerStatus",
    "ensure_serving",
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
]

__getattr__ = lazy_exports(
    __name__,
    {
        "PromotionDecision": "decision",
        "PromotionReport": "versions",
        "ServerStatus": "process",
        "ensure_serving": "ensure",
        "guarded_serving": "guard",
        "promote": "versions",
        "promote_if_better": "decision",
        "require_environment": "environment",
        "rollback": "versions",
        "served_version": "promotions",
        "serving_checks": "checks",
        "start_triton": "process",
        "stop_triton": "process",
        "stop_unused": "ensure",
        "triton_status": "process",
    },
)
