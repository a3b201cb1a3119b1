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

from scalr_prod.pipeline.context import OF_RUN, PipelineContext, PipelineReport, Stage, StageReport, StageState
from scalr_prod.pipeline.graph import GRAPH
from scalr_prod.pipeline.hooks import StageHook, StageScope, run_hooks, stage_hooks
from scalr_prod.pipeline.preview import DryRun, dry_run
from scalr_prod.pipeline.runner import execute_stages, resume_run, single_stage, stage_context, stage_states, stages_to

__all__ = [
    "GRAPH",
    "OF_RUN",
    "DryRun",
    "PipelineContext",
    "PipelineReport",
    "Stage",
    "StageHook",
    "StageReport",
    "StageScope",
    "StageState",
    "dry_run",
    "execute_stages",
    "resume_run",
    "run_hooks",
    "single_stage",
    "stage_context",
    "stage_hooks",
    "stage_states",
    "stages_to",
]
