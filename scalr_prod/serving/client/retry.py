# SPDX-License-Identifier: Apache-2.0
"""Deadlines, retries and request sizes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from scalr_prod.errors import RequestTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


#: Target share of the deadline for one request, so that a slower machine or more workers still meet it.
_DEADLINE_SHARE: Final = 0.25
#: Maximum growth of requests from one answer to the next.
_MAX_GROWTH: Final = 4.0


@dataclass(frozen=True)
class Deadline:
    """Time limit of a request over all of its attempts.

    Attributes:
        seconds: Total time for the request.
        ends_at: The time limit, on ``clock``.
        clock: Monotonic seconds.
    """

    seconds: float
    ends_at: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Self:
        """Return the deadline ``seconds`` from now."""
        return cls(seconds, clock() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Return the seconds left; never negative."""
        return max(0.0, self.ends_at - self.clock())

    @property
    def elapsed(self) -> float:
        """Return the seconds gone, less the extensions."""
        return max(0.0, self.seconds - (self.ends_at - self.clock()))

    def extended(self, seconds: float) -> Self:
        """Return a later deadline, to allow for time that the caller itself was busy."""
        return replace(self, ends_at=self.ends_at + seconds)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter between attempts.

    Many workers lose a server at the same time; without jitter they would all retry at the same time too.

    Attributes:
        first_s: Upper limit of the first delay.
        limit_s: Upper limit of every delay.
    """

    first_s: float = 0.1
    limit_s: float = 3.0

    def delays(self, uniform: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the seconds to wait before each further attempt, without end: the deadline stops the retries.

        Args:
            uniform: Returns a uniform random number in [0, 1).
        """
        ceiling = self.first_s
        while True:
            yield ceiling * (0.5 + 0.5 * uniform())
            ceiling = min(ceiling * 2, self.limit_s)


@dataclass(frozen=True)
class RequestOptions:
    """How requests are sent to a server, and how failures are handled.

    Attributes:
        deadline_s: Time limit of one request, over all of its attempts, in seconds.
        in_flight: Concurrent requests of a stream.
        max_request_mb: Limit of one request's input tensors, MiB.
        retries: Backoff between attempts.
        restart_s: Seconds that a watchdog may take to restart a failed server, added once to the deadline of a request that finds no
            server; failures that a server would not recover from by itself are retried then. None if there is no watchdog.
    """

    deadline_s: float = 60.0
    in_flight: int = 2
    max_request_mb: float = 64.0
    retries: RetryPolicy = RetryPolicy()
    restart_s: float | None = None


@dataclass(frozen=True)
class RequestLimits:
    """Size limits of one request.

    Attributes:
        request_bytes: Maximum bytes of all input tensors.
        rows: Maximum contexts: the server's limit on a batch.
    """

    request_bytes: int
    rows: int

    def rows_per_request(self, row_bytes: int) -> int:
        """Return how many contexts of this size fit into one request.

        Raises:
            RequestTooLarge: A single context exceeds the limit.
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
class ThroughputEstimate:
    """Estimate the server's speed from recent answers, to keep requests small enough for their deadline.

    Requests of other workers are part of the measured time: with more workers, each sends smaller requests.

    Attributes:
        deadline_s: Time limit of a request, over all of its attempts, in seconds.
        row_s: Seconds per context; 0 before the first measurement.
    """

    deadline_s: float
    row_s: float = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Record that ``rows`` contexts took ``seconds``."""
        self.row_s = max(seconds / max(rows, 1), self.row_s / _MAX_GROWTH)

    def rows_per_request(self, max_rows: int) -> int:
        """Return how many contexts can be answered well within the deadline: 1 to ``max_rows``."""
        if self.row_s * max_rows <= self.deadline_s * _DEADLINE_SHARE:
            return max_rows
        return max(1, int(self.deadline_s * _DEADLINE_SHARE / self.row_s))
