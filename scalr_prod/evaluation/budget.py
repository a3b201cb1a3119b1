# SPDX-License-Identifier: Apache-2.0
"""Data budget of a quick verdict, which keeps it fast on large logs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from scalr_prod.evaluation.split import EvaluationSplit

__all__ = ["UNLIMITED", "DataBudget", "budget_for"]

MAX_CONTEXTS: Final = 50_000
MAX_PRETRAINING_EVENTS: Final = 250_000


@dataclass(frozen=True)
class DataBudget:
    """Upper bounds on the data that the translator uses; None: no bound.

    Attributes:
        contexts: Maximum number of contexts to sample events for.
        pretraining_events: Maximum number of source events that the sequential estimator is pretrained on. On a long source log,
            pretraining takes most of the training time.
    """

    contexts: int | None = None
    pretraining_events: int | None = None

    def apply_to(self, split: EvaluationSplit) -> EvaluationSplit:
        """Return the split with translator settings that respect the budget."""
        if self.pretraining_events is None:
            return split
        # Copied, not reloaded: the settings of an isolated home are not stored in a file.
        translator = split.settings.translator.model_copy(update={"pretraining_events": self.pretraining_events})
        settings = split.settings.model_copy(update={"translator": translator})
        return replace(split, sandbox=replace(split.sandbox, settings=settings))

    def describe(self) -> str:
        """Describe the bounds as the end of a sentence; empty without bounds."""
        parts = {"drawn for {:,} contexts": self.contexts, "pretrained on {:,} source events": self.pretraining_events}
        return "".join(f", {text.format(most)} at most" for text, most in parts.items() if most is not None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: ``contexts_at_most``, ``pretraining_events_at_most``."""
        return {f"{name}_at_most": value for name, value in vars(self).items()}


#: No bounds.
UNLIMITED: Final = DataBudget()


def budget_for(split: EvaluationSplit) -> DataBudget:
    """Return the budget of a split: a bound is set only where the split has more contexts or pretraining events than it allows."""
    events, settings = len(split.source), split.settings
    contexts = events if settings.generation.contexts == "events" else len(split.numbering.users)
    pretraining = (
        events if settings.translator.pretraining_events is None else min(events, settings.translator.pretraining_events)
    )
    bounded = pretraining > MAX_PRETRAINING_EVENTS and "sequential" in settings.translator.estimators
    return DataBudget(MAX_CONTEXTS if contexts > MAX_CONTEXTS else None, MAX_PRETRAINING_EVENTS if bounded else None)
