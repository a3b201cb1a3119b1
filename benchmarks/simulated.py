"""A scorer that takes a given time for each context and draws at random: what a run costs around its scorer, for any number of workers.

Imported in the process that Dask's workers are forked from (`bench_workers`), it takes the place of every scorer that is opened there.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import scalr_prod.compute.worker_preload
import scalr_prod.serving.client
from scalr_prod.translator.data.contexts import Samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scalr_prod.translator.data.contexts import Contexts

#: Seconds that a context takes, and the number of target items to draw from.
SECONDS = float(os.environ.get("SCALR_BENCH_SECONDS_A_CONTEXT", "0"))
ITEMS = int(os.environ.get("SCALR_BENCH_ITEMS", "0"))


class SimulatedScorer:
    """See `scalr_prod.serving.client.Scorer`."""

    version = 1

    def sample(self, contexts: Contexts, k: int, **_: Any) -> Samples:
        """Draws by the contexts' own noise, so that a repeated task draws the same."""
        time.sleep(SECONDS * len(contexts))
        first = contexts.noise_key.astype(np.uint64)[:, None] + np.arange(k, dtype=np.uint64) * np.uint64(7_919)
        share = np.full(first.shape, 1 / ITEMS, np.float32)
        return Samples(items=(first % np.uint64(ITEMS)).astype(np.int32), probabilities=share, prior=share)

    def sample_stream(self, batches: Iterable[Contexts], k: int, **options: Any) -> Iterator[Samples]:
        """One batch after the other."""
        for batch in batches:
            yield self.sample(batch, k, **options)

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_simulated(*_: Any, **__: Any) -> SimulatedScorer:
    """In the place of `scalr_prod.serving.client.open_scorer`."""
    return SimulatedScorer()


scalr_prod.serving.client.open_scorer = open_simulated
