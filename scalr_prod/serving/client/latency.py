# SPDX-License-Identifier: Apache-2.0
"""Latency histograms, counted in the client process and stored with its output."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


#: Upper bounds of the buckets, in seconds; a last bucket is unbounded.
BUCKET_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class LatencyHistogram:
    """Count answered requests by latency. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._counts, self._seconds = [0] * (len(BUCKET_BOUNDS_S) + 1), 0.0

    def observe(self, seconds: float) -> None:
        """Add one answer."""
        with self._lock:
            self._counts[bisect_left(BUCKET_BOUNDS_S, seconds)] += 1
            self._seconds += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's duration as one answer, unless it raises."""
        started = time.perf_counter()
        yield
        self.observe(time.perf_counter() - started)

    def drain(self) -> dict[str, Any]:
        """Return and reset the counts, as JSON values: ``bounds`` [B], ``counts`` [B + 1] by bucket, total ``seconds``."""
        with self._lock:
            counts = {"bounds": list(BUCKET_BOUNDS_S), "counts": self._counts, "seconds": round(self._seconds, 6)}
            self._clear()
        return counts


def merge_histograms(histograms: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge several histograms; those of an older package version, with other bounds, are ignored."""
    matching = [histogram for histogram in histograms if tuple(histogram["bounds"]) == BUCKET_BOUNDS_S]
    counts = [sum(column) for column in zip(*(histogram["counts"] for histogram in matching), strict=True)] or [0] * (
        len(BUCKET_BOUNDS_S) + 1
    )
    return {"bounds": list(BUCKET_BOUNDS_S), "counts": counts, "seconds": sum(histogram["seconds"] for histogram in matching)}
