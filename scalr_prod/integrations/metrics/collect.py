# SPDX-License-Identifier: Apache-2.0
"""Prometheus collector of a project's metrics.

All values are computed from the ledger and the stored reports. So every command exports all metrics, whichever process or machine did
the work; counters of a short-lived command would be lost when it exits.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.integrations.metrics.names import METRICS
from scalr_prod.ledger import Ledger, PublicationStatus, RunState, run_folder
from scalr_prod.pipeline import read_stage_heartbeats, read_stage_outcomes
from scalr_prod.serving import merge_histograms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication, Run


_VERDICT_STATES: Final = {RunState.VALIDATED.value: "passed", RunState.REJECTED.value: "rejected"}
#: Number of latest runs searched for a report.
_MAX_RUNS_SEARCHED: Final = 50


class ProjectCollector:
    """All metrics of a project, for a ``CollectorRegistry`` of prometheus_client.

    Args:
        settings: The project's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> list[Metric]:
        """Compute all metrics; called by prometheus_client.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        with Ledger.open(self._settings) as ledger:
            latest = ledger.runs.find(limit=_MAX_RUNS_SEARCHED)
            samples = [
                *self._run_samples(ledger),
                *_publication_samples(ledger.publications.find()),
                *self._generation_samples(ledger, latest),
                *self._gate_samples(latest),
                *_registry_samples(ledger),
            ]
        return [
            self._metric_family(name, values) for name, values in _group_by_metric([*samples, *self._stage_samples()]).items()
        ]

    def _run_samples(self, ledger: Ledger) -> Iterator[_Sample]:
        states, changes = ledger.runs.count_by_state(), ledger.changes.count_by_target_state("run")
        yield from (("scalr_runs", (state.value,), states.get(state, 0)) for state in RunState)
        yield from (("scalr_gate_verdicts", (verdict,), changes.get(state, 0)) for state, verdict in _VERDICT_STATES.items())

    def _stage_samples(self) -> Iterator[_Sample]:
        for stage, ended in read_stage_outcomes(self._settings).items():
            yield "scalr_stage_seconds", (stage,), ended["seconds"]
            yield "scalr_stage_failed", (stage,), int(ended["outcome"] != "done")
            yield "scalr_stage_end_timestamp_seconds", (stage,), ended["at"]
            yield from (("scalr_stage_runs", (stage, outcome), count) for outcome, count in ended["counts"].items())
        for stage, at in read_stage_heartbeats(self._settings).items():
            yield "scalr_stage_heartbeat_timestamp_seconds", (stage,), at

    def _generation_samples(self, ledger: Ledger, runs: Sequence[Run]) -> Iterator[_Sample]:
        run, content = self._latest_report(runs, "generation.json")
        if run is None:
            return
        report = content["report"]
        yield "scalr_generation_contexts", (), report["contexts"]
        yield "scalr_generation_events", (), report["events"]
        yield "scalr_generation_coverage", (), report["coverage"]
        yield "scalr_generation_left_out", (), report.get("left_out") or 0.0
        yield from (("scalr_generation_dropped", (reason,), count) for reason, count in report["dropped"].items())
        if report["events_per_s"]:
            yield "scalr_generation_events_per_second", (), report["events_per_s"]
        latencies = [part.manifest["scoring"] for part in ledger.runs.partitions(run.run_id) if "scoring" in part.manifest]
        if latencies:
            yield "scalr_scoring_latency_seconds", (), merge_histograms(latencies)

    def _gate_samples(self, runs: Sequence[Run]) -> Iterator[_Sample]:
        run, content = self._latest_report(runs, "gate.json")
        if run is None:
            return
        report = content["report"]
        refused = report["rows"] - report["accepted"] - report["quarantined"]
        results = {"accepted": report["accepted"], "quarantined": report["quarantined"], "refused": refused}
        yield from (("scalr_gate_rows", (result,), count) for result, count in results.items())
        for name, value in report["figures"].items():
            if name.startswith("drift_") and name != "drift_reference":
                yield "scalr_drift_psi", (name.removeprefix("drift_"),), value
        failed: Counter[str] = Counter()
        for rule in report["rules"]:
            failed[rule["rule"]] += rule["failed"]
        yield from (("scalr_gate_rule_failed_rows", (rule,), count) for rule, count in failed.items())

    def _latest_report(self, runs: Sequence[Run], name: str) -> tuple[Run | None, Mapping[str, Any]]:
        """Return the newest run that has a report of this name, and the report; runs without a folder have none."""
        for run in runs:
            path = run_folder(self._settings.home, run.run_id) / name
            if path.is_file():
                return run, json.loads(path.read_text(encoding="utf-8"))
        return None, {}

    def _metric_family(self, name: str, samples: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        metric, project = METRICS[name], self._settings.project_name
        labels = ("project", *metric.labels)
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(name, metric.help_text, labels=labels)
            for values, counts in samples:
                upper_bounds = [*map(str, counts["bounds"]), "+Inf"]
                buckets = list(zip(upper_bounds, accumulate(counts["counts"]), strict=True))
                histogram.add_metric((project, *values), buckets, counts["seconds"])
            return histogram
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.help_text, labels=labels)
        for values, value in samples:
            family.add_metric((project, *values), value)
        return family


#: A metric's name, the values of its labels in addition to ``project``, and its value.
_Sample = tuple[str, tuple[str, ...], Any]


def _publication_samples(publications: Sequence[Publication]) -> Iterator[_Sample]:
    yield "scalr_events_published", (), sum(attempt.rows for attempt in publications if attempt.published_at is not None)
    published = (attempt for attempt in publications if attempt.status is PublicationStatus.PUBLISHED)
    windows = [(attempt.end, attempt.published_at) for attempt in published if attempt.published_at is not None]
    if not windows:
        return
    latest = max(end for end, _ in windows)
    yield "scalr_window_end_timestamp_seconds", (), latest.timestamp()
    yield "scalr_publication_lag_seconds", (), (min(at for end, at in windows if end == latest) - latest).total_seconds()
    yield "scalr_publication_timestamp_seconds", (), max(at for _, at in windows).timestamp()


def _registry_samples(ledger: Ledger) -> Iterator[_Sample]:
    latest = {record.name: record for record in sorted(ledger.datasets.find(), key=lambda record: record.version)}
    for name, record in latest.items():
        yield "scalr_training_set_timestamp_seconds", (name,), record.created_at.timestamp()
        yield "scalr_training_set_rows", (name,), record.rows
        if record.cutoff is not None:
            yield "scalr_training_set_cutoff_timestamp_seconds", (name,), record.cutoff.timestamp()
    versions = ledger.models.find()
    if versions:
        newest = max(versions, key=lambda version: version.version)
        yield "scalr_translator_trained_until_timestamp_seconds", (), newest.trained_until.timestamp()


def _group_by_metric(samples: Iterable[_Sample]) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    groups: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
    for name, values, value in samples:
        groups.setdefault(name, []).append((values, value))
    return groups
