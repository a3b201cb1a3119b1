# SPDX-License-Identifier: Apache-2.0
"""Signal of source histories: the information they carry about target events beyond current popularity.

It is measured when a translator is trained, on users whose target events were not used for training. The evaluation takes it from the
validation window's translator, before it fits a model on synthetic events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.evaluation.result_cache import JSON_CODEC
from scalr_prod.quality import MIN_USERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.evaluation.trial_cache import ValidationWindow

__all__ = ["describe_signal", "has_user_signal", "measure_signal"]


def measure_signal(window: ValidationWindow) -> dict[str, Any] | None:
    """Return the signal with 99 % intervals; None if there are too few users. Trains the window's translator if needed.

    Raises:
        TranslatorError: Too little training data.
    """
    key = ("signal", window.data_builder.budget.pretraining_events)
    signal: dict[str, Any] | None = window.cache.get_or_compute(
        key, lambda: window.data_builder.translation.information, JSON_CODEC
    )
    return signal


def has_user_signal(signal: Mapping[str, Any] | None) -> bool:
    """Return whether users' own source histories are more informative than others': enough users, and the 99 % interval is above 0."""
    return signal is not None and signal["users"] >= MIN_USERS and signal["own_over_others"]["ci99"][0] > 0


def describe_signal(signal: Mapping[str, Any] | None) -> str:
    """Describe the signal in a sentence."""
    if signal is None:
        return "too few users to measure it"
    parts = []
    for name, reference in (("over_popularity", "current popularity"), ("own_over_others", "other users' histories")):
        gain = signal.get(name)
        if gain:
            low, high = gain["ci99"]
            parts.append(f"{gain['nats']:+.3f} nats per event over {reference} (99 %: {low:+.3f} … {high:+.3f})")
    return "a user's source history adds " + ", and ".join(parts)
