# SPDX-License-Identifier: Apache-2.0
"""Bitemporal rows (key, t, c), and the events that each of them knows, computed in numpy over a batch of complete keys.

A batch's events are sorted by (key, time, …). A *group* is the events of one key at one time. A row is a group and a knowledge
time; knowledge times are ranks among the batch's distinct created times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scalr_prod.histories.wavelet_matrix import WaveletMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]


#: Positions processed at once; bounds memory.
_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class HistoryRows:
    """Rows of a batch.

    Attributes:
        group: int64 [R], the group of each row.
        known_rank: int64 [R], the knowledge time of each row, as a rank.
    """

    group: Ints
    known_rank: Ints

    def __len__(self) -> int:
        return len(self.group)

    def slice(self, start: int, stop: int) -> HistoryRows:
        """Return the rows ``start … stop - 1``."""
        return HistoryRows(self.group[start:stop], self.known_rank[start:stop])


class KnownEvents(NamedTuple):
    """The last events that each of R rows knows.

    Attributes:
        total: int64 [R], the number of events that the row knows in all.
        offsets: int64 [R + 1], where each row's ``positions`` begin and end.
        positions: int64 [offsets[R]], positions of the events, oldest first.
    """

    total: Ints
    offsets: Ints
    positions: Ints


@dataclass(frozen=True)
class _Lists:
    """Ragged lists in one array: their lengths, offsets and elements."""

    taken: Ints
    offsets: Ints
    positions: Ints


class KeyBatch:
    """Events of complete keys, sorted by key and time.

    Args:
        new_key: bool [N], whether an event is the first of its key.
        times: int64 [N], µs.
        created: int64 [N], µs.
        late_step: Late events create rows only at multiples of this, µs; 0: as soon as they were known.
        deadlines: int64 [M], ascending, µs: such a row is no later than the first of these at which the event was known. The last one
            is at or after every created time.
    """

    def __init__(
        self, new_key: npt.NDArray[np.bool_], times: Ints, created: Ints, *, late_step: int = 0, deadlines: Ints | None = None
    ) -> None:
        self.times, self.late_step = times, late_step
        key = np.cumsum(new_key) - 1
        self.key_start = np.flatnonzero(new_key)
        wake = created
        if late_step:
            wake = -(-created // late_step) * late_step
            if deadlines is not None:
                wake = np.minimum(wake, deadlines[np.searchsorted(deadlines, created, side="left")])
        self.created_times = np.unique(np.concatenate((created, wake)) if late_step else created)
        self.rank: Ints = np.searchsorted(self.created_times, created)
        #: Rank of the time at which an event creates rows if it is late.
        self.visible_rank: Ints = np.searchsorted(self.created_times, wake) if late_step else self.rank
        # Composites below are key * span + a value smaller than span: one sorted array serves all keys.
        self.span = len(self.created_times) + 1
        new_group = new_key.copy()
        new_group[1:] |= times[1:] != times[:-1]
        self.group_start = np.flatnonzero(new_group)
        self.group_end = np.append(self.group_start[1:], len(times))
        self.group_of = np.cumsum(new_group) - 1
        self.group_key = key[self.group_start]
        self.key = key
        self.first_known = np.minimum.reduceat(self.rank, self.group_start)
        #: Rank of the latest created time among a key's events up to and including each event.
        self.latest_known = np.maximum.accumulate(key * self.span + self.rank) - key * self.span

    def key_start_of(self, rows: HistoryRows) -> Ints:
        """Return the position of the first event of each row's key: int64 [R]."""
        start: Ints = self.key_start[self.group_key[rows.group]]
        return start

    def time_end_of(self, rows: HistoryRows) -> Ints:
        """Return the position after the last event at each row's time: int64 [R]."""
        return self.group_end[rows.group]

    def iter_rows(self, after: int | None = None) -> Iterator[HistoryRows]:
        """Yield all rows in batches: one row per group, then one per time at which a late event became known.

        Args:
            after: Only rows with a later knowledge time than this, µs.
        """
        floor = 0 if after is None else int(np.searchsorted(self.created_times, after, side="right"))
        group = np.flatnonzero(self.first_known >= floor)
        yield HistoryRows(group, self.first_known[group])
        latest = self.latest_known[self.group_end - 1]
        late = (latest > self.first_known) & (latest >= floor)
        if late.any():
            yield from self._later_rows(late, floor)

    def _later_rows(self, late: npt.NDArray[np.bool_], floor: int) -> Iterator[HistoryRows]:
        # A created time x of a key affects the groups from the first event known at x on that were first known before x. The suffix
        # minimum of first_known bounds the candidates, which are checked below.
        of_late_key = np.zeros(len(self.key_start), bool)
        of_late_key[self.group_key[late]] = True
        at = np.flatnonzero(of_late_key[self.key] & (self.visible_rank >= floor))
        composite, first = np.unique(self.key[at] * self.span + self.visible_rank[at], return_index=True)
        known, begin = composite % self.span, self.group_of[at[first]]
        backwards = (self.group_key * self.span + self.first_known)[::-1]
        ahead = np.minimum.accumulate(backwards)[::-1]
        # Keys ascend, so the minimum over the rest of the batch is the minimum over the rest of the key.
        stop = np.searchsorted(ahead, composite, side="left")
        sizes = np.maximum(stop - begin, 0)
        for low, high in _spans(sizes):
            which, group = expand_ranges(begin[low:high], sizes[low:high])
            ranks = known[low:high][which]
            keep = self.first_known[group] < ranks
            rows = HistoryRows(group[keep], ranks[keep])
            if self.late_step and len(rows):
                # The group's first row may already know the late event; then this row would repeat it.
                start = self.key_start_of(rows)
                fresh = self.count_known(rows, start) > self.count_known(
                    HistoryRows(rows.group, self.first_known[rows.group]), start
                )
                rows = HistoryRows(rows.group[fresh], rows.known_rank[fresh])
            if len(rows):
                yield rows

    def is_complete(self, rows: HistoryRows) -> npt.NDArray[np.bool_]:
        """Return whether each row knows all events of its key up to its time: bool [R]."""
        knows_all: npt.NDArray[np.bool_] = self.latest_known[self.time_end_of(rows) - 1] <= rows.known_rank
        return knows_all

    @cached_property
    def _dominance(self) -> WaveletMatrix:
        return WaveletMatrix(self.rank)

    def count_known(self, rows: HistoryRows, start: Ints) -> Ints:
        """Count the events from position ``start`` up to each row's time that the row knows: int64 [R]."""
        counts = self.time_end_of(rows) - start
        open_ = np.flatnonzero(~self.is_complete(rows))
        if len(open_):
            counts[open_] = self._dominance.count_at_most(start[open_], self.time_end_of(rows)[open_], rows.known_rank[open_])
        return counts

    def last_known_events(self, rows: HistoryRows, length: int) -> KnownEvents:
        """Find the last events that each row knows.

        Args:
            rows: R rows.
            length: Maximal number per row.

        """
        start, end = self.key_start_of(rows), self.time_end_of(rows)
        count = self.count_known(rows, start)
        taken = np.minimum(count, length)
        offsets = np.concatenate(([0], np.cumsum(taken)))
        lists = _Lists(taken, offsets, np.empty(offsets[-1], np.int64))
        settled = self.is_complete(rows)
        which, positions = expand_ranges((end - taken)[settled], taken[settled])
        into = offsets[:-1][settled][which] + positions - (end - taken)[settled][which]
        lists.positions[into] = positions
        window = 2 * length
        open_ = np.flatnonzero(~settled)
        while len(open_):
            left = []
            for low, high in _spans(np.minimum(end[open_] - start[open_], window)):
                left.append(self._search(rows, open_[low:high], window, lists))
            open_ = np.concatenate(left)
            window *= 4
        return KnownEvents(count, offsets, lists.positions)

    def _search(self, rows: HistoryRows, at: Ints, window: int, lists: _Lists) -> Ints:
        """Search the last ``window`` events for the last known ones; return the rows that need a larger window."""
        chosen = HistoryRows(rows.group[at], rows.known_rank[at])
        end = self.time_end_of(chosen)
        begin = np.maximum(self.key_start_of(chosen), end - window)
        which, positions = expand_ranges(begin, end - begin)
        seen = self.rank[positions] <= chosen.known_rank[which]
        which, positions = which[seen], positions[seen]
        seen_by = np.bincount(which, minlength=len(at))
        enough = seen_by >= lists.taken[at]
        from_end = np.cumsum(seen_by)[which] - 1 - np.arange(len(which))
        keep = enough[which] & (from_end < lists.taken[at][which])
        which, positions, from_end = which[keep], positions[keep], from_end[keep]
        lists.positions[lists.offsets[at + 1][which] - 1 - from_end] = positions
        return at[~enough]

    def earliest_known_event(self, rows: HistoryRows) -> Ints:
        """Return the position of the earliest event that each row knows: int64 [R]."""
        # The running minimum of created times decreases within a key; reversed it increases, so it is sorted over all keys.
        reversed_ = self.span - 1 - self._earliest_known
        wanted = self.group_key[rows.group] * self.span + self.span - 1 - rows.known_rank
        return np.searchsorted(self.key * self.span + reversed_, wanted, side="left")

    @cached_property
    def _earliest_known(self) -> Ints:
        fallen: Ints = np.minimum.accumulate(self.rank - self.key * self.span) + self.key * self.span
        return fallen

    def window_start(self, rows: HistoryRows, ago: int) -> Ints:
        """Return the position of the first event of each row's key in ``(t - ago, t]`` (µs): int64 [R]."""
        distinct, rank = np.unique(self.times, return_inverse=True)
        span = len(distinct) + 1
        wanted = np.searchsorted(distinct, self.times[self.group_start[rows.group]] - ago, side="right")
        return np.searchsorted(self.key * span + rank, self.group_key[rows.group] * span + wanted, side="left")


def expand_ranges(start: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Concatenate the ranges ``start … start + size - 1`` of [R]: the index of the range and the value, int64 [sum(size)] each."""
    which = np.repeat(np.arange(len(start)), size)
    before = np.cumsum(size) - size
    return which, np.arange(len(which)) - (before - start)[which]


def _spans(sizes: Ints) -> Iterator[tuple[int, int]]:
    """Split rows into spans whose sizes add up to about `_AT_ONCE`."""
    total = np.cumsum(sizes)
    low = 0
    while low < len(sizes):
        done = total[low - 1] if low else 0
        high = max(int(np.searchsorted(total, done + _AT_ONCE, side="right")), low + 1)
        yield low, high
        low = high
