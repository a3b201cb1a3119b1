# SPDX-License-Identifier: Apache-2.0
"""How much a first verdict learns from and asks about, so that it comes soon on a large log as well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from scalr_prod.downstream.scene import Scene
    from scalr_prod.downstream.trials import Stage

__all__ = ["ALL", "Few", "few_of", "with_few"]

CONTEXTS: Final = 50_000
PRETRAINING_EVENTS: Final = 250_000


@dataclass(frozen=True)
class Few:
    """What is left out of a scene; None: nothing.

    Attributes:
        contexts: Drawn for, at most.
        pretraining_events: Source events that the sequential estimator learns from before it sees a target event, at most. This is
            most of the time of training on a long source log.
    """

    contexts: int | None = None
    pretraining_events: int | None = None

    def learned_from(self, scene: Scene) -> Scene:
        """The scene, with a translator that is trained so; everything else of it is as it was."""
        if self.pretraining_events is None:
            return scene
        # Copied, not made anew: an isolated home's settings are in no file.
        translator = scene.settings.translator.model_copy(update={"pretraining_events": self.pretraining_events})
        settings = scene.settings.model_copy(update={"translator": translator})
        return replace(scene, isolated=replace(scene.isolated, settings=settings))

    def told(self) -> str:
        """What is left out, as the end of a phrase."""
        parts = {"drawn for {:,} contexts": self.contexts, "pretrained on {:,} source events": self.pretraining_events}
        return "".join(f", {text.format(most)} at most" for text, most in parts.items() if most is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: ``contexts_at_most``, ``pretraining_events_at_most``."""
        return {f"{name}_at_most": value for name, value in vars(self).items()}


#: Nothing is left out.
ALL: Final = Few()


def few_of(scene: Scene) -> Few:
    """Of what there is more of: a context is a source event, or a user."""
    events, settings = len(scene.source), scene.settings
    contexts = events if settings.generation.contexts == "events" else len(scene.numbering.users)
    learned = events if settings.translator.pretraining_events is None else min(events, settings.translator.pretraining_events)
    shorter = learned > PRETRAINING_EVENTS and "sequential" in settings.translator.estimators
    return Few(CONTEXTS if contexts > CONTEXTS else None, PRETRAINING_EVENTS if shorter else None)


def with_few(stage: Stage) -> Stage:
    """The same stage, with a maker of its own where something is left out."""
    from scalr_prod.downstream.arms import Maker

    scene = stage.judge.scene
    few = few_of(scene)
    return stage if few == ALL else replace(stage, maker=Maker(scene, begun=stage.maker.begun, few=few))
