# SPDX-License-Identifier: Apache-2.0
"""Progress of long-running work: a bar on a terminal, else a log line at intervals."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scalr_prod.core.logging import bind_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ProgressTracker", "heartbeat", "heartbeat_interval", "track"]

logger = logging.getLogger(__name__)

Pulse = TypeVar("Pulse", bound="ProgressTracker")

#: Work shorter than this logs nothing.
_FIRST_S: Final = 2.0
_EVERY_S: Final = 30.0
#: Seconds before the first line and between lines; 0: no lines.
_every: ContextVar[tuple[float, float]] = ContextVar("scalr_heartbeat_s", default=(_FIRST_S, _EVERY_S))
_around: ContextVar[ProgressTracker | None] = ContextVar("scalr_heartbeat", default=None)


class ProgressTracker:
    """Progress of one task.

    Args:
        label: Name of the task.
        total: Total units, where known.
        unit: Name of the unit; empty: an estimate of the work, of which only the share is shown.
        done: Units that were finished earlier.
    """

    def __init__(self, label: str, *, total: float | None = None, unit: str = "rows", done: float = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self._before = done, done
        self._lock = threading.Lock()
        #: Number of nested tasks that report their own progress.
        self.nested_trackers = 0
        self._started = time.monotonic()
        #: Start of the rate for estimated work: imports before the first step would distort it.
        self._first: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def advance(self, count: float = 1) -> None:
        """Add finished units; may be called from any thread."""
        with self._lock:
            self.done += count
            if self._first is None and not self.unit:
                self._first = time.monotonic(), self.done

    def snapshot(self) -> dict[str, Any]:
        """Return seconds, units done, total, share (0 to 1), units per second in this call, and seconds left; None: not known."""
        now = time.monotonic()  # read once, so that the rate matches the reported seconds
        seconds = max(now - self._started, 1e-9)
        begun, before = self._first or (self._started, self._before)
        rate = (self.done - before) / max(now - begun, 1e-9)
        share = min(self.done / self.total, 1.0) if self.total else None
        left = None if not self.total or not rate else max(self.total - self.done, 0) / rate
        return {"seconds": seconds, "done": self.done, "total": self.total, "share": share, "rate": rate, "eta_s": left}

    def log_progress(self) -> None:
        """Log a line, unless a nested task reports in more detail."""
        if self.total is None and self.nested_trackers:
            return
        known = self.snapshot()
        counted = known if self.total or self.done else {"seconds": known["seconds"]}
        if not self.unit:
            counted = {name: counted[name] for name in ("seconds", "share", "eta_s") if name in counted}
        fields = {name: _round(value) for name, value in counted.items() if value is not None}
        logger.info("%s", self.describe(known), extra=fields)

    def describe(self, snapshot: dict[str, Any]) -> str:
        """Return the text of a line, from `snapshot`."""
        line = f"{self.label}: at work for {snapshot['seconds']:.0f} s"
        if not self.unit:
            line += f", {100 * snapshot['share']:.0f} %" if self.total else ""
        elif self.total:
            line += f", {self.done:,} of {self.total:,} {self.unit} ({100 * snapshot['share']:.0f} %)"
        elif self.done:
            line += f", {self.done:,} {self.unit}"
        if snapshot["rate"] and self.unit:
            line += f", {snapshot['rate']:,.3g}/s" if snapshot["rate"] < _SLOW else f", {snapshot['rate']:,.0f}/s"
        return line + (f", about {snapshot['eta_s']:,.0f} s left" if snapshot["eta_s"] is not None else "")


_SLOW: Final = 10


@contextmanager
def track(
    label: str, *, show: bool, total: float | None = None, unit: str = "rows", done: int = 0
) -> Iterator[Callable[[float], None]]:
    """Report the progress of a task; yields a function to call with the number of units finished since the last call.

    Args:
        label: Name of the task.
        show: Show a bar on stderr; otherwise write log lines, see `heartbeat`.
        total: Total units, where known.
        unit: Name of the unit; empty: an estimate of the work, of which only the share is shown.
        done: Units that were finished earlier.
    """
    if not show:
        with heartbeat(ProgressTracker(label, total=total, unit=unit, done=done)) as pulse:
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
    with bar as progress, _nested_in(_around.get()), heartbeat_interval(0):
        task = progress.add_task(label, total=total, completed=done, rate="")
        pulse = ProgressTracker(label, total=total, unit=unit, done=done)

        def advance(count: float) -> None:
            pulse.advance(count)
            progress.update(task, advance=count, rate=f"{pulse.snapshot()['rate']:,.3g}/s")

        yield advance


@contextmanager
def heartbeat(tracker: Pulse) -> Iterator[Pulse]:
    """Log the progress of the block at the interval of `heartbeat_interval`, from a thread, so that long steps are reported too."""
    (first, every), around = _every.get(), _around.get()
    if not every:
        yield tracker
        return
    stopped = threading.Event()

    def log_lines() -> None:
        wait = min(first, every)
        while not stopped.wait(wait):
            tracker.log_progress()
            wait = every

    thread = threading.Thread(target=bind_log_context(log_lines), name="heartbeat", daemon=True)
    token = _around.set(tracker)
    with _nested_in(around):
        thread.start()
        try:
            yield tracker
        finally:
            stopped.set()
            thread.join()
            _around.reset(token)


@contextmanager
def _nested_in(around: ProgressTracker | None) -> Iterator[None]:
    """Within the block, count a nested task that reports its own progress."""
    if around is None:
        yield
        return
    around.nested_trackers += 1
    try:
        yield
    finally:
        around.nested_trackers -= 1


@contextmanager
def heartbeat_interval(seconds: float, *, with_bars: bool = False) -> Iterator[None]:
    """Set the interval between a task's log lines within the block; the first comes after 2 s. 0: no lines.

    Args:
        seconds: The interval.
        with_bars: Whether bars are shown as well; they cover short tasks, so the first line comes only after a full interval.
    """
    token = _every.set((seconds if with_bars else _FIRST_S, seconds))
    try:
        yield
    finally:
        _every.reset(token)


def _round(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")
