# SPDX-License-Identifier: Apache-2.0
"""Compiled parts of fits, of the calibration and of figures, where they can be had: numba may be missing, or not know the machine.

Tensor operations give the same but for rounding, in more time.
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
    """See `fused.cells`, `fused.attended`, `fused.choices`, `fused.rows`, `fused.topics`, `fused.newton` and `fused.figures`."""

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
    """Those of this process, once one of them has been seen to run; None where nothing compiles."""
    try:
        from scalr_prod.translator.fused import attended, cells, choices, figures, newton, rows, topics

        none, empty = np.zeros(2, np.int64), np.zeros((1, 1), np.float32)
        cells.weighted_sums(none, none[:0], empty[0], empty, empty, empty)
    except Exception as error:  # of numba
        logger.info("estimators are fitted without compiled code, in more time: %s: %s", type(error).__name__, error)
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
