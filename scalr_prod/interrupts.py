# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C end a command in order: the run's lease is freed, a local Triton stopped, staged parts kept."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Interrupted", "ending_in_order", "held_back", "raise_what_was_lost"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: For so long, what is open may close undisturbed by another SIGTERM.
_CLOSING_S: Final = 60.0


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
        again = "the same command again"
        resumable = self.run_id is not None and self.stage in {"generate", "validate", "publish"}
        return f"{again}, or, as far as its publication, scalr runs resume {self.run_id}" if resumable else again

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


class _Handler:
    """Raises on the first signal; then lets what is open close.

    What is raised in a destructor or a callback of C goes nowhere, so that after a while a signal raises again, and so does the
    next stage (`raise_what_was_lost`).
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.raised_at = -math.inf
        self.number: int | None = None
        #: How many blocks hold a signal back, and the one that they hold.
        self.holding, self.held = 0, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a fork of ours, which nobody has told what to do
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.holding and not self.held:
            self.held = number
            return
        closing = self.held or time.monotonic() - self.raised_at < _CLOSING_S
        if closing and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if not closing:
            self.raised_at, self.number = time.monotonic(), number
            raise Interrupted(number)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block, the first SIGTERM or SIGINT raises `Interrupted` in the main thread, so that all that is open closes.

    While it closes, another SIGTERM changes nothing, and another SIGINT breaks off the closing. A signal that was ignored before
    stays so. Outside of the main thread, which alone may handle signals, and within such a block, the block changes nothing.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: found for number, found in before.items() if found is not signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread() or any(isinstance(one, _Handler) for one in before.values()):
        yield
        return
    handler = _Handler()
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in ours.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Within the block, the first signal is kept, and raises at its end: what is begun there is opened whole, and closes in order.

    A second SIGINT breaks the block off.
    """
    found = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handler = next((one for one in found if isinstance(one, _Handler)), None)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler.holding += 1
    try:
        yield
    finally:
        handler.holding -= 1
        held, handler.held = handler.held, handler.held if handler.holding else 0
    if held and not handler.holding:
        handler(held, None)


def raise_what_was_lost() -> None:
    """Raise `Interrupted` once more where a signal's own went nowhere. Called where a stage begins: none does while things close."""
    if threading.current_thread() is not threading.main_thread():
        return
    for handler in map(signal.getsignal, _SIGNALS):
        if isinstance(handler, _Handler) and handler.number is not None and handler.process == os.getpid():
            raise Interrupted(handler.number)
