# SPDX-License-Identifier: Apache-2.0
"""How long to wait, when to ask again, and how much to send at once."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from scalr_prod.errors import RequestTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Deadline", "Limits", "Pace", "RetryPolicy"]

#: A request should take no more than this share of its deadline: a slower machine, or more workers beside this one, may come later.
_SHARE: Final = 0.25
#: From one answer to the next, requests grow by this factor at most.
_GROWTH: Final = 4.0


@dataclass(frozen=True)
class Deadline:
    """The moment by which a request must be answered, over all of its attempts.

    Attributes:
        seconds: How long the request may take in all.
        ends_at: The moment, on ``clock``.
        clock: Monotonic seconds.
    """

    seconds: float
    ends_at: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Self:
        """The deadline that lies ``seconds`` from now."""
        return cls(seconds, clock() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self.ends_at - self.clock())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining <= 0.0

    @property
    def elapsed(self) -> float:
        """Seconds gone, less those it was extended by."""
        return max(0.0, self.seconds - (self.ends_at - self.clock()))

    def extended(self, seconds: float) -> Self:
        """The same, later by time for which the caller itself was busy elsewhere."""
        return replace(self, ends_at=self.ends_at + seconds)


@dataclass(frozen=True)
class RetryPolicy:
    """Waits between attempts: twice as long each time, up to a limit, and drawn at random below it.

    Many workers lose a server at the same moment; without the draw they would all come back at the same moment too.

    Attributes:
        first_s: Upper limit of the first wait.
        limit_s: Upper limit of every wait.
    """

    first_s: float = 0.1
    limit_s: float = 3.0

    def waits(self, draw: Callable[[], float] = random.random) -> Iterator[float]:
        """Seconds to wait before each further attempt, without end: the deadline is what ends them.

        Args:
            draw: Uniform on [0, 1).
        """
        ceiling = self.first_s
        while True:
            yield ceiling * (0.5 + 0.5 * draw())
            ceiling = min(ceiling * 2, self.limit_s)


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Attributes:
        request_bytes: Bytes of all input tensors.
        rows: Contexts; the server's own limit on a batch.
    """

    request_bytes: int
    rows: int

    def rows_per_request(self, row_bytes: int) -> int:
        """How many contexts of this size go into one request.

        Raises:
            RequestTooLarge: Not even one does.
        """
        fit = self.request_bytes // max(row_bytes, 1)
        if fit < 1:
            raise RequestTooLarge(
                f"one context alone takes {row_bytes / 2**20:.1f} MiB, the limit is {self.request_bytes / 2**20:.1f} MiB",
                where="[serving] max_request_mb",
                next_step="raise max_request_mb, shorten [histories] length, or send fewer candidates and exclusions",
            )
        return min(fit, self.rows)


@dataclass
class Pace:
    """How fast the server answers, as the last answers told: so requests stay small enough for their deadline.

    What others ask of the same server is part of the time that a request takes: the more workers, the smaller their requests.

    Attributes:
        deadline_s: Seconds of a request, over all of its attempts.
        row_s: Seconds that one context takes; 0: not measured yet.
    """

    deadline_s: float
    row_s: float = 0.0

    def measured(self, rows: int, seconds: float) -> None:
        """So many contexts were answered in so many seconds."""
        self.row_s = max(seconds / max(rows, 1), self.row_s / _GROWTH)

    def rows_per_request(self, most: int) -> int:
        """How many contexts can be answered well within the deadline: 1 to ``most``."""
        if self.row_s * most <= self.deadline_s * _SHARE:
            return most
        return max(1, int(self.deadline_s * _SHARE / self.row_s))
