# SPDX-License-Identifier: Apache-2.0
"""The graph itself. Stages stand in the order in which they are done; ``needs`` says which of them a walk takes."""

from __future__ import annotations

from typing import Final

from scalr_prod.stages import state, work
from scalr_prod.stages.job import Stage

__all__ = ["GRAPH"]

#: Whether the latest run is in the feature view.
LATEST_RUN_PUBLISHED: Final = state.has_run_past("planned", "generating", "generated", "rejected", "validated", "rolled_back")

GRAPH: Final[tuple[Stage, ...]] = (
    Stage(
        "serving",
        (),
        "the environment that a local Triton runs in",
        "scalr serving install",
        work.serving,
        state.has_serving_environment,
        light=True,
    ),  # needed late, after minutes of work: asked for first
    Stage(
        "features",
        (),
        "your own features of training sets, where there are any",
        "feast apply",
        work.features,
        state.has_external_features,
        light=True,
    ),  # likewise
    Stage("ingest", (), "source_events, target_events, catalogues", "scalr ingest", work.ingest, state.has_events),
    Stage(
        "histories",
        ("ingest",),
        "source_user_history, target_user_history, target_item_stats",
        "scalr histories",
        work.histories,
        state.has_current_histories,
    ),
    Stage(
        "policy",
        ("histories",),
        "the settings that an evaluation chose, where there was one",
        "scalr evaluate",
        work.policy,
        state.always_done,
        light=True,
    ),
    Stage(
        "feast",
        ("histories",),
        "feature views and services",
        "scalr histories",
        work.feast,
        state.has_feature_repository,
        light=True,
    ),
    Stage("translator", ("feast",), "a translator version", "scalr translator train", work.translator, state.has_translator),
    Stage(
        "plan",
        ("serving", "policy", "feast", "translator"),
        "a run in the ledger",
        "scalr generate",
        work.plan,
        state.has_run_past(),
        light=True,
    ),
    Stage(
        "generate",
        ("plan",),
        "staged synthetic events",
        "scalr generate",
        work.generate,
        state.has_run_past("planned", "generating"),
    ),
    Stage(
        "validate",
        ("generate",),
        "accepted events, data docs",
        "scalr validate RUN",
        work.validate,
        state.has_run_past("planned", "generating", "generated", "rejected"),
    ),
    Stage(
        "publish",
        ("validate",),
        "synthetic_target_events",
        "scalr publish RUN",
        work.publish,
        LATEST_RUN_PUBLISHED,
    ),
    Stage(
        "late", ("publish",), "earlier windows, where source events arrived late", "scalr run", work.late, LATEST_RUN_PUBLISHED
    ),
    Stage(
        "dataset", ("features", "feast", "late"), "a training set", "scalr dataset build", work.dataset, state.has_training_set
    ),
)
