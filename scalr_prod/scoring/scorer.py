# SPDX-License-Identifier: Apache-2.0
"""What every scorer can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts, Samples

__all__ = ["Scorer"]


class Scorer(Protocol):
    """One version of the translator, to be asked. Close it, or use it as a context manager."""

    @property
    def version(self) -> int:
        """The version that answers."""

    def sample(
        self, contexts: Contexts, k: int, *, temperature: float = 1.0, min_lift: float = 0.0, shortlist: int | None = None
    ) -> Samples:
        """Draw ``k`` items without replacement for each context, from the whole catalogue or from its shortlist.

        Args:
            contexts: B contexts.
            k: Draws per context.
            temperature: 1 draws from P; towards 0 it becomes the top k.
            min_lift: A draw with P(item | context) < min_lift * P(item) becomes ``NO_ITEM``.
            shortlist: Items that are scored for a context, see `TranslatorModule.sample`; None: all.

        Raises:
            ScoringError: No valid answer could be had.
        """

    def sample_stream(
        self,
        batches: Iterable[Contexts],
        k: int,
        *,
        temperature: float = 1.0,
        min_lift: float = 0.0,
        shortlist: int | None = None,
    ) -> Iterator[Samples]:
        """The answer to each batch, in order; batches are taken from the iterable only as answers are asked for.

        Raises:
            ScoringError: No valid answer could be had.
        """

    def score(self, contexts: Contexts, candidates: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """P(item | context) and P(item) of named candidates.

        Args:
            contexts: B contexts.
            candidates: int32 [B, C], target indices.

        Returns:
            Probabilities and prior, each float32 [B, C].

        Raises:
            ScoringError: No valid answer could be had.
        """

    def close(self) -> None:
        """Give back what it holds. It cannot be asked afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
