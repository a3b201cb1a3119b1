# SPDX-License-Identifier: Apache-2.0
"""Definitions of all metrics: kind, labels in addition to ``project``, and help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Metric:
    """Definition of a metric.

    Attributes:
        kind: Its Prometheus type.
        help_text: Its help text.
        labels: Its labels in addition to ``project``.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help_text: str
    labels: tuple[str, ...] = ()


#: By name; a counter's samples have the suffix ``_total``.
METRICS: Final[dict[str, Metric]] = {
    "scalr_events_published": Metric("counter", "Rows committed to synthetic_target_events by all publications"),
    "scalr_gate_verdicts": Metric("counter", "Verdicts of the quality gate on runs", ("verdict",)),
    "scalr_stage_runs": Metric("counter", "Finished stages by outcome", ("stage", "outcome")),
    "scalr_stage_seconds": Metric("gauge", "Duration of the stage when it last finished, in seconds", ("stage",)),
    "scalr_stage_failed": Metric("gauge", "Whether the stage's last outcome was other than done: 1 or 0", ("stage",)),
    "scalr_stage_end_timestamp_seconds": Metric("gauge", "When the stage last finished", ("stage",)),
    "scalr_stage_heartbeat_timestamp_seconds": Metric(
        "gauge", "When the stage's driver was last known to be running; absent once the stage has ended", ("stage",)
    ),
    "scalr_runs": Metric("gauge", "Runs in the ledger, by state", ("state",)),
    "scalr_generation_events_per_second": Metric("gauge", "Events staged per second by the latest generation that wrote parts"),
    "scalr_generation_contexts": Metric("gauge", "Contexts of the latest generated run"),
    "scalr_generation_events": Metric("gauge", "Events staged by the latest generated run"),
    "scalr_generation_dropped": Metric("gauge", "Draws of the latest generated run that were dropped", ("reason",)),
    "scalr_generation_left_out": Metric(
        "gauge", "Share of probability omitted by the latest generated run's shortlists, 0 to 1; 0 without shortlists"
    ),
    "scalr_generation_coverage": Metric(
        "gauge", "Share of the target catalogue with events in the latest generated run, 0 to 1"
    ),
    "scalr_scoring_latency_seconds": Metric("histogram", "Latency of the translator per request in the latest generated run"),
    "scalr_gate_rows": Metric("gauge", "Rows of the latest audited run by result", ("result",)),
    "scalr_gate_rule_failed_rows": Metric("gauge", "Rows (or figures) of the latest audited run that failed a rule", ("rule",)),
    "scalr_drift_psi": Metric(
        "gauge", "PSI of the latest audited run against the previously published run; absent without one", ("figure",)
    ),
    "scalr_publication_lag_seconds": Metric("gauge", "From the end of the latest published window to its first publication"),
    "scalr_publication_timestamp_seconds": Metric("gauge", "When the latest publication was committed"),
    "scalr_window_end_timestamp_seconds": Metric("gauge", "End of the latest published window"),
    "scalr_training_set_timestamp_seconds": Metric("gauge", "When the latest version of a training set was built", ("name",)),
    "scalr_training_set_cutoff_timestamp_seconds": Metric("gauge", "Cutoff of the latest version of a training set", ("name",)),
    "scalr_training_set_rows": Metric("gauge", "Rows of the latest version of a training set", ("name",)),
    "scalr_translator_trained_until_timestamp_seconds": Metric("gauge", "End of the latest translator version's training data"),
}
