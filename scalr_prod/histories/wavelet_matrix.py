# SPDX-License-Identifier: Apache-2.0
"""Wavelet matrix: batched counts of the values at positions ``start … end - 1`` that are at most a bound.

Each level stores one bit of every value, with running counts of set bits. A query takes one step per level, and the index about 1.5
bits per value and level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]


_WORD = 64


class WaveletMatrix:
    """Wavelet matrix over one array.

    Args:
        values: int64 [N], each in ``0 … N``.
    """

    def __init__(self, values: Ints) -> None:
        self._bits = max(int(values.max(initial=0)).bit_length(), 1)
        self._levels: list[tuple[_Rank, int]] = []
        for level in reversed(range(self._bits)):
            ones = (values >> level & 1).astype(bool)
            self._levels.append((_Rank(ones), len(values) - int(ones.sum())))
            values = np.concatenate((values[~ones], values[ones]))

    def count_at_most(self, start: Ints, end: Ints, bound: Ints) -> Ints:
        """Count the values ``<= bound`` in ``[start, end)``: int64 [Q] for int64 [Q] each."""
        # Counts values below bound + 1. A bound above every value does not fit the bits and counts all of them.
        below = bound + 1
        everything = below >= 1 << self._bits
        left, right = start.copy(), end.copy()
        counts = np.zeros_like(start)
        for level, (rank, zeros) in zip(reversed(range(self._bits)), self._levels, strict=True):
            ones_left, ones_right = rank(left), rank(right)
            zeros_left, zeros_right = left - ones_left, right - ones_right
            up = (below >> level & 1).astype(bool)
            counts += np.where(up, zeros_right - zeros_left, 0)
            left = np.where(up, zeros + ones_left, zeros_left)
            right = np.where(up, zeros + ones_right, zeros_right)
        return np.where(everything, end - start, counts)


class _Rank:
    """Rank index: number of set bits before a position."""

    def __init__(self, bits: npt.NDArray[np.bool_]) -> None:
        words = -(-len(bits) // _WORD) + 1
        padded = np.zeros(words * _WORD, bool)
        padded[: len(bits)] = bits
        self._words = np.packbits(padded, bitorder="little").view("<u8")
        counts = np.bitwise_count(self._words).astype(np.int64)
        self._before = (np.cumsum(counts) - counts).astype(np.int64 if len(bits) > np.iinfo(np.int32).max else np.int32)

    def __call__(self, position: Ints) -> Ints:
        word, bit = position // _WORD, (position % _WORD).astype(np.uint64)
        mask = (np.uint64(1) << bit) - np.uint64(1)
        before: Ints = self._before[word] + np.bitwise_count(self._words[word] & mask).astype(np.int64)
        return before
