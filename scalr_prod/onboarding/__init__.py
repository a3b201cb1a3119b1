# SPDX-License-Identifier: Apache-2.0
"""Onboarding: `scalr init` inspects two logs and writes a scalr.toml that reads them."""

from __future__ import annotations

from scalr_prod.onboarding.asking import apply_corrections, confirm_interactively
from scalr_prod.onboarding.guess import ItemGuess, LogGuess, LogRequest
from scalr_prod.onboarding.start import DomainPlan, InitPlan, ensure_not_overwriting, plan_init

__all__ = [
    "DomainPlan",
    "InitPlan",
    "ItemGuess",
    "LogGuess",
    "LogRequest",
    "apply_corrections",
    "confirm_interactively",
    "ensure_not_overwriting",
    "plan_init",
]
