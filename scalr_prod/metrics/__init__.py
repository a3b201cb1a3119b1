# SPDX-License-Identifier: Apache-2.0
"""Figures of a project for Prometheus: what its ledger and its runs' reports say, in a textfile or at a push gateway."""

from __future__ import annotations

from scalr_prod.metrics.deliver import MetricsHook, deliver
from scalr_prod.metrics.names import METRICS, Metric

__all__ = ["METRICS", "Metric", "MetricsHook", "deliver"]
