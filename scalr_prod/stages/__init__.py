# SPDX-License-Identifier: Apache-2.0
"""The one graph of stages: what each of them needs and makes, whether it is done, and its work.

The command line, the DAGs, an evaluation's isolated runs, `runs resume` and `Project` all walk it::

    serving ───────────────────────────────┐
    ingest → histories → feast → translator ┼→ plan → generate → validate → publish → late → dataset
                  └────→ policy ────────────┘

Each stage finds what it has done before and does only what is missing, so that a stage repeated with the same input changes
nothing. A *light* stage takes no time where nothing has changed; whoever does one stage alone does the light ones that it needs
before it. Where λ is 0 for all users, a whole run leaves out ``plan`` to ``late``.
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
