# SPDX-License-Identifier: Apache-2.0
"""Generation of synthetic target events: plan, tasks, popularity matching and the runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.generation.confidence import LIFT_SQL, confidence_weight
    from scalr_prod.generation.context_query import (
        SOURCE_TIMESTAMP,
        RequestEncoder,
        has_one_context_per_user,
        read_contexts,
        sort_for_scoring,
    )
    from scalr_prod.generation.encoding import HISTORY_ITEMS, HISTORY_TIMES, ConsumptionIndex
    from scalr_prod.generation.generation import GenerationReport, generate
    from scalr_prod.generation.harmed_segments import (
        describe_harmed_segments,
        record_dropped_segments,
        record_harmed_segments,
    )
    from scalr_prod.generation.late_events import LateReport, LateWindow, late_windows, replay_settings
    from scalr_prod.generation.part_files import part_path
    from scalr_prod.generation.plan import plan_run, resolve_run_spec, run_settings
    from scalr_prod.generation.policy import (
        SEGMENTS,
        Policy,
        apply_policy,
        logs_digest,
        policy_path,
        policy_status,
        settings_digest,
        why_not_generated,
    )
    from scalr_prod.generation.popularity_matching import bucket_shares, keep_counts, popularity_buckets
    from scalr_prod.generation.preview import RunPreview, preview_run
    from scalr_prod.generation.task import WorkerSession, candidate_schema, close_session, open_session, sample_events

__all__ = [
    "HISTORY_ITEMS",
    "HISTORY_TIMES",
    "LIFT_SQL",
    "SEGMENTS",
    "SOURCE_TIMESTAMP",
    "ConsumptionIndex",
    "GenerationReport",
    "LateReport",
    "LateWindow",
    "Policy",
    "RequestEncoder",
    "RunPreview",
    "WorkerSession",
    "apply_policy",
    "bucket_shares",
    "candidate_schema",
    "close_session",
    "confidence_weight",
    "describe_harmed_segments",
    "generate",
    "has_one_context_per_user",
    "keep_counts",
    "late_windows",
    "logs_digest",
    "open_session",
    "part_path",
    "plan_run",
    "policy_path",
    "policy_status",
    "popularity_buckets",
    "preview_run",
    "read_contexts",
    "record_dropped_segments",
    "record_harmed_segments",
    "replay_settings",
    "resolve_run_spec",
    "run_settings",
    "sample_events",
    "settings_digest",
    "sort_for_scoring",
    "why_not_generated",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ConsumptionIndex": "encoding",
        "GenerationReport": "generation",
        "HISTORY_ITEMS": "encoding",
        "HISTORY_TIMES": "encoding",
        "LIFT_SQL": "confidence",
        "LateReport": "late_events",
        "LateWindow": "late_events",
        "Policy": "policy",
        "RequestEncoder": "context_query",
        "RunPreview": "preview",
        "SEGMENTS": "policy",
        "SOURCE_TIMESTAMP": "context_query",
        "WorkerSession": "task",
        "apply_policy": "policy",
        "bucket_shares": "popularity_matching",
        "candidate_schema": "task",
        "close_session": "task",
        "confidence_weight": "confidence",
        "describe_harmed_segments": "harmed_segments",
        "generate": "generation",
        "has_one_context_per_user": "context_query",
        "keep_counts": "popularity_matching",
        "late_windows": "late_events",
        "logs_digest": "policy",
        "open_session": "task",
        "part_path": "part_files",
        "plan_run": "plan",
        "policy_path": "policy",
        "policy_status": "policy",
        "preview_run": "preview",
        "read_contexts": "context_query",
        "record_dropped_segments": "harmed_segments",
        "record_harmed_segments": "harmed_segments",
        "replay_settings": "late_events",
        "resolve_run_spec": "plan",
        "run_settings": "plan",
        "sample_events": "task",
        "settings_digest": "policy",
        "sort_for_scoring": "context_query",
        "popularity_buckets": "popularity_matching",
        "why_not_generated": "policy",
    },
)
