# SPDX-License-Identifier: Apache-2.0
"""Label filter: the target events that a run can generate, which the translator is fitted, calibrated and measured on.

Where consumed items are excluded (``[generation] exclude_consumed``), a run generates no event that repeats an earlier one of the same user
and item. So repeats are not labels, and items that a user had before an event cannot be chosen at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scalr_prod.translator.data.contexts import ConsumedItems

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.data.event_log import EventLog

__all__ = ["consumed_before"]


def consumed_before(
    log: EventLog, rows: NDArray[np.int64], target_index: NDArray[np.int32]
) -> ConsumedItems | NDArray[np.int32]:
    """Return the items that must not be proposed at target events.

    Args:
        log: The log.
        rows: [R] positions in ``log.target``.
        target_index: Vocabulary index of each of the log's target ids.

    Returns:
        The items that each event's user had strictly before it; none (int32 [R, 0]) where items may be proposed again.
    """
    if not log.exclude_consumed:
        return np.empty((len(rows), 0), dtype=np.int32)
    user, time = log.target.user, log.target.time
    possible = log.is_label
    before = np.append(0, np.cumsum(possible))
    moment = np.ones(len(user), dtype=bool)
    moment[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    # Position of the first event with the same user and time.
    same = np.maximum.accumulate(np.where(moment, np.arange(len(user)), 0))[rows]
    begin = before[np.searchsorted(user, user[rows])]
    return ConsumedItems(target_index[log.target.item[possible]], begin, before[same] - begin)
