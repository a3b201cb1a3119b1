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

from scalr_prod.stages.dry import DryRun, dry_run
from scalr_prod.stages.graph import GRAPH
from scalr_prod.stages.hooks import StageHook, StageScope, run_hooks, stage_hooks
from scalr_prod.stages.job import OF_RUN, Job, PipelineReport, Report, Stage, StageState
from scalr_prod.stages.walking import at_stage, path, resume_run, states, step, walk

__all__ = [
    "GRAPH",
    "OF_RUN",
    "DryRun",
    "Job",
    "PipelineReport",
    "Report",
    "Stage",
    "StageHook",
    "StageScope",
    "StageState",
    "at_stage",
    "dry_run",
    "path",
    "resume_run",
    "run_hooks",
    "stage_hooks",
    "states",
    "step",
    "walk",
]
