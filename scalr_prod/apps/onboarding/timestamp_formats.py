# SPDX-License-Identifier: Apache-2.0
"""Formats of timestamps that are not ISO 8601, guessed from a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.errors import BadValue
from scalr_prod.ingest import TimestampParser

if TYPE_CHECKING:
    import pyarrow as pa

    from scalr_prod.ingest import CellOrigin

__all__ = ["guess_timestamp_format"]

_CLOCKS: Final = (" %H:%M:%S", " %H:%M", "")
_DAYS: Final = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m %d, %Y")
_OTHERS: Final = ("%Y%m%d", "%Y%m%d%H%M%S", "%d %b %Y", "%b %d, %Y")


def guess_timestamp_format(values: pa.Array, origin: CellOrigin, zone: str) -> tuple[str | None, list[str]]:
    """Return the first format that parses every value, and the other formats that do.

    If both orders parse the sample, the day comes before the month: 03/04/2024 is in April.

    Args:
        values: A column of text or whole numbers.
        origin: Its origin.
        zone: Time zone of its values.
    """
    fitting = []
    for pattern in (*(day + clock for day in _DAYS for clock in _CLOCKS), *_OTHERS):
        try:
            TimestampParser(zone, "", format=pattern).parse(values, origin)
        except BadValue:
            continue
        fitting.append(pattern)
    return (fitting[0], fitting[1:]) if fitting else (None, [])
