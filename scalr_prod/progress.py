# SPDX-License-Identifier: Apache-2.0
"""Work that counts rows, events or fits tells how far it is: a bar on a terminal, else a line of log from time to time."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scalr_prod.logs import in_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Heartbeat", "beating", "counting", "lines_every"]

logger = logging.getLogger(__name__)

Pulse = TypeVar("Pulse", bound="Heartbeat")

#: What takes less than this needs no line.
_FIRST_S: Final = 2.0
_EVERY_S: Final = 30.0
#: Seconds before the first line, and between two lines; 0: none.
_every: ContextVar[tuple[float, float]] = ContextVar("scalr_heartbeat_s", default=(_FIRST_S, _EVERY_S))
_around: ContextVar[Heartbeat | None] = ContextVar("scalr_heartbeat", default=None)


class Heartbeat:
    """How far one piece of work is.

    Args:
        label: What is being done.
        total: Units in all, where known.
        unit: What is counted; empty: work as expected beforehand, of which the share alone says something.
        done: Units that were done before.
    """

    def __init__(self, label: str, *, total: float | None = None, unit: str = "rows", done: float = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self._before = done, done
        self._lock = threading.Lock()
        #: Pieces of work within this one that tell themselves how far they are.
        self.within = 0
        self._started = time.monotonic()
        #: Where the rate of expected work is reckoned from: what is imported before the first step says nothing of the next ones.
        self._first: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def advance(self, count: float = 1) -> None:
        """So many more units are done; called from any thread."""
        with self._lock:
            self.done += count
            if self._first is None and not self.unit:
                self._first = time.monotonic(), self.done

    def figures(self) -> dict[str, Any]:
        """Seconds, units done and in all, their share (0 to 1), units a second of this call, seconds left; None: not known."""
        now = time.monotonic()  # read once: the rate is that of the seconds that are told
        seconds = max(now - self._started, 1e-9)
        begun, before = self._first or (self._started, self._before)
        rate = (self.done - before) / max(now - begun, 1e-9)
        share = min(self.done / self.total, 1.0) if self.total else None
        left = None if not self.total or not rate else max(self.total - self.done, 0) / rate
        return {"seconds": seconds, "done": self.done, "total": self.total, "share": share, "rate": rate, "eta_s": left}

    def beat(self) -> None:
        """Write the line; not where work within this one says more."""
        if self.total is None and self.within:
            return
        known = self.figures()
        counted = known if self.total or self.done else {"seconds": known["seconds"]}
        if not self.unit:
            counted = {name: counted[name] for name in ("seconds", "share", "eta_s") if name in counted}
        told = {name: _round(value) for name, value in counted.items() if value is not None}
        logger.info("%s", self.text(known), extra=told)

    def text(self, known: dict[str, Any]) -> str:
        """The line's text, of `figures`."""
        line = f"{self.label}: at work for {known['seconds']:.0f} s"
        if not self.unit:
            line += f", {100 * known['share']:.0f} %" if self.total else ""
        elif self.total:
            line += f", {self.done:,} of {self.total:,} {self.unit} ({100 * known['share']:.0f} %)"
        elif self.done:
            line += f", {self.done:,} {self.unit}"
        if known["rate"] and self.unit:
            line += f", {known['rate']:,.3g}/s" if known["rate"] < _SLOW else f", {known['rate']:,.0f}/s"
        return line + (f", about {known['eta_s']:,.0f} s left" if known["eta_s"] is not None else "")


_SLOW: Final = 10


@contextmanager
def counting(
    label: str, *, show: bool, total: float | None = None, unit: str = "rows", done: int = 0
) -> Iterator[Callable[[float], None]]:
    """Tell how far a piece of work is; gives a function to call with the number of units done since the last call.

    Args:
        label: What is being done.
        show: Show a bar on stderr; otherwise lines of log tell it, see `beating`.
        total: Units in all, where known.
        unit: What is counted; empty: work as expected beforehand, of which the share alone says something.
        done: Units that were done before.
    """
    if not show:
        with beating(Heartbeat(label, total=total, unit=unit, done=done)) as pulse:
            yield pulse.advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    counted = "{task.completed:,.0f}" + (f" of {total:,}" if total else "") + f" {unit}, {{task.fields[rate]}}"
    if not unit:
        counted = "{task.percentage:.0f} %"
    remaining = (TextColumn("left"), TimeRemainingColumn()) if total else ()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn(counted), TimeElapsedColumn(), *remaining)
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with bar as progress, _told_by_another(_around.get()), lines_every(0):
        task = progress.add_task(label, total=total, completed=done, rate="")
        pulse = Heartbeat(label, total=total, unit=unit, done=done)

        def advance(count: float) -> None:
            pulse.advance(count)
            progress.update(task, advance=count, rate=f"{pulse.figures()['rate']:,.3g}/s")

        yield advance


@contextmanager
def beating(pulse: Pulse) -> Iterator[Pulse]:
    """Write lines of log on the work in the block as often as `lines_every` says, however long one step takes."""
    (first, every), around = _every.get(), _around.get()
    if not every:
        yield pulse
        return
    stopped = threading.Event()

    def beats() -> None:
        wait = min(first, every)
        while not stopped.wait(wait):
            pulse.beat()
            wait = every

    thread = threading.Thread(target=in_context(beats), name="heartbeat", daemon=True)
    token = _around.set(pulse)
    with _told_by_another(around):
        thread.start()
        try:
            yield pulse
        finally:
            stopped.set()
            thread.join()
            _around.reset(token)


@contextmanager
def _told_by_another(around: Heartbeat | None) -> Iterator[None]:
    """Within the block, a bar or other lines tell how far a piece of work is."""
    if around is None:
        yield
        return
    around.within += 1
    try:
        yield
    finally:
        around.within -= 1


@contextmanager
def lines_every(seconds: float, *, bars: bool = False) -> Iterator[None]:
    """Within the block, lines on the same piece of work are so many seconds apart, the first after 2 s; 0: there are none.

    Args:
        seconds: How many.
        bars: Where bars are shown, too, they tell of short work: the first line comes as late as the others.
    """
    token = _every.set((seconds if bars else _FIRST_S, seconds))
    try:
        yield
    finally:
        _every.reset(token)


def _round(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")
