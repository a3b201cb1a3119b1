# SPDX-License-Identifier: Apache-2.0
"""Compact index of the source histories of target events: nearly all are consecutive events of the source log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HistoryIndex", "position_dtype"]


def position_dtype(count: int) -> type[np.int32 | np.int64]:
    """Return the integer type of positions in an array of ``count`` elements, and of the position after the last one."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True)
class HistoryIndex:
    """Positions of the last L source events before each of T target events, indexed like an array [T, L], left-padded with -1.

    Positions have the type of `position_dtype`.

    Attributes:
        stop: [T]. Position after each history's last event.
        count: int32 [T]. Number of events of each history, at most L.
        length: L.
        explicit_rows: int64 [A], ascending. Rows whose history is not consecutive in the log, because it lacks a late event.
        explicit_positions: [A, L]. Positions of these rows.
    """

    stop: NDArray[np.int32 | np.int64]
    count: NDArray[np.int32]
    length: int
    explicit_rows: NDArray[np.int64]
    explicit_positions: NDArray[np.int32 | np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (T, L)."""
        return len(self.stop), self.length

    def __len__(self) -> int:
        return len(self.stop)

    def __getitem__(self, key: Any) -> NDArray[np.int32 | np.int64]:
        """Return some rows, or some columns of them: ``[rows]`` or ``[rows, columns]``, columns being a number or a slice."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        back = np.arange(-self.length, 0, dtype=np.int32)[columns]
        axes = (..., None) if back.ndim else ...
        stop, count = self.stop[rows][axes], self.count[rows][axes]
        positions: NDArray[np.int32 | np.int64] = np.where(-back <= count, stop + back, self.stop.dtype.type(-1))
        if len(self.explicit_rows):
            number = np.arange(len(self))[rows]
            entry = np.searchsorted(self.explicit_rows, number).clip(max=len(self.explicit_rows) - 1)
            positions = np.where(
                (self.explicit_rows[entry] == number)[axes], self.explicit_positions[entry][..., columns], positions
            )
        return positions
