# SPDX-License-Identifier: Apache-2.0
"""Choice of the device for training: a GPU is used only if a few training steps on it reproduce the losses of the CPU."""

from __future__ import annotations

import functools
import logging
from typing import Final

import torch

from scalr_prod.translator.devices import resolve_device
from scalr_prod.translator.estimators import attention
from scalr_prod.translator.estimators.pretraining import make_optimizer, train_step

logger = logging.getLogger(__name__)

#: Size of the synthetic log, and number of training steps.
_ITEMS, _WINDOWS, _LENGTH, _DIM, _STEPS = 200, 32, 20, 16, 12
_RATE: Final = 0.02
#: Maximum relative difference of losses, and minimum decrease of the loss: with less, nothing was learnt.
_TOLERANCE: Final = 0.01
_MIN_DECREASE: Final = 0.1


@functools.cache
def training_device(setting: str) -> str:
    """Return the device for training: as `resolve_device`, but a GPU only if it passes `check_device_training`.

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
