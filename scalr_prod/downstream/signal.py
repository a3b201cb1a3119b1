# SPDX-License-Identifier: Apache-2.0
"""Signal of source histories: the information they carry about target events beyond current popularity.

It is measured when a translator is trained, on users whose target events were not used for training. The evaluation takes it from the
validation window's translator, before it fits a model on synthetic events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.downstream.kept import FACTS
from scalr_prod.quality.information import FEWEST_USERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.downstream.trials import Stage

__all__ = ["knows_users", "signal_of", "signal_sentence"]


def signal_of(stage: Stage) -> dict[str, Any] | None:
    """Return the signal with 99 % intervals; None if there are too few users. Trains the window's translator if needed.

    Raises:
        TranslatorError: Too little training data.
    """
    key = ("signal", stage.maker.few.pretraining_events)
    found: dict[str, Any] | None = stage.kept.once(key, lambda: stage.maker.translation.information, FACTS)
    return found


def knows_users(found: Mapping[str, Any] | None) -> bool:
    """Return whether users' own source histories are more informative than others': enough users, and the 99 % interval is above 0."""
    return found is not None and found["users"] >= FEWEST_USERS and found["own_over_others"]["ci99"][0] > 0


def signal_sentence(found: Mapping[str, Any] | None) -> str:
    """Describe the signal in a sentence."""
    if found is None:
        return "too few users to measure it"
    parts = []
    for name, what in (
        ("over_popularity", "over what is popular at the moment"),
        ("own_over_others", "over others' histories"),
    ):
        part = found.get(name)
        if part:
            low, high = part["ci99"]
            parts.append(f"{part['nats']:+.3f} nats an event {what} (99 %: {low:+.3f} … {high:+.3f})")
    return "a user's source history says " + ", and ".join(parts)
