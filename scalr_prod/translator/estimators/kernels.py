# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels of training, calibration and metrics. Optional: numba may be missing or may not support the machine.

Without them, tensor operations give the same results up to rounding, more slowly.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Kernels", "kernels"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels: see `fused.cells`, `attended`, `choices`, `rows`, `topics`, `newton` and `figures` of that package."""

    weighted_sums: Callable[..., Any]
    sums_by_column: Callable[..., Any]
    attended: Callable[..., Any]
    gradients: Callable[..., Any]
    chosen: Callable[..., Any]
    caught_up: Callable[..., Any]
    moved: Callable[..., Any]
    explained: Callable[..., Any]
    source_shares: Callable[..., Any]
    target_shares: Callable[..., Any]
    losses: Callable[..., Any]
    sums: Callable[..., Any]
    said: Callable[..., Any]


@functools.cache
def kernels() -> Kernels | None:
    """Compile one kernel as a self-test, and return all of them; None if nothing compiles."""
    try:
        from scalr_prod.translator.fused import attended, cells, choices, figures, newton, rows, topics

        starts, zero = np.zeros(2, np.int64), np.zeros((1, 1), np.float32)
        cells.weighted_sums(starts, starts[:0], zero[0], zero, zero, zero)
    except Exception as error:  # of numba
        logger.info("no compiled kernels, training is slower: %s: %s", type(error).__name__, error)
        return None
    return Kernels(
        weighted_sums=cells.weighted_sums,
        sums_by_column=cells.sums_by_column,
        attended=attended.attended,
        gradients=attended.gradients,
        chosen=choices.chosen,
        caught_up=rows.caught_up,
        moved=rows.moved,
        explained=topics.explained,
        source_shares=topics.source_shares,
        target_shares=topics.target_shares,
        losses=newton.losses,
        sums=newton.sums,
        said=figures.said,
    )
