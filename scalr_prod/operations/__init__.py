# SPDX-License-Identifier: Apache-2.0
"""Upkeep: what a project that runs for months no longer needs."""

from __future__ import annotations

from scalr_prod.operations.upkeep import Removal, UpkeepReport, maintain

__all__ = ["Removal", "UpkeepReport", "maintain"]
