# SPDX-License-Identifier: Apache-2.0
"""Users' source events cut into windows, with the target events that follow each: what the sequential estimator is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.translator.pairs import Pairs

__all__ = ["Window", "Windows", "source_windows"]

#: ``[translator] batch_size`` counts target events; a window of Amazon's kind holds about this many.
_EVENTS_PER_WINDOW = 4


@dataclass(frozen=True)
class Window:
    """A batch of W windows of L source events with P target events.

    Attributes:
        items: int64 [W, L]. Source vocabulary indices; 0 on the left.
        days: float32 [W, L]. Days since the window's first event.
        row: int64 [P]. The window of each target event.
        place: int64 [P]. The place in it of the last source event strictly before.
        item: int64 [P]. Target vocabulary index.
        time: int64 [P]. Microseconds since the epoch.
        weight: float32 [P]. How much each target event counts, 1 on average; None: one each.
    """

    items: torch.Tensor
    days: torch.Tensor
    row: torch.Tensor
    place: torch.Tensor
    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class Windows:
    """All windows that some target event follows; the target events are in the order of their windows."""

    items: torch.Tensor
    days: torch.Tensor
    start: torch.Tensor
    place: torch.Tensor
    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor | None = None

    @classmethod
    def of(cls, pairs: Pairs) -> Windows:
        """Cut each user's events into windows of the history's length, from the last event backwards."""
        import numpy as np

        log, length = pairs.log, pairs.log.history.shape[1]
        source = log.source
        rows = pairs.target_rows()
        rows = rows[log.history[rows, -1] >= 0]
        last = log.history[rows, -1].astype(np.int64)
        # An event is counted from its user's last one before the slice's end, so that windows end with what is most recent.
        before = np.searchsorted(source.user, np.arange(len(log.users) + 1))
        stop = before[:-1] + np.add.reduceat(np.append(source.time < pairs.until, False).astype(np.int64), before[:-1]) * (
            np.diff(before) > 0
        )
        back = stop[source.user[last]] - 1 - last
        number = source.user[last] * (np.int64(len(source)) + 1) + back // length
        window, index = np.unique(number, return_inverse=True)
        order = np.argsort(index, kind="stable")
        first = order[np.searchsorted(index[order], np.arange(len(window)))]
        end = last[first] + back[first] % length + 1
        place = end[:, None] + np.arange(-length, 0)
        there = place >= before[source.user[last[first]]][:, None]
        items = np.where(there, pairs.source_index[source.item[place]], 0)
        time = source.time[place]
        begin = np.where(there, time, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
        days = np.where(there, (time - begin) / 86_400_000_000, 0)
        weights = pairs.target_weights(rows[order]) if len(rows) else None
        return cls(
            items=torch.from_numpy(items.astype(np.int64)),
            days=torch.from_numpy(days.astype(np.float32)),
            start=torch.from_numpy(np.searchsorted(index[order], np.arange(len(window) + 1))),
            place=torch.from_numpy((length - 1 - back % length)[order]),
            item=torch.from_numpy(pairs.target_index[log.target.item[rows[order]]].astype(np.int64)),
            time=torch.from_numpy(log.target.time[rows[order]]),
            weight=None if weights is None else torch.from_numpy(weights / max(float(weights.mean()), 1e-30)),
        )

    def batches(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return -(-len(self.items) // max(1, batch_size // _EVENTS_PER_WINDOW))

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Window]:
        """All windows once, in a new random order."""
        size = max(1, batch_size // _EVENTS_PER_WINDOW)
        for chosen in torch.randperm(len(self.items), generator=generator).split(size):
            begin, count = self.start[chosen], self.start[chosen + 1] - self.start[chosen]
            row = torch.repeat_interleave(torch.arange(len(chosen)), count)
            event = torch.repeat_interleave(begin - (count.cumsum(0) - count), count) + torch.arange(len(row))
            weight = None if self.weight is None else self.weight[event]
            yield Window(
                self.items[chosen], self.days[chosen], row, self.place[event], self.item[event], self.time[event], weight
            )


def source_windows(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Every user's source events, cut into windows of the history's length from the last event backwards.

    Returns:
        int64 [W, L] source vocabulary indices, 0 on the left; float32 [W, L] days since the window's first event.
    """
    import numpy as np

    source, length = pairs.log.source, pairs.log.history.shape[1]
    rows = np.flatnonzero(source.time < pairs.until)
    user, time = source.user[rows], source.time[rows]
    stop = np.cumsum(np.bincount(user, minlength=len(pairs.log.users)))
    back = stop[user] - 1 - np.arange(len(rows))
    window, index = np.unique(user * (np.int64(len(rows)) + 1) + back // length, return_inverse=True)
    place = length - 1 - back % length
    items = np.zeros((len(window), length), dtype=np.int64)
    items[index, place] = pairs.source_index[source.item[rows]]
    begin = np.full(len(window), np.iinfo(np.int64).max)
    np.minimum.at(begin, index, time)
    days = np.zeros((len(window), length), dtype=np.float32)
    days[index, place] = (time - begin[index]) / 86_400_000_000
    return torch.from_numpy(items), torch.from_numpy(days)
