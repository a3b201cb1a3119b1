# SPDX-License-Identifier: Apache-2.0
"""Build the GPU executor after a self-test against the reference: drivers, compilers and GPUs differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ALL_USERS, Contexts
from scalr_prod.translator.kernels.gpu.gpu_executor import GpuExecutor
from scalr_prod.translator.requests import SampleRequest
from scalr_prod.translator.sampling import sample_topk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.mixture import Mixture


#: Contexts of the test; maximum elements of a [contexts, items] tensor; relative tolerance of probabilities.
_CONTEXTS: Final = 64
_MAX_ELEMENTS: Final = 2**24
_TOLERANCE: Final = 1e-4


def build_executor(
    mixtures: Sequence[Mixture], item_words: torch.Tensor, first_seen: torch.Tensor, n_source: int
) -> GpuExecutor:
    """Build and compile the GPU executor of one module, and compare it with the reference on each parameter set.

    Args:
        mixtures: The parameter sets.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
        first_seen: int64 [N], ascending. Time at which each target item was first seen, microseconds.
        n_source: Number of source items; their indices are 1 … n_source.

    Raises:
        RuntimeError: Draws or probabilities differ from the reference.
        Exception: Any error of Triton, if compilation fails.
    """
    executor = GpuExecutor(mixtures[0].popularity, item_words)
    contexts = _contexts(first_seen.cpu().numpy(), n_source, max(1, min(_CONTEXTS, _MAX_ELEMENTS // len(item_words))))
    batch = ContextBatch.from_contexts(contexts, first_seen)
    candidates = np.zeros((len(contexts), 1), np.int32)
    for mixture in mixtures:
        component = "mixture" if executor.supports(mixture, "mixture") else "popularity"
        request = SampleRequest(4, 1.0, 0.0, component)
        draws, expected = (
            executor.draw(request, mixture, contexts, batch),
            sample_topk(request, mixture, contexts, batch, item_words, torch.float64),
        )
        is_exact = ~draws.needs_float64
        is_equal = bool((draws.items == expected.items)[is_exact].all())
        differs = (draws.probabilities - expected.probabilities).abs() > _TOLERANCE * expected.probabilities
        if not is_equal or bool(differs[is_exact].any()):
            raise RuntimeError("draws or probabilities differ from the reference")
        executor.score(mixture, contexts, batch, candidates, component)
    return executor


def _contexts(first_seen: NDArray[np.int64], n_source: int, rows: int) -> Contexts:
    """Make contexts with random histories, at times after the first item was seen."""
    random = np.random.default_rng(0)
    time = np.sort(random.integers(first_seen[0] + 1, first_seen[-1] + 2, rows))
    return Contexts(
        history_items=random.integers(0, n_source + 1, (rows, 8)).astype(np.int32),
        history_ages=np.sort(random.exponential(30, (rows, 8)).astype(np.float32))[:, ::-1].copy(),
        history_end=time,
        event_time=time,
        fold=np.full(rows, ALL_USERS, np.int32),
        noise_key=random.integers(0, 2**62, rows),
        exclude=np.zeros((rows, 1), np.int32),
    )
