# SPDX-License-Identifier: Apache-2.0
"""Progress reporting of an evaluation: a progress bar, or periodic log lines."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from scalr_prod import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Heartbeat", "heartbeat"]

logger = logging.getLogger(__name__)

Step = TypeVar("Step")


class Heartbeat(progress.Heartbeat):
    """Current task, and number of models fitted out of the expected number.

    A step (tuning or evaluating one arm of a family) has an expected number of fits. When it ends it counts as that many, whatever it took.
    """

    def __init__(self) -> None:
        super().__init__("starting", unit="expected fits")
        self.fits = 0
        self._end_of_step = 0

    def at(self, doing: str) -> None:
        """Start another task and log it."""
        self.label = doing
        logger.info("%s: %d s, %d models fitted", doing, self.seconds, self.fits)

    def fitted(self, doing: str, count: int = 1) -> None:
        """Record fitted models."""
        self.label, self.fits = doing, self.fits + count
        self.done = max(self.done, min(self.done + count, self._end_of_step))

    def steps(self, things: Iterable[Step], fits: Callable[[Step], int]) -> Iterator[Step]:
        """Yield steps; a step counts as done when the next one is requested.

        Args:
            things: The steps.
            fits: Expected number of fits of a step.
        """
        for thing in things:
            self._end_of_step += fits(thing)
            yield thing
            self.done = self._end_of_step

    def text(self, known: dict[str, Any]) -> str:
        """Return the text of a log line."""
        return f"still at {super().text(known)}, {self.fits} models fitted"


class _Bar(Heartbeat):
    """Progress that also advances a bar which counts fits."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._advance = stack.enter_context(progress.counting("evaluate", show=True, unit="fits"))

    def fitted(self, doing: str, count: int = 1) -> None:
        """Record fitted models."""
        super().fitted(doing, count)
        self._advance(count)


@contextmanager
def heartbeat(*, bar: bool) -> Iterator[Heartbeat]:
    """Report progress by a bar, or else by periodic log lines, also during long steps.

    Args:
        bar: Show a progress bar on stderr.
    """
    with ExitStack() as stack:
        reporter = _Bar(stack) if bar else Heartbeat()
        yield stack.enter_context(progress.beating(reporter))
