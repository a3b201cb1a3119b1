# SPDX-License-Identifier: Apache-2.0
"""Maintenance of a project that runs for months: removal of data that it no longer needs."""

from __future__ import annotations

from scalr_prod.operations.retention import Removal, RetentionReport, apply_retention

__all__ = ["Removal", "RetentionReport", "apply_retention"]
