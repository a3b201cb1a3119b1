# SPDX-License-Identifier: Apache-2.0
"""Which device the translator works on: what the setting means on this machine."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, TypeVar

from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["described", "device_of", "learning_device", "or_on_the_cpu", "sent"]

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

#: One piece of work at a time: each brings batches from the CPU and takes memory of the card.
_card = threading.Lock()


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


def or_on_the_cpu(device: str, work: Callable[[str], Found]) -> Found:
    """Do a piece of work on a device; anew on the CPU where torch fails on a GPU, as when its memory is full.

    Args:
        device: ``cpu``, or another one, which one piece of work at a time uses.
        work: Is told the device; gives the same, but for rounding, on any.
    """
    if device == "cpu":
        return work(device)
    try:
        with _card:
            return work(device)
    except RuntimeError as error:
        logger.warning("a part of the training goes on on the CPU, in more time: %s: %s", type(error).__name__, error)
    return work("cpu")


def sent(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; a GPU takes it while both go on."""
    import torch

    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
