# SPDX-License-Identifier: Apache-2.0
"""The execution on a GPU, once it has been seen to draw what the plain code draws: drivers, compilers and cards differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator.batch import Batch
from scalr_prod.translator.contexts import EVERYBODY, Contexts
from scalr_prod.translator.gpu.passes import Fused
from scalr_prod.translator.race import Race, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.mixture import Mixture

__all__ = ["tried"]

#: Contexts that both are asked about, if their whole rows are no more than so many numbers; how far probabilities may be apart.
_CONTEXTS: Final = 64
_NUMBERS: Final = 2**24
_APART: Final = 1e-4


def tried(mixtures: Sequence[Mixture], numbers: torch.Tensor, first_seen: torch.Tensor, n_source: int) -> Fused:
    """The execution for one module's tensors, compiled, and compared with the plain code on each parameter set.

    Args:
        mixtures: The parameter sets.
        numbers: int32 [N], the items' words for `noise`.
        first_seen: int64 [N], ascending: when the target items were first seen, microseconds.
        n_source: Source items; a history names them by 1 … n_source.

    Raises:
        RuntimeError: It draws something else, or its probabilities are others.
        Exception: Whatever Triton raises where it cannot compile.
    """
    fused = Fused(mixtures[0].popularity, numbers)
    contexts = _contexts(first_seen.cpu().numpy(), n_source, max(1, min(_CONTEXTS, _NUMBERS // len(numbers))))
    batch = Batch.of(contexts, first_seen)
    asked = np.zeros((len(contexts), 1), np.int32)
    for mixture in mixtures:
        member = "mixture" if fused.can(mixture, "mixture") else "popularity"
        race = Race(4, 1.0, 0.0, member)
        found, expected = (
            fused.draw(race, mixture, contexts, batch),
            run(race, mixture, contexts, batch, numbers, torch.float64),
        )
        sure = ~found.unsure
        same = bool((found.items == expected.items)[sure].all())
        apart = (found.probabilities - expected.probabilities).abs() > _APART * expected.probabilities
        if not same or bool(apart[sure].any()):
            raise RuntimeError("draws differ from the plain code's, or probabilities do")
        fused.score(mixture, contexts, batch, asked, member)
    return fused


def _contexts(first_seen: NDArray[np.int64], n_source: int, rows: int) -> Contexts:
    """Contexts of random histories, at times from the first item's on."""
    random = np.random.default_rng(0)
    time = np.sort(random.integers(first_seen[0] + 1, first_seen[-1] + 2, rows))
    return Contexts(
        history_items=random.integers(0, n_source + 1, (rows, 8)).astype(np.int32),
        history_ages=np.sort(random.exponential(30, (rows, 8)).astype(np.float32))[:, ::-1].copy(),
        history_end=time,
        event_time=time,
        fold=np.full(rows, EVERYBODY, np.int32),
        noise_key=random.integers(0, 2**62, rows),
        exclude=np.zeros((rows, 1), np.int32),
    )
