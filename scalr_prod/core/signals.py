# SPDX-License-Identifier: Apache-2.0
"""Graceful shutdown on SIGTERM and Ctrl-C: the run's lease is released, a local Triton stopped, staged parts kept."""

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


_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: Cleanup time during which another SIGTERM is ignored.
_CLOSING_S: Final = 60.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop.

    Not an `Exception`, like its base, so that error handlers do not catch it.

    Attributes:
        signal: The signal.
        stage: The stage that was running, if any.
        run_id: The run, if there was one already.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")
        self.stage: str | None = None
        self.run_id: str | None = None

    @property
    def exit_code(self) -> int:
        """Exit code as shells report it: 128 plus the signal's number."""
        return 128 + self.signal

    def add_context(self, *, stage: str | None, run_id: str | None) -> Interrupted:
        """Add the stage and the run where not known yet; returns the exception itself."""
        self.stage, self.run_id = self.stage or stage, self.run_id or run_id
        return self

    @property
    def next_step(self) -> str:
        """How to continue; finished work is kept either way."""
        again = "the same command again"
        resumable = self.run_id is not None and self.stage in {"generate", "validate", "publish"}
        return f"{again}, or, as far as its publication, scalr runs resume {self.run_id}" if resumable else again

    def to_json(self) -> dict[str, str | None]:
        """Return the same fields as an error's JSON object."""
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
        return f"stopped by {self.signal.name}{during}; finished work is kept. Continue with: {self.next_step}"


class _Handler:
    """Signal handler that raises on the first signal, then lets cleanup finish.

    An exception raised in a destructor or a C callback is swallowed. So a later signal raises again after a while, and so does the next
    stage (`reraise_pending`).
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.raised_at = -math.inf
        self.number: int | None = None
        #: Number of blocks that defer signals, and the deferred signal.
        self.holding, self.held = 0, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked child, which inherited the handler
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
def graceful_shutdown() -> Iterator[None]:
    """Within the block, raise `Interrupted` in the main thread on the first SIGTERM or SIGINT, so that resources are closed.

    During cleanup another SIGTERM is ignored, and another SIGINT aborts the cleanup. A signal that was ignored before stays ignored. A
    nested block, or one outside of the main thread (the only one that may handle signals), does nothing.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: former for number, former in before.items() if former is not signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread() or any(
        isinstance(former, _Handler) for former in before.values()
    ):
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
def defer_signals() -> Iterator[None]:
    """Defer the first signal to the end of the block, so that a resource opened there is complete and can be closed.

    A second SIGINT aborts the block.
    """
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handler = next((current for current in handlers if isinstance(current, _Handler)), None)
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


def reraise_pending() -> None:
    """Raise `Interrupted` again if the first one was swallowed. Called where a stage begins, which never happens during cleanup."""
    if threading.current_thread() is not threading.main_thread():
        return
    for handler in map(signal.getsignal, _SIGNALS):
        if isinstance(handler, _Handler) and handler.number is not None and handler.process == os.getpid():
            raise Interrupted(handler.number)
