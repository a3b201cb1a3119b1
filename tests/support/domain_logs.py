"""Logs of domains, as they are read without a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.translator import DomainLog

if TYPE_CHECKING:
    from benchmarks.worlds import Events


def domain_log(events: Events, *, first_user: int = 0) -> DomainLog:
    """The log of a world's events, its users' numbers from ``first_user`` on."""
    at = pa.array(events.time, pa.timestamp("us", "UTC"))
    ids = {USER_ID: events.user + first_user, ITEM_ID: events.item}
    texts = {name: pa.array(np.asarray(numbers)).cast(pa.string()) for name, numbers in ids.items()}
    return DomainLog.from_events(pa.table(texts | {EVENT_TIMESTAMP: at, CREATED_TIMESTAMP: at}))
