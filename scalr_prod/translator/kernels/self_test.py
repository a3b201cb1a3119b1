# SPDX-License-Identifier: Apache-2.0
"""Build the CPU executor after a self-test: compilation may fail on an unusual machine or with another numba."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ALL_USERS, Contexts
from scalr_prod.translator.kernels import compile_cache
from scalr_prod.translator.kernels.executor import FusedExecutor
from scalr_prod.translator.requests import SampleRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from scalr_prod.translator.mixture import Mixture


logger = logging.getLogger(__name__)


def build_executor(mixtures: Sequence[Mixture], item_words: torch.Tensor, first_seen: torch.Tensor) -> FusedExecutor:
    """Build the CPU executor of one module, and compile everything that its parameter sets run.

    Args:
        mixtures: The parameter sets.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
        first_seen: int64 [N], ascending. Time at which each target item was first seen, microseconds.

    Raises:
        Exception: Any error of numba, if compilation fails also with an empty cache.
    """
    executor = FusedExecutor(mixtures[0].popularity, item_words)
    try:
        _try_executor(executor, mixtures, first_seen)
    except Exception as error:  # a corrupt cache file may raise anything
        logger.info("clearing the cache of compiled code, which failed to run: %r", error)
        compile_cache.clear()
        _try_executor(executor, mixtures, first_seen)
    return executor


def _try_executor(executor: FusedExecutor, mixtures: Sequence[Mixture], first_seen: torch.Tensor) -> None:
    """Draw and score for one context with an empty history, at a time with one eligible item."""
    context = Contexts(
        history_items=np.zeros((1, 1), np.int32),
        history_ages=np.zeros((1, 1), np.float32),
        history_end=np.zeros(1, np.int64),
        event_time=first_seen[:1].numpy() + 1,
        fold=np.full(1, ALL_USERS, np.int32),
        noise_key=np.zeros(1, np.int64),
        exclude=np.empty((1, 0), np.int32),
    )
    batch = ContextBatch.from_contexts(context, first_seen)
    for mixture in mixtures:
        component = "mixture" if executor.supports(mixture, "mixture") else "popularity"
        executor.draw(SampleRequest(1, 1.0, 0.0, component), mixture, context, batch)
        executor.score(mixture, context, batch, np.zeros((1, 1), np.int32), component)
