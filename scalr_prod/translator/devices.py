# SPDX-License-Identifier: Apache-2.0
"""Which device the translator works on: what the setting means on this machine."""

from __future__ import annotations

import functools
import logging

from scalr_prod.errors import SettingsError

__all__ = ["described", "device_of", "learning_device"]

logger = logging.getLogger(__name__)


def device_of(setting: str) -> str:
    """``cpu`` or ``cuda``, by ``[compute] device``.

    Raises:
        SettingsError: A GPU is asked for, and there is none.
    """
    import torch

    if torch.cuda.is_available():
        return "cpu" if setting == "cpu" else "cuda"
    if setting == "cuda":
        raise SettingsError(
            f"torch {torch.__version__} sees no GPU in this process",
            where="[compute] device = cuda",
            next_step='install the CUDA build of torch and NVIDIA\'s driver, or set device = "auto"',
        )
    return "cpu"


def described(device: str) -> str:
    """A GPU by the name of its card: ``cuda (NVIDIA H100 80GB HBM3)``."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


@functools.cache
def learning_device(setting: str) -> str:
    """As `device_of`, but a GPU is named only where it has been seen to learn what the CPU learns.

    Raises:
        SettingsError: As there.
    """
    device = device_of(setting)
    if device == "cpu":
        return device
    from scalr_prod.translator.estimators.trial import tried

    try:
        tried(device)
    except Exception as error:  # of a driver or a card, or one that torch was not built for
        logger.warning(
            "training works on the CPU, in more time, since the GPU did not do in a trial what the CPU does: %s: %s",
            type(error).__name__,
            error,
        )
        return "cpu"
    return device
