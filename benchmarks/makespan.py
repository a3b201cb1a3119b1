"""How long a number of workers, each with a core of its own, would take for tasks whose processor time is known."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Caller:
    """What one caller asked for, one after the other: tasks of a round, (name, seconds) each, or callers side by side."""

    steps: list[list[tuple[str, float]] | list[Caller]] = field(default_factory=list)

    def tasks(self) -> Iterator[tuple[str, float]]:
        for step in self.steps:
            for part in step:
                if isinstance(part, Caller):
                    yield from part.tasks()
                else:
                    yield part


def makespan(caller: Caller, workers: int) -> float:
    """Seconds until so many workers have done all tasks, given out in the order in which callers ask for them."""
    queue: deque[tuple[float, _Open]] = deque()
    running: list[tuple[float, int, _Open]] = []
    number = itertools.count()
    now = 0.0
    _Open(caller, None).go_on(queue)
    while queue or running:
        while queue and len(running) < workers:
            seconds, owner = queue.popleft()
            heapq.heappush(running, (now + seconds, next(number), owner))
        now, _, owner = heapq.heappop(running)
        owner.ended(queue)
    return now


class _Open:
    """A caller that has not returned, and who waits for it."""

    def __init__(self, caller: Caller, parent: _Open | None) -> None:
        self._steps, self._parent, self._pending = iter(caller.steps), parent, 0

    def go_on(self, queue: deque[tuple[float, _Open]]) -> None:
        """Ask for the next step; if there is none, tell the parent."""
        for step in self._steps:
            self._pending = len(step)
            for part in step:
                if isinstance(part, Caller):
                    _Open(part, self).go_on(queue)
                else:
                    queue.append((part[1], self))
            if step:
                return
        if self._parent is not None:
            self._parent.ended(queue)

    def ended(self, queue: deque[tuple[float, _Open]]) -> None:
        self._pending -= 1
        if not self._pending:
            self.go_on(queue)
