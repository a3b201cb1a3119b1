"""Tell how far an evaluation is, to whoever reads a log or looks at a terminal."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from scalr_prod import progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Heartbeat", "heartbeat"]

logger = logging.getLogger(__name__)

Step = TypeVar("Step")


class Heartbeat(progress.Heartbeat):
    """What is being done, how many models were fitted so far, and how many steps (an arm of a family, chosen or judged) are behind."""

    def __init__(self) -> None:
        super().__init__("starting", unit="steps")
        self.fits = 0

    def at(self, doing: str) -> None:
        """Something else is begun."""
        self.label = doing
        logger.info("%s: %d s, %d models fitted", doing, self.seconds, self.fits)

    def fitted(self, doing: str, count: int = 1) -> None:
        """Models were fitted."""
        self.label, self.fits = doing, self.fits + count

    def steps(self, things: Iterable[Step]) -> Iterator[Step]:
        """The same, each of which is a step when it is done with."""
        for thing in things:
            yield thing
            self.advance()

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
