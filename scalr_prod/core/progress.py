# SPDX-License-Identifier: Apache-2.0
"""Progress of long-running work: a bar on a terminal, else a log line at intervals."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from scalr_prod.core.logging import bind_log_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


logger = logging.getLogger(__name__)

Tracker = TypeVar("Tracker", bound="ProgressTracker")

#: Seconds between log lines; 0: no lines. Work that takes less logs nothing.
_interval_s: ContextVar[float] = ContextVar("scalr_heartbeat_s", default=60.0)
#: What the running heartbeat may log: one function per nested task, the innermost last.
_log_functions: ContextVar[list[Callable[[], None]] | None] = ContextVar("scalr_heartbeat", default=None)

#: The time left is estimated once this share of the work was done, for this many seconds, at a rate that varied by less than this
#: factor: earlier estimates may be wrong by orders of magnitude.
_ETA_MIN_SHARE: Final = 0.1
_ETA_MIN_S: Final = 5.0
_ETA_MAX_FACTOR: Final = 2.0


class _Point(NamedTuple):
    """Units done at a time."""

    time: float
    done: float

    def rate_to(self, later: _Point) -> float:
        """Return units per second until a later point."""
        return (later.done - self.done) / max(later.time - self.time, 1e-9)


class _RateHistory:
    """Rate of a task, overall and of late, in constant memory."""

    def __init__(self, start: _Point) -> None:
        self.start = self.latest = start
        #: Per axis (time, units): a point before which at most half of the progress so far lies, and the next such point.
        self._halves = [[start, start], [start, start]]

    def add(self, point: _Point) -> None:
        """Add a point; times ascend."""
        self.latest = point
        for axis, half in enumerate(self._halves):
            if point[axis] - self.start[axis] >= 2 * (half[1][axis] - self.start[axis]):
                half[:] = [half[1], point]

    def estimate_seconds_left(self, total: float, now: float) -> float | None:
        """Return the seconds left; None while an estimate could be wrong by more than a factor of two."""
        start, latest = self.start, self.latest
        if latest.time - start.time < _ETA_MIN_S or latest.done - start.done < _ETA_MIN_SHARE * (total - start.done):
            return None
        by_time, by_units = (half[0] for half in self._halves)
        stalled = by_time.rate_to(_Point(now, latest.done))  # a long step may have been running since the latest point
        rates = start.rate_to(latest), by_time.rate_to(latest), by_units.rate_to(latest), stalled
        if max(rates) > _ETA_MAX_FACTOR * min(rates):
            return None
        left = max(total - latest.done, 0) / by_time.rate_to(latest) - (now - latest.time)
        return left if left > 0 or latest.done >= total else None


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
        self.done = done
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._rates = _RateHistory(_Point(self._started, done))
        #: Estimated work starts with its first step: imports before it would distort the rate.
        self._awaits_first_step = not unit

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def advance(self, count: float = 1) -> None:
        """Add finished units; may be called from any thread."""
        with self._lock:
            self.done += count
            self._observe(time.monotonic())

    def _observe(self, now: float) -> None:
        if self.done == self._rates.latest.done:
            return
        point = _Point(now, self.done)
        if self._awaits_first_step:
            self._awaits_first_step = False
            self._rates = _RateHistory(point)
        else:
            self._rates.add(point)

    def snapshot(self) -> dict[str, Any]:
        """Return seconds, units done, total, share (0 to 1), units per second in this call, and seconds left; None: not known."""
        with self._lock:
            now = time.monotonic()  # read once, so that the rate matches the reported seconds
            self._observe(now)
            seconds = max(now - self._started, 1e-9)
            rate = self._rates.start.rate_to(_Point(now, self.done))
            share = min(self.done / self.total, 1.0) if self.total else None
            eta = self._rates.estimate_seconds_left(self.total, now) if self.total else None
        return {"seconds": seconds, "done": self.done, "total": self.total, "share": share, "rate": rate, "eta_s": eta}

    def log_progress(self) -> None:
        """Log a line."""
        known = self.snapshot()
        counted = known if self.total or self.done else {"seconds": known["seconds"]}
        if not self.unit:
            counted = {name: counted[name] for name in ("seconds", "share", "eta_s") if name in counted}
        fields = {name: _round(value) for name, value in counted.items() if value is not None}
        logger.info("%s", self.describe(known), extra=fields)

    def describe(self, snapshot: dict[str, Any]) -> str:
        """Return the text of a line, from `snapshot`."""
        done = ""
        if not self.unit:
            done = f"{100 * snapshot['share']:.0f} %" if self.total else ""
        elif self.total:
            done = f"{self.done:,} of {self.total:,} {self.unit} ({100 * snapshot['share']:.0f} %)"
        elif self.done:
            done = f"{self.done:,} {self.unit}"
        line = f"{self.label}: {done} in {snapshot['seconds']:.0f} s" if done else f"{self.label}: {snapshot['seconds']:.0f} s"
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
        with heartbeat(ProgressTracker(label, total=total, unit=unit, done=done)) as tracker:
            yield tracker.advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    counted = "{task.completed:,.0f}" + (f" of {total:,}" if total else "") + f" {unit}, {{task.fields[rate]}}"
    if not unit:
        counted = "{task.percentage:.0f} %"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(counted),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with bar as progress, _nested(_log_functions.get(), lambda: None), heartbeat_interval(0):
        task = progress.add_task(label, total=total, completed=done, rate="", left="")
        tracker = ProgressTracker(label, total=total, unit=unit, done=done)

        def advance(count: float) -> None:
            tracker.advance(count)
            known = tracker.snapshot()
            left = "" if known["eta_s"] is None else f"{timedelta(seconds=round(known['eta_s']))} left"
            progress.update(task, advance=count, rate=f"{known['rate']:,.3g}/s", left=left)

        yield advance


@contextmanager
def heartbeat(tracker: Tracker) -> Iterator[Tracker]:
    """Log the progress of the block at the interval of `heartbeat_interval`, from a thread, so that long steps are reported too.

    Of nested blocks only the innermost is logged, at the interval of the outermost.
    """
    interval_s, log_functions = _interval_s.get(), _log_functions.get()
    if not interval_s:
        yield tracker
        return
    log = bind_log_context(tracker.log_progress)
    if log_functions is not None:
        with _nested(log_functions, log):
            yield tracker
        return
    functions = [log]

    def log_innermost() -> None:
        functions[-1]()

    token = _log_functions.set(functions)
    try:
        with repeated(log_innermost, interval_s, name="heartbeat"):
            yield tracker
    finally:
        _log_functions.reset(token)


@contextmanager
def repeated(work: Callable[[], object], interval_s: float, *, name: str) -> Iterator[None]:
    """Call ``work`` at an interval within the block, from a thread of this name with the log context of this one."""
    stopped = threading.Event()

    def call_until_stopped() -> None:
        while not stopped.wait(interval_s):
            work()

    thread = threading.Thread(target=bind_log_context(call_until_stopped), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextmanager
def _nested(functions: list[Callable[[], None]] | None, log: Callable[[], None]) -> Iterator[None]:
    """Within the block, let an enclosing heartbeat log a nested task instead."""
    if functions is None:
        yield
        return
    functions.append(log)
    try:
        yield
    finally:
        functions.remove(log)


@contextmanager
def heartbeat_interval(seconds: float) -> Iterator[None]:
    """Set the interval between a task's log lines within the block; the first comes after one interval. 0: no lines."""
    token = _interval_s.set(seconds)
    try:
        yield
    finally:
        _interval_s.reset(token)


def _round(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")
