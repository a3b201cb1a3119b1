# SPDX-License-Identifier: Apache-2.0
"""Onboarding: `scalr init` inspects two logs and writes a scalr.toml that reads them."""

from __future__ import annotations

from scalr_prod.apps.onboarding.init import InitPlan, ensure_not_overwriting, plan_init
from scalr_prod.apps.onboarding.log_request import LogRequest
from scalr_prod.apps.onboarding.prompts import apply_corrections, confirm_interactively

__all__ = [
    "InitPlan",
    "LogRequest",
    "apply_corrections",
    "confirm_interactively",
    "ensure_not_overwriting",
    "plan_init",
]
