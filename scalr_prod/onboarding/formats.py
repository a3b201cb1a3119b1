# SPDX-License-Identifier: Apache-2.0
"""Dates that are not ISO 8601: which format reads every value of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.errors import BadValue
from scalr_prod.ingest.instants import Instants

if TYPE_CHECKING:
    import pyarrow as pa

    from scalr_prod.ingest.cells import Place

__all__ = ["guess_format"]

_CLOCKS: Final = (" %H:%M:%S", " %H:%M", "")
_DAYS: Final = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m %d, %Y")
_OTHERS: Final = ("%Y%m%d", "%Y%m%d%H%M%S", "%d %b %Y", "%b %d, %Y")


def guess_format(values: pa.Array, place: Place, zone: str) -> tuple[str | None, list[str]]:
    """The first format that reads every value, and the others that do too.

    The day comes before the month where both read the sample: 03/04/2024 is in April.

    Args:
        values: A column of text or whole numbers.
        place: Where it comes from.
        zone: The zone of its times.
    """
    fitting = []
    for pattern in (*(day + clock for day in _DAYS for clock in _CLOCKS), *_OTHERS):
        try:
            Instants(zone, "", format=pattern).read(values, place)
        except BadValue:
            continue
        fitting.append(pattern)
    return (fitting[0], fitting[1:]) if fitting else (None, [])
