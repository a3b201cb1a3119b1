# SPDX-License-Identifier: Apache-2.0
"""Base of all scorers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.translator import Contexts, Samples


class Scorer(Protocol):
    """Client of one version of the translator. Close it, or use it as a context manager.

    Attributes:
        version: The version that answers.
    """

    version: int

    def sample(
        self, contexts: Contexts, k: int, *, temperature: float = 1.0, min_lift: float = 0.0, shortlist: int | None = None
    ) -> Samples:
        """Draw ``k`` items without replacement for each context, from the whole catalogue or from its shortlist.

        Args:
            contexts: B contexts.
            k: Draws per context.
            temperature: 1 draws from P; towards 0, draws become the top k.
            min_lift: A draw with P(item | context) < min_lift * P(item) becomes ``NO_ITEM``.
            shortlist: Number of items scored per context, see `TranslatorModule.sample`; None: all.

        Raises:
            ScoringError: No valid answer arrived.
        """
        return next(self.sample_stream([contexts], k, temperature=temperature, min_lift=min_lift, shortlist=shortlist))

    def sample_stream(
        self,
        batches: Iterable[Contexts],
        k: int,
        *,
        temperature: float = 1.0,
        min_lift: float = 0.0,
        shortlist: int | None = None,
    ) -> Iterator[Samples]:
        """Yield the answer to each batch, in order; batches are read from the iterable only as answers are consumed.

        Raises:
            ScoringError: No valid answer arrived.
        """

    def score(self, contexts: Contexts, candidates: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return P(item | context) and P(item) of given candidates.

        Args:
            contexts: B contexts.
            candidates: int32 [B, C], target indices.

        Returns:
            Probabilities and prior, each float32 [B, C].

        Raises:
            ScoringError: No valid answer arrived.
        """

    def close(self) -> None:
        """Release all resources. The scorer cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
