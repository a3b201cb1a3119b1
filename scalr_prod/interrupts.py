"""SIGTERM and Ctrl-C end a command in order: the run's lease is freed, a local Triton stopped, staged parts kept."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

__all__ = ["Interrupted", "ending_in_order"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    Like its base it is no `Exception`, so that no handler of errors takes it for one.

    Attributes:
        signal: Which signal.
        stage: The stage that was at work; None: none.
        run_id: The run, where there was one already.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")
        self.stage: str | None = None
        self.run_id: str | None = None

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 and the signal's number."""
        return 128 + self.signal

    def at(self, *, stage: str | None, run_id: str | None) -> Interrupted:
        """Name the stage and the run; what is named already stays. Gives the exception back."""
        self.stage, self.run_id = self.stage or stage, self.run_id or run_id
        return self

    @property
    def next_step(self) -> str:
        """How to go on: what is done is kept either way."""
        if self.run_id is not None and self.stage in {"generate", "validate", "publish"}:
            return f"scalr runs resume {self.run_id}"
        return "the same command again"

    def to_json(self) -> dict[str, str | None]:
        """The facts that an error has, as one JSON object."""
        return {
            "error": type(self).__name__,
            "found": f"stopped by {self.signal.name}",
            "where": None,
            "next_step": self.next_step,
            "stage": self.stage,
            "run_id": self.run_id,
        }

    def __str__(self) -> str:
        during = f" during {self.stage}" if self.stage else ""
        return f"stopped by {self.signal.name}{during}; what is done is kept. Go on with: {self.next_step}"


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block, the first SIGTERM or SIGINT raises `Interrupted` in the main thread, so that all that is open closes.

    While it closes, another SIGTERM changes nothing, and another SIGINT ends the process the hard way. Outside of the main
    thread, which alone may handle signals, the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
