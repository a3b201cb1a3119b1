# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a project, from its ledger and run reports, exported to a textfile or a push gateway."""

from __future__ import annotations

from scalr_prod.integrations.metrics.exporter import MetricsHook, export_metrics
from scalr_prod.integrations.metrics.names import METRICS, Metric

__all__ = ["METRICS", "Metric", "MetricsHook", "export_metrics"]
