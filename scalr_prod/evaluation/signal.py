# SPDX-License-Identifier: Apache-2.0
"""Signal of source histories: the information they carry about target events beyond current popularity.

It is measured when a translator is trained, on users whose target events were not used for training. The evaluation takes it from the
validation window's translator, and a quick verdict from the test cutoff's, before it fits a model on synthetic events.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.evaluation.result_cache import JSON_CODEC
from scalr_prod.quality import MIN_USERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.evaluation.arms import ArmDataBuilder
    from scalr_prod.evaluation.result_cache import ResultCache


#: A gain in nats per event below this is too small to rank by.
_NEGLIGIBLE_NATS: Final = 0.02


def measure_signal(cache: ResultCache, data_builder: ArmDataBuilder) -> dict[str, Any] | None:
    """Return the signal with 99 % intervals; None if there are too few users. Trains the split's translator if needed.

    Raises:
        TranslatorError: Too little training data.
    """
    signal: dict[str, Any] | None = cache.get_or_compute(("signal",), lambda: data_builder.translation.information, JSON_CODEC)
    return signal


class Signal(Enum):
    """Whether users' own source histories predict their target events better than other users' histories do."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCLEAR = "unclear"


def classify_signal(signal: Mapping[str, Any] | None) -> Signal:
    """Return ``PRESENT`` if the 99 % interval of own over others' is above 0, ``ABSENT`` if it lies below a negligible gain.

    It is ``UNCLEAR`` in between, and with too few users.
    """
    if signal is None or signal["users"] < MIN_USERS:
        return Signal.UNCLEAR
    low, high = signal["own_over_others"]["ci99"]
    if low > 0:
        return Signal.PRESENT
    return Signal.ABSENT if high < _NEGLIGIBLE_NATS else Signal.UNCLEAR


def describe_signal(signal: Mapping[str, Any] | None) -> str:
    """Describe the signal in a sentence."""
    if signal is None:
        return "too few users to measure it"
    parts = []
    for name, reference in (("over_popularity", "current popularity"), ("own_over_others", "other users' histories")):
        gain = signal.get(name)
        if gain:
            low, high = gain["ci99"]
            parts.append(f"{gain['nats']:+z.3f} nats per event over {reference} (99 %: {low:+z.3f} … {high:+z.3f})")
    return "a user's source history adds " + ", and ".join(parts)
