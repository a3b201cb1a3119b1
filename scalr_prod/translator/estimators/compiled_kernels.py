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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingKernels:
    """The compiled kernels: one per computation; the modules of `translator.kernels` document them."""

    sum_by_row: Callable[..., Any]
    add_by_column: Callable[..., Any]
    attention_forward: Callable[..., Any]
    attention_backward: Callable[..., Any]
    expectation_step: Callable[..., Any]
    topics_given_source: Callable[..., Any]
    targets_given_topic: Callable[..., Any]
    log_losses: Callable[..., Any]
    add_derivatives: Callable[..., Any]


@functools.cache
def load_kernels() -> TrainingKernels | None:
    """Compile one kernel as a self-test, and return all of them; None if nothing compiles."""
    try:
        from scalr_prod.translator.kernels import als, attention, logit, topic_model

        starts, zero = np.zeros(2, np.int64), np.zeros((1, 1), np.float32)
        als.sum_by_row(starts, starts[:0], zero[0], zero, zero, zero)
    except Exception as error:  # of numba
        logger.info("no compiled kernels, training is slower: %s: %s", type(error).__name__, error)
        return None
    return TrainingKernels(
        sum_by_row=als.sum_by_row,
        add_by_column=als.add_by_column,
        attention_forward=attention.attention_forward,
        attention_backward=attention.attention_backward,
        expectation_step=topic_model.expectation_step,
        topics_given_source=topic_model.topics_given_source,
        targets_given_topic=topic_model.targets_given_topic,
        log_losses=logit.log_losses,
        add_derivatives=logit.add_derivatives,
    )
