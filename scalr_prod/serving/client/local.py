# SPDX-License-Identifier: Apache-2.0
"""Scorer that runs the translator in this process, with the same module as in Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.serving.client.latency import LatencyHistogram
from scalr_prod.serving.client.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.serving.client.wire import AnsweringModule
    from scalr_prod.translator import Contexts, Samples


class LocalScorer(Scorer):
    """Call the module directly.

    Args:
        folder: The version's folder, as found by `load_version`.
        version: The version.
        threads: Groups of contexts processed in parallel on a CPU; torch is limited to one thread in this process.
        device: ``cpu``, ``cuda``, or ``auto``: the GPU if torch sees one.
        latencies: Records the duration of batches.

    Raises:
        TranslatorError: The folder has no usable model.
        SettingsError: The device is ``cuda``, and torch sees no GPU.
    """

    def __init__(
        self, folder: Path, version: int, *, threads: int, device: str = "cpu", latencies: LatencyHistogram | None = None
    ) -> None:
        import torch

        from scalr_prod.translator import TranslatorModule, resolve_device

        torch.set_num_threads(1)
        self._module: AnsweringModule = TranslatorModule.load(folder, resolve_device(device), threads, trusted=True)
        self.version = version
        self._latencies = latencies or LatencyHistogram()

    def sample(
        self, contexts: Contexts, k: int, *, temperature: float = 1.0, min_lift: float = 0.0, shortlist: int | None = None
    ) -> Samples:
        """Draw ``k`` items without replacement for each context; see `Scorer.sample`."""
        with self._latencies.timed():
            return self._module.sample(contexts, k, temperature=temperature, min_lift=min_lift, shortlist=shortlist)

    def sample_stream(
        self,
        batches: Iterable[Contexts],
        k: int,
        *,
        temperature: float = 1.0,
        min_lift: float = 0.0,
        shortlist: int | None = None,
    ) -> Iterator[Samples]:
        """Yield the answer to each batch, in order; see `Scorer.sample_stream`."""
        for contexts in batches:
            yield self.sample(contexts, k, temperature=temperature, min_lift=min_lift, shortlist=shortlist)

    def score(self, contexts: Contexts, candidates: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return P(item | context) and P(item) of given candidates; see `Scorer.score`."""
        return self._module.score(contexts, candidates)

    def close(self) -> None:
        """Do nothing: the scorer holds only memory of this process."""
