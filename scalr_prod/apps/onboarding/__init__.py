# SPDX-License-Identifier: Apache-2.0
"""Onboarding: `scalr init` inspects logs and writes a scalr.toml that reads them; `scalr scout` finds out which logs to join."""

from __future__ import annotations

from scalr_prod.apps.onboarding.init import InitPlan, ensure_not_overwriting, plan_init
from scalr_prod.apps.onboarding.log_request import LogRequest
from scalr_prod.apps.onboarding.prompts import apply_corrections, confirm_interactively
from scalr_prod.apps.onboarding.scout import FolderLogs, ScoutOutcome, ScoutPlan, find_logs, plan_scout

__all__ = [
    "FolderLogs",
    "InitPlan",
    "LogRequest",
    "ScoutOutcome",
    "ScoutPlan",
    "apply_corrections",
    "confirm_interactively",
    "ensure_not_overwriting",
    "find_logs",
    "plan_init",
    "plan_scout",
]
