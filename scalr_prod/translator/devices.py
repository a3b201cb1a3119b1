# SPDX-License-Identifier: Apache-2.0
"""Choice of the device on which the translator runs, and fallback to the CPU. `training_device` chooses the device for training."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, TypeVar

from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: One task at a time on the GPU, since each copies batches from the CPU and allocates device memory.
_gpu_lock = threading.Lock()


def resolve_device(setting: str) -> str:
    """Return ``cpu`` or ``cuda`` for the setting ``[compute] device``.

    Raises:
        SettingsError: The setting requires a GPU and there is none.
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


def describe_device(device: str) -> str:
    """Return a GPU's device name and model: ``cuda (NVIDIA H100 80GB HBM3)``."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def with_cpu_fallback(device: str, work: Callable[[str], Result]) -> Result:
    """Run a task on a device, and again on the CPU if torch fails on the GPU, for example when it is out of memory.

    Args:
        device: ``cpu``, or a GPU, which one task at a time uses.
        work: Task that takes the device. Its result must not depend on the device, except for rounding.

    Returns:
        The task's result.
    """
    if device == "cpu":
        return work(device)
    try:
        with _gpu_lock:
            return work(device)
    except RuntimeError as error:
        logger.warning("a part of the training continues on the CPU, which is slower: %s: %s", type(error).__name__, error)
    return work("cpu")


def to_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device; the copy to a GPU is asynchronous, from pinned memory."""
    import torch

    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
