# SPDX-License-Identifier: Apache-2.0
"""Windows of users' source events with the target events that follow: the training data of the sequential estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.memmap import drop_pages, iter_row_slices
from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator.devices import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.data.training_pairs import TrainingSlice


#: ``[translator] batch_size`` counts target events. A window of the Amazon data sets has about this many.
_EVENTS_PER_WINDOW: Final = 4
#: Windows read at a time.
_WINDOWS_AT_A_TIME: Final = 8_192


@dataclass(frozen=True)
class WindowBatch:
    """A batch of W windows of L source events with P target events.

    Attributes:
        items: int64 [W, L]. Source vocabulary indices; padded with 0 on the left.
        days: float32 [W, L]. Days since the window's first event.
        row: int64 [P]. Window of each target event.
        place: int64 [P]. Position in it of the last source event strictly before.
        item: int64 [P]. Target vocabulary index.
        time: int64 [P]. Microseconds since the epoch.
        weight: float32 [P]. Weight of each target event, 1 on average; None: 1.
    """

    items: torch.Tensor
    days: torch.Tensor
    row: torch.Tensor
    place: torch.Tensor
    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor | None = None

    def to(self, device: str | torch.device) -> WindowBatch:
        """Return the batch on a device."""
        return WindowBatch(**{name: None if x is None else to_device(x, device) for name, x in vars(self).items()})


@dataclass(frozen=True)
class WindowIndex:
    """Windows of users' source events, stored as positions in the log; their contents are read in batches.

    Attributes:
        pairs: The training slice.
        end: int64 [W]. Position after each window's last event.
        count: int64 [W]. Its number of events, at most L.
    """

    pairs: TrainingSlice
    end: NDArray[np.int64]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.end)

    def take(self, rows: NDArray[Any]) -> WindowIndex:
        """Select windows, by number or as bool [W]."""
        return WindowIndex(self.pairs, self.end[rows], self.count[rows])

    def known_event_counts(self) -> NDArray[np.int64]:
        """Count each window's events of items in the vocabulary: int64 [W]."""
        counts = np.empty(len(self), dtype=np.int64)
        for rows in iter_row_slices(len(self), _WINDOWS_AT_A_TIME):
            counts[rows] = (self._items(self.end[rows], self.count[rows])[0] > 0).sum(1)
        return counts

    def item_counts(self) -> NDArray[np.int64]:
        """Count the events of each vocabulary item in all windows: int64 [n_source + 1], 0 for padding."""
        counts = np.zeros(self.pairs.n_source + 1, dtype=np.int64)
        for rows in iter_row_slices(len(self), _WINDOWS_AT_A_TIME):
            items = self._items(self.end[rows], self.count[rows])[0]
            counts += np.bincount(items.ravel(), minlength=len(counts))
        counts[0] = 0
        return counts

    def read(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the contents of some windows.

        Args:
            windows: int64 [w]. Window numbers.

        Returns:
            int64 [w, L] source vocabulary indices, padded with 0 on the left; float32 [w, L] days since the window's first event.
        """
        rows = windows.numpy()
        items, position, valid = self._items(self.end[rows], self.count[rows])
        time = self.pairs.log.source.time[position]
        begin = time[np.arange(len(rows)), valid.argmax(1)]
        days = np.where(valid, (time - begin[:, None]) / DAY_US, 0).astype(np.float32)
        drop_pages()
        return torch.from_numpy(items.astype(np.int64)), torch.from_numpy(days)

    def _items(
        self, end: NDArray[np.int64], count: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """Return vocabulary indices, positions in the log, and whether there is an event: [w, L] each."""
        back = np.arange(self.pairs.log.history.shape[1], 0, -1)
        position, valid = end[:, None] - back, back <= count[:, None]
        items = np.where(valid, self.pairs.source_index[self.pairs.log.source.item[position]], 0)
        return items.astype(np.int32, copy=False), position, valid


@dataclass(frozen=True)
class TrainingWindows:
    """All windows followed by a target event; the target events are in the order of their windows.

    Attributes:
        index: The W windows.
        start: int64 [W + 1]. Where each window's target events begin.
        place: int64 [P]. As in `WindowBatch`.
        item: int64 [P]. As in `WindowBatch`.
        time: int64 [P]. As in `WindowBatch`.
        weight: float32 [P], or None. As in `WindowBatch`.
    """

    index: WindowIndex
    start: torch.Tensor
    place: torch.Tensor
    item: torch.Tensor
    time: torch.Tensor
    weight: torch.Tensor | None = None

    @classmethod
    def from_pairs(cls, pairs: TrainingSlice) -> TrainingWindows:
        """Cut each user's events into windows of the history's length, from the last event backwards."""
        log, length = pairs.log, pairs.log.history.shape[1]
        source = log.source
        rows = pairs.target_rows()
        rows = rows[log.history[rows, -1] >= 0]
        last = log.history[rows, -1].astype(np.int64)
        # Positions count back from the user's last event before the slice's end, so that the last window ends with the most recent event.
        before, stop = _user_spans(pairs)
        back = stop[source.user[last]] - 1 - last
        number = source.user[last] * (np.int64(len(source)) + 1) + back // length
        window, index = np.unique(number, return_inverse=True)
        order = np.argsort(index, kind="stable")
        first = order[np.searchsorted(index[order], np.arange(len(window)))]
        end = last[first] + back[first] % length + 1
        weights = pairs.target_weights(rows[order]) if len(rows) else None
        return cls(
            index=WindowIndex(pairs, end, np.minimum(end - before[source.user[last[first]]], length)),
            start=torch.from_numpy(np.searchsorted(index[order], np.arange(len(window) + 1))),
            place=torch.from_numpy((length - 1 - back % length)[order]),
            item=torch.from_numpy(pairs.target_index[log.target.item[rows[order]]].astype(np.int64)),
            time=torch.from_numpy(log.target.time[rows[order]]),
            weight=None if weights is None else torch.from_numpy(weights / max(float(weights.mean()), 1e-30)),
        )

    def batch_count(self, batch_size: int) -> int:
        """Return the number of batches per epoch, at least one."""
        return max(1, -(-len(self.index) // windows_per_batch(batch_size)))

    def iter_epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[WindowBatch]:
        """Yield all windows once, in a new random order."""
        order = torch.randperm(len(self.index), generator=generator)
        for windows in order.split(windows_per_batch(batch_size)):
            begin, count = self.start[windows], self.start[windows + 1] - self.start[windows]
            row = torch.repeat_interleave(torch.arange(len(windows)), count)
            event = torch.repeat_interleave(begin - (count.cumsum(0) - count), count) + torch.arange(len(row))
            weight = None if self.weight is None else self.weight[event]
            yield WindowBatch(*self.index.read(windows), row, self.place[event], self.item[event], self.time[event], weight)


def windows_per_batch(batch_size: int) -> int:
    """Return the number of windows in a batch of ``[translator] batch_size`` target events."""
    return max(1, batch_size // _EVENTS_PER_WINDOW)


def index_source_windows(pairs: TrainingSlice) -> WindowIndex:
    """Cut every user's source events into windows of the history's length, from the last event backwards."""
    before, stop = _user_spans(pairs)
    events, length = stop - before[:-1], pairs.log.history.shape[1]
    windows = -(-events // length)
    # Each user's latest window comes first.
    number = np.arange(int(windows.sum())) - np.repeat(np.cumsum(windows) - windows, windows)
    back = number * length
    return WindowIndex(pairs, np.repeat(stop, windows) - back, np.minimum(np.repeat(events, windows) - back, length))


def sample_windows(windows: WindowIndex, known: NDArray[np.int64]) -> WindowIndex:
    """Sample windows with at most ``[translator] pretraining_events`` events in total, but at least one window; their order stays.

    Args:
        windows: The windows.
        known: int64 [W]. Number of known events of each.
    """
    settings = windows.pairs.settings
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(settings.seed)).numpy()
    fitting = int((np.cumsum(known[order]) <= settings.pretraining_events).sum())
    return windows.take(np.sort(order[: max(fitting, 1)]))


def _user_spans(pairs: TrainingSlice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each user's source events begin in the log, int64 [U + 1], and where those before the slice's end stop, int64 [U]."""
    source = pairs.log.source
    before = np.searchsorted(source.user, np.arange(len(pairs.log.users) + 1, dtype=np.int32))
    is_before = np.zeros(len(source) + 1, dtype=bool)
    for rows in iter_row_slices(len(source)):
        is_before[rows] = source.time[rows] < pairs.until
    return before, before[:-1] + np.add.reduceat(is_before, before[:-1], dtype=np.int64) * (np.diff(before) > 0)
