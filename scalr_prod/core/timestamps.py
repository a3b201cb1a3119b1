# SPDX-License-Identifier: Apache-2.0
"""Conversion between datetimes and microseconds since the epoch (UTC): exact, where floats would round."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


#: Microseconds of a day.
DAY_US: Final = 86_400_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def as_utc(moment: datetime | None) -> datetime | None:
    """Interpret a time without a zone as UTC, not as this machine's local time."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def to_micros(moment: datetime) -> int:
    """Return the microseconds since the epoch of a timezone-aware datetime."""
    elapsed = moment - _EPOCH
    # Not `elapsed // timedelta(…)`: pendulum's durations, which Airflow passes in, do not support it.
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def iso_to_micros(moment: str) -> int:
    """Return the microseconds since the epoch of an ISO 8601 text with a time zone."""
    return to_micros(datetime.fromisoformat(moment))


def column_to_micros(column: Any) -> NDArray[np.int64]:
    """Return the microseconds since the epoch of an Arrow column of timestamps without nulls: int64 [N]."""
    import pyarrow as pa

    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return flat.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # pyarrow is untyped


def micros_to_datetime(instant: int) -> datetime:
    """Return the UTC datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=int(instant))
