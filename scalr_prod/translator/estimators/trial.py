# SPDX-License-Identifier: Apache-2.0
"""Whether a device learns what the CPU learns: a few steps on a made log, on both."""

from __future__ import annotations

from typing import Final

import torch

from scalr_prod.translator.estimators import attention
from scalr_prod.translator.estimators.pretraining import learner_of, step

__all__ = ["tried"]

_ITEMS, _WINDOWS, _LENGTH, _DIM, _STEPS = 200, 32, 20, 16, 12
_RATE: Final = 0.02
#: How far losses may be apart, and how much of the first must be gone at the end, or nothing was learnt.
_APART: Final = 0.01
_LEARNT: Final = 0.1


def tried(device: str) -> None:
    """Learn on a device and on the CPU, and compare the losses of all steps.

    Raises:
        RuntimeError: They differ.
        Exception: Whatever torch raises.
    """
    found, expected = _losses(device), _losses("cpu")
    if not expected[-1] <= (1 - _LEARNT) * expected[0]:
        raise RuntimeError(f"the CPU has not learnt: losses {expected}")
    if not all(abs(one - other) <= _APART * other for one, other in zip(found, expected, strict=True)):  # NaN is no agreement
        raise RuntimeError(f"losses on {device}: {found}, on the CPU: {expected}")


def _losses(device: str) -> list[float]:
    """Of users who go from each item to the next."""
    generator = torch.Generator().manual_seed(0)
    begin = torch.randint(1, _ITEMS // 2, (_WINDOWS, 1), generator=generator)
    items = begin + torch.arange(_LENGTH)
    items[::2, : _LENGTH // 3] = 0
    days = torch.rand(_WINDOWS, _LENGTH, generator=generator).cumsum(1) * (items > 0)
    source = torch.randn(_ITEMS + 1, _DIM, generator=generator)
    parameters = {"source": source, **attention.initial(_DIM, generator)}
    learner = learner_of(parameters, steps=_STEPS, rate=_RATE, device=device)
    chance, popular = torch.full((_ITEMS + 1,), 1 / (_ITEMS + 1)), torch.zeros(_ITEMS + 1, device=device)
    losses = [step(learner, items, days, popular=popular, chance=chance, generator=generator) for _ in range(_STEPS)]
    return [float(loss) for loss in losses]
