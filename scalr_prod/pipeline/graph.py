# SPDX-License-Identifier: Apache-2.0
"""The graph: stages in the order in which they are executed; ``needs`` names the stages that each one depends on."""

from __future__ import annotations

from typing import Final

from scalr_prod.pipeline import checks, steps
from scalr_prod.pipeline.context import Stage

#: Whether the latest run is in the feature view.
LATEST_RUN_PUBLISHED: Final = checks.has_run_past("planned", "generating", "generated", "rejected", "validated", "rolled_back")

GRAPH: Final[tuple[Stage, ...]] = (
    Stage(
        "serving",
        (),
        "the environment that a local Triton runs in",
        "scalr serving install",
        steps.serving,
        checks.has_serving_environment,
        light=True,
    ),  # needed late, after minutes of work: asked for first
    Stage(
        "features",
        (),
        "your own features of training sets, if there are any",
        "feast apply",
        steps.features,
        checks.has_external_features,
        light=True,
    ),  # likewise
    Stage("ingest", (), "source_events, target_events, catalogues", "scalr ingest", steps.ingest, checks.has_events),
    Stage(
        "histories",
        ("ingest",),
        "source_user_history, target_user_history, target_item_stats",
        "scalr histories",
        steps.histories,
        checks.has_current_histories,
    ),
    Stage(
        "policy",
        ("histories",),
        "the settings that an evaluation chose, if there was one",
        "scalr evaluate",
        steps.policy,
        checks.always_done,
        light=True,
    ),
    Stage(
        "feast",
        ("histories",),
        "feature views and services",
        "scalr histories",
        steps.feast,
        checks.has_feature_repository,
        light=True,
    ),
    Stage("translator", ("feast",), "a translator version", "scalr translator train", steps.translator, checks.has_translator),
    Stage(
        "plan",
        ("serving", "policy", "feast", "translator"),
        "a run in the ledger",
        "scalr generate",
        steps.plan,
        checks.has_run_past(),
        light=True,
    ),
    Stage(
        "generate",
        ("plan",),
        "staged synthetic events",
        "scalr generate",
        steps.generate,
        checks.has_run_past("planned", "generating"),
    ),
    Stage(
        "validate",
        ("generate",),
        "accepted events, data docs",
        "scalr validate RUN",
        steps.validate,
        checks.has_run_past("planned", "generating", "generated", "rejected"),
    ),
    Stage(
        "publish",
        ("validate",),
        "synthetic_target_events",
        "scalr publish RUN",
        steps.publish,
        LATEST_RUN_PUBLISHED,
    ),
    Stage(
        "late",
        ("publish",),
        "earlier windows for which source events arrived late",
        "scalr run",
        steps.late,
        LATEST_RUN_PUBLISHED,
    ),
    Stage(
        "dataset",
        ("features", "feast", "late"),
        "a training set",
        "scalr dataset build",
        steps.dataset,
        checks.has_training_set,
    ),
)
