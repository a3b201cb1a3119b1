# SPDX-License-Identifier: Apache-2.0
"""How many contexts a first verdict asks about, so that it comes soon on a large log as well."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from scalr_prod.downstream.scene import Scene
    from scalr_prod.downstream.trials import Stage

__all__ = ["few_contexts", "with_few_contexts"]

MOST: Final = 50_000


def few_contexts(scene: Scene) -> int | None:
    """At most so many; None where there are no more anyhow: a context is a source event, or a user."""
    by_event = scene.settings.generation.contexts == "events"
    return MOST if (len(scene.source) if by_event else len(scene.numbering.users)) > MOST else None


def with_few_contexts(stage: Stage) -> Stage:
    """The same stage, with a maker of its own where there are more contexts."""
    from scalr_prod.downstream.arms import Maker

    most = few_contexts(stage.judge.scene)
    return (
        stage
        if most is None
        else replace(stage, maker=Maker(stage.judge.scene, begun=stage.maker.begun, at_most=most), at_most=most)
    )
