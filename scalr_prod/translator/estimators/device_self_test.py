# SPDX-License-Identifier: Apache-2.0
"""Self-test of training on a device: a few steps on a synthetic log must give the losses of the CPU."""

from __future__ import annotations

from typing import Final

import torch

from scalr_prod.translator.estimators import attention
from scalr_prod.translator.estimators.pretraining import make_optimizer, train_step

__all__ = ["check_device_training"]

_ITEMS, _WINDOWS, _LENGTH, _DIM, _STEPS = 200, 32, 20, 16, 12
_RATE: Final = 0.02
#: Maximum relative difference of losses, and minimum decrease of the loss: with less, nothing was learnt.
_TOLERANCE: Final = 0.01
_MIN_DECREASE: Final = 0.1


def check_device_training(device: str) -> None:
    """Train on a device and on the CPU, and compare the losses of all steps.

    Raises:
        RuntimeError: The losses differ, or the CPU did not learn.
        Exception: Any error of torch.
    """
    found, expected = _losses(device), _losses("cpu")
    if not expected[-1] <= (1 - _MIN_DECREASE) * expected[0]:
        raise RuntimeError(f"the loss did not decrease on the CPU: losses {expected}")
    if not all(abs(a - b) <= _TOLERANCE * b for a, b in zip(found, expected, strict=True)):  # false for NaN
        raise RuntimeError(f"losses on {device}: {found}, on the CPU: {expected}")


def _losses(device: str) -> list[float]:
    """Train on users who step from each item to the next, and return all losses."""
    generator = torch.Generator().manual_seed(0)
    begin = torch.randint(1, _ITEMS // 2, (_WINDOWS, 1), generator=generator)
    items = begin + torch.arange(_LENGTH)
    items[::2, : _LENGTH // 3] = 0
    days = torch.rand(_WINDOWS, _LENGTH, generator=generator).cumsum(1) * (items > 0)
    source = torch.randn(_ITEMS + 1, _DIM, generator=generator)
    parameters = {"source": source, **attention.initial_weights(_DIM, generator)}
    learner = make_optimizer(parameters, steps=_STEPS, rate=_RATE, device=device)
    chance, popular = torch.full((_ITEMS + 1,), 1 / (_ITEMS + 1)), torch.zeros(_ITEMS + 1, device=device)
    losses = [train_step(learner, items, days, popular=popular, chance=chance, generator=generator) for _ in range(_STEPS)]
    return [float(loss) for loss in losses]
