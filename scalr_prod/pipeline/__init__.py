# SPDX-License-Identifier: Apache-2.0
"""The graph of stages: dependencies, outputs, completion checks and work of each stage.

The command line, the DAGs, isolated runs of an evaluation, `runs resume` and `Project` all execute it::

    serving ───────────────────────────────┐
    ingest → histories → feast → translator ┼→ plan → generate → validate → publish → late → dataset
                  └────→ policy ────────────┘

Each stage finds what it has done before and does only what is missing, so repeating a stage with the same input changes nothing. A *light*
stage takes no time if nothing has changed; executing a single stage first executes the light stages that it needs.
Where λ is 0 for all users, a whole run skips the stages from ``plan`` to ``late``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.pipeline.context import (
        SKIPPED_WITHOUT_EVENTS,
        PipelineContext,
        PipelineReport,
        Stage,
        StageState,
    )
    from scalr_prod.pipeline.graph import GRAPH
    from scalr_prod.pipeline.hooks import StageHook, StageScope, run_hooks, stage_hooks
    from scalr_prod.pipeline.preview import DryRun, dry_run
    from scalr_prod.pipeline.runner import (
        execute_single,
        execute_stages,
        read_timings,
        resume_run,
        row_counts,
        stage_context,
        stage_states,
        stages_to,
        with_light_prerequisites,
    )
    from scalr_prod.pipeline.stage_outcomes import (
        has_failed_last,
        read_stage_heartbeats,
        read_stage_outcomes,
        record_stage_heartbeat,
        record_stage_outcome,
    )
    from scalr_prod.pipeline.stale_outputs import describe_rolled_back, rolled_back_runs

__all__ = [
    "GRAPH",
    "SKIPPED_WITHOUT_EVENTS",
    "DryRun",
    "PipelineContext",
    "PipelineReport",
    "Stage",
    "StageHook",
    "StageScope",
    "StageState",
    "describe_rolled_back",
    "dry_run",
    "execute_single",
    "execute_stages",
    "has_failed_last",
    "read_stage_heartbeats",
    "read_stage_outcomes",
    "read_timings",
    "record_stage_heartbeat",
    "record_stage_outcome",
    "resume_run",
    "rolled_back_runs",
    "row_counts",
    "run_hooks",
    "stage_context",
    "stage_hooks",
    "stage_states",
    "stages_to",
    "with_light_prerequisites",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DryRun": "preview",
        "GRAPH": "graph",
        "SKIPPED_WITHOUT_EVENTS": "context",
        "PipelineContext": "context",
        "PipelineReport": "context",
        "Stage": "context",
        "StageHook": "hooks",
        "StageScope": "hooks",
        "StageState": "context",
        "describe_rolled_back": "stale_outputs",
        "dry_run": "preview",
        "execute_single": "runner",
        "execute_stages": "runner",
        "has_failed_last": "stage_outcomes",
        "read_stage_heartbeats": "stage_outcomes",
        "read_stage_outcomes": "stage_outcomes",
        "read_timings": "runner",
        "record_stage_heartbeat": "stage_outcomes",
        "record_stage_outcome": "stage_outcomes",
        "resume_run": "runner",
        "row_counts": "runner",
        "run_hooks": "hooks",
        "with_light_prerequisites": "runner",
        "stage_context": "runner",
        "stage_hooks": "hooks",
        "stage_states": "runner",
        "stages_to": "runner",
        "rolled_back_runs": "stale_outputs",
    },
)
