"""Tell what is going on, at least every half minute, to whoever reads a log."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scalr_prod.progress import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Heartbeat", "heartbeat"]

logger = logging.getLogger(__name__)

_EVERY_S: Final = 20.0


class Heartbeat:
    """What is being done, and how many models were fitted so far."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.doing, self.fits, self.started = "starting", 0, time.monotonic()
        self._advance = advance

    def at(self, doing: str) -> None:
        """Something else is begun."""
        self.doing = doing
        logger.info("%s: %d s, %d models fitted", doing, time.monotonic() - self.started, self.fits)

    def fitted(self, doing: str, count: int = 1) -> None:
        """Models were fitted."""
        self.doing, self.fits = doing, self.fits + count
        self._advance(count)

    def beat(self) -> None:
        """A line on what goes on."""
        logger.info("still at %s: %d s, %d models fitted", self.doing, time.monotonic() - self.started, self.fits)


@contextmanager
def heartbeat(*, bar: bool, every_s: float = _EVERY_S) -> Iterator[Heartbeat]:
    """A progress bar where there is a terminal, else a line of log from time to time, however long one step takes.

    Args:
        bar: stderr is a terminal that shows a bar.
        every_s: Seconds between two lines.
    """
    stopped = threading.Event()
    with counting("evaluate", show=bar, unit="fits") as advance:
        pulse = Heartbeat(advance)

        def beats() -> None:
            while not stopped.wait(every_s):
                pulse.beat()

        thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
        if not bar:
            thread.start()
        try:
            yield pulse
        finally:
            stopped.set()
            if not bar:
                thread.join()
