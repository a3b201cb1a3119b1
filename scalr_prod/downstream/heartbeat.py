# SPDX-License-Identifier: Apache-2.0
"""Tell how far an evaluation is, to whoever reads a log or looks at a terminal."""

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
    """What is being done, and how many of the models that are expected to be fitted are behind.

    A step (an arm of a family, chosen or judged) is expected to take some number of fits; whatever it takes, it ends there.
    """

    def __init__(self) -> None:
        super().__init__("starting", unit="expected fits")
        self.fits = 0
        self._end_of_step = 0

    def at(self, doing: str) -> None:
        """Something else is begun."""
        self.label = doing
        logger.info("%s: %d s, %d models fitted", doing, self.seconds, self.fits)

    def fitted(self, doing: str, count: int = 1) -> None:
        """Models were fitted."""
        self.label, self.fits = doing, self.fits + count
        self.done = max(self.done, min(self.done + count, self._end_of_step))

    def steps(self, things: Iterable[Step], fits: Callable[[Step], int]) -> Iterator[Step]:
        """The same; each of them is done with when the next one is asked for.

        Args:
            things: What is gone through.
            fits: How many models each of them is expected to take.
        """
        for thing in things:
            self._end_of_step += fits(thing)
            yield thing
            self.done = self._end_of_step

    def text(self, known: dict[str, Any]) -> str:
        """The line's text."""
        return f"still at {super().text(known)}, {self.fits} models fitted"


class _Bar(Heartbeat):
    """The same beside a bar that counts fits."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._advance = stack.enter_context(progress.counting("evaluate", show=True, unit="fits"))

    def fitted(self, doing: str, count: int = 1) -> None:
        """Models were fitted."""
        super().fitted(doing, count)
        self._advance(count)


@contextmanager
def heartbeat(*, bar: bool) -> Iterator[Heartbeat]:
    """A progress bar where there is a terminal, else a line of log from time to time, however long one step takes.

    Args:
        bar: stderr is a terminal that shows a bar.
    """
    with ExitStack() as stack:
        pulse = _Bar(stack) if bar else Heartbeat()
        yield stack.enter_context(progress.beating(pulse))
