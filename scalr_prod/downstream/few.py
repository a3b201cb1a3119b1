# SPDX-License-Identifier: Apache-2.0
"""Data budget of a quick verdict, which keeps it fast on large logs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from scalr_prod.downstream.scene import Scene

__all__ = ["ALL", "Few", "few_of"]

CONTEXTS: Final = 50_000
PRETRAINING_EVENTS: Final = 250_000


@dataclass(frozen=True)
class Few:
    """Upper bounds on the data that the translator uses; None: no bound.

    Attributes:
        contexts: Maximum number of contexts to sample events for.
        pretraining_events: Maximum number of source events that the sequential estimator is pretrained on. On a long source log,
            pretraining takes most of the training time.
    """

    contexts: int | None = None
    pretraining_events: int | None = None

    def learned_from(self, scene: Scene) -> Scene:
        """Return the split with translator settings that respect the budget."""
        if self.pretraining_events is None:
            return scene
        # Copied, not reloaded: the settings of an isolated home are not stored in a file.
        translator = scene.settings.translator.model_copy(update={"pretraining_events": self.pretraining_events})
        settings = scene.settings.model_copy(update={"translator": translator})
        return replace(scene, isolated=replace(scene.isolated, settings=settings))

    def told(self) -> str:
        """Describe the bounds as the end of a sentence; empty without bounds."""
        parts = {"drawn for {:,} contexts": self.contexts, "pretrained on {:,} source events": self.pretraining_events}
        return "".join(f", {text.format(most)} at most" for text, most in parts.items() if most is not None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: ``contexts_at_most``, ``pretraining_events_at_most``."""
        return {f"{name}_at_most": value for name, value in vars(self).items()}


#: No bounds.
ALL: Final = Few()


def few_of(scene: Scene) -> Few:
    """Return the budget of a split: a bound is set only where the split has more contexts or pretraining events than it allows."""
    events, settings = len(scene.source), scene.settings
    contexts = events if settings.generation.contexts == "events" else len(scene.numbering.users)
    pretraining = (
        events if settings.translator.pretraining_events is None else min(events, settings.translator.pretraining_events)
    )
    bounded = pretraining > PRETRAINING_EVENTS and "sequential" in settings.translator.estimators
    return Few(CONTEXTS if contexts > CONTEXTS else None, PRETRAINING_EVENTS if bounded else None)
