# SPDX-License-Identifier: Apache-2.0
"""Compiled parts of fits, where they can be had: numba may be missing, or not know the machine.

Tensor operations give the same to the bit, in more time.
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
    """See `fused.cells` and `fused.ages`."""

    weighted_sums: Callable[..., Any]
    biased: Callable[..., Any]
    gradients: Callable[..., Any]


@functools.cache
def kernels() -> Kernels | None:
    """Those of this process, once one of them has been seen to run; None where nothing compiles."""
    try:
        from scalr_prod.translator.fused import ages, cells

        none, empty = np.zeros(2, np.int64), np.zeros((1, 1), np.float32)
        cells.weighted_sums(none, none[:0], empty[0], empty, empty, empty)
    except Exception as error:  # of numba
        logger.info("estimators are fitted without compiled code, in more time: %s: %s", type(error).__name__, error)
        return None
    return Kernels(cells.weighted_sums, ages.biased, ages.gradients)
