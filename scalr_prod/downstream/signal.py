# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to translate: what source histories say of target events beyond what is popular at the moment.

It is measured where a translator is trained, on users whose target events did not shape it (see `scalr_prod.translator.information`),
here by the translator of the validation window, before any model of ours is fitted.
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
    """The figures, with 99 % intervals; None where too few users could be measured. Trains the stage's translator where that is to do.

    Raises:
        TranslatorError: Too little to learn from.
    """
    asked = ("signal", stage.maker.few.pretraining_events)
    found: dict[str, Any] | None = stage.kept.once(asked, lambda: stage.maker.translation.information, FACTS)
    return found


def knows_users(found: Mapping[str, Any] | None) -> bool:
    """Whether own source histories say more of target events than others' do: the 99 % interval is above 0, over enough users for one."""
    return found is not None and found["users"] >= FEWEST_USERS and found["own_over_others"]["ci99"][0] > 0


def signal_sentence(found: Mapping[str, Any] | None) -> str:
    """The same for people."""
    if found is None:
        return "too few users to measure it"
    told = []
    for name, what in (
        ("over_popularity", "over what is popular at the moment"),
        ("own_over_others", "over others' histories"),
    ):
        part = found.get(name)
        if part:
            low, high = part["ci99"]
            told.append(f"{part['nats']:+.3f} nats an event {what} (99 %: {low:+.3f} … {high:+.3f})")
    return "a user's source history says " + ", and ".join(told)
