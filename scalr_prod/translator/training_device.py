# SPDX-License-Identifier: Apache-2.0
"""Choice of the device that the translator is trained on: a GPU only after a self-test against the CPU."""

from __future__ import annotations

import functools
import logging

from scalr_prod.translator.devices import resolve_device
from scalr_prod.translator.estimators.device_self_test import check_device_training

__all__ = ["training_device"]

logger = logging.getLogger(__name__)


@functools.cache
def training_device(setting: str) -> str:
    """Return the device for training: as `resolve_device`, but a GPU only after it passed a self-test against the CPU.

    Raises:
        SettingsError: The setting requires a GPU and there is none.
    """
    device = resolve_device(setting)
    if device == "cpu":
        return device
    try:
        check_device_training(device)
    except Exception as error:  # a driver, a card, or a GPU that torch was not built for may raise anything
        logger.warning(
            "training on the CPU, which is slower: the GPU did not reproduce the CPU's results in a self-test: %s: %s",
            type(error).__name__,
            error,
        )
        return "cpu"
    return device
