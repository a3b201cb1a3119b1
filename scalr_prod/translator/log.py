"""What a translator may learn from: both domains' events known by its ``trained_until``, read through Feast, as integer arrays.

Each target event is paired with its user's source history strictly before it by a point-in-time join.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.errors import NoCommonUsers, TranslatorError
from scalr_prod.feast_store import point_in_time, read_window
from scalr_prod.hashing import fold_of, stable_hash
from scalr_prod.instants import micros_of
from scalr_prod.lake import Lake
from scalr_prod.numbering import index_in, sorted_unique

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.settings import Settings

__all__ = ["Events", "Log", "data_end", "read_log"]

#: Target events that are joined at a time.
_SPINE_ROWS = 200_000


@dataclass(frozen=True)
class Events:
    """One domain's events, in order of (user, time, hash of the item).

    Attributes:
        user: int32 [M]. Position in `Log.users`.
        item: int32 [M]. Position in ``ids``.
        time: int64 [M]. Microseconds since the epoch.
        ids: The item ids, sorted.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    ids: pa.Array

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Log:
    """Both domains.

    Attributes:
        users: Ids of all users of either domain, sorted.
        fold: int32 [U]. Each user's fold.
        source: Source events.
        target: Target events.
        history: int32 [len(target), L]. For each target event the last source events strictly before it, as positions in
            ``source``, -1 on the left where there are fewer.
    """

    users: pa.Array
    fold: NDArray[np.int32]
    source: Events
    target: Events
    history: NDArray[np.int32]


def data_end(settings: Settings) -> datetime:
    """The first instant by which everything in both domains has happened and is known (UTC).

    Raises:
        TableNotFound: Nothing was ingested yet.
        TranslatorError: Both logs are empty.
    """
    import pyarrow.compute as pc

    lake = Lake.open(settings)
    latest: list[datetime] = []
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        for batch in lake.dataset(table).to_batches(columns=[EVENT_TIMESTAMP, CREATED_TIMESTAMP]):
            latest += [end for column in batch.columns if (end := pc.max(column).as_py()) is not None]
    if not latest:
        raise TranslatorError("there is no event in either domain", where=lake.root, next_step="read the logs: scalr ingest")
    return max(latest).astimezone(UTC) + timedelta(microseconds=1)


def read_log(settings: Settings, trained_until: datetime) -> Log:
    """Read what had happened before ``trained_until`` and was known by then.

    Raises:
        NoCommonUsers: No user has events in both domains.
        TranslatorError: A domain has no event that early.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = {domain: _read(settings, Table.events(domain), trained_until) for domain in ("source", "target")}
    for domain, table in tables.items():
        if not len(table):
            raise TranslatorError(
                f"no {domain} event happened and was known before {trained_until.isoformat()}",
                where=str(Table.events(domain)),  # type: ignore[arg-type]
                next_step="train later, or ingest older events",
            )
    source_users, target_users = (pc.unique(tables[domain][USER_ID]) for domain in ("source", "target"))
    if not pc.any(pc.is_in(target_users, source_users)).as_py():
        raise NoCommonUsers(
            f"none of {len(source_users)} source users and {len(target_users)} target users is the same",
            where="domains.source.columns.user, domains.target.columns.user",
            next_step="map the columns that hold the same kind of user id in both logs",
        )
    users = sorted_unique(pa.concat_arrays([source_users.cast(target_users.type), target_users]))
    source, target = (_events(tables[domain], users) for domain in ("source", "target"))
    return Log(
        users=users,
        fold=fold_of(users, settings.translator.folds),
        source=source,
        target=target,
        history=_histories(settings, users, source, target, trained_until),
    )


def _read(settings: Settings, table: Table, until: datetime) -> pa.Table:
    columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
    return read_window(settings, table.value, end=until, known_by=until, columns=columns)


def _events(table: Any, users: Any) -> Events:

    ids = sorted_unique(table[ITEM_ID])
    user, item = index_in(table[USER_ID], users), index_in(table[ITEM_ID], ids)
    time = micros_of(table[EVENT_TIMESTAMP])
    order = np.lexsort((stable_hash(ids)[item], time, user))
    return Events(user[order], item[order], time[order], ids)


def _histories(settings: Settings, users: pa.Array, source: Events, target: Events, until: datetime) -> NDArray[np.int32]:
    """Positions of the last L source events strictly before each target event: int32 [len(target), L].

    The join says which event a history ends with and how many came before; the events in between are those of ``source``,
    which stand in the same order.

    Raises:
        TranslatorError: A history ends with another event than the log has there: the two are out of step.
    """
    import pyarrow as pa

    view, length = Table.SOURCE_USER_HISTORY.value, settings.histories.length
    wanted = [f"{view}:{name}" for name in ("event_timestamps", "event_count")]
    begin = np.searchsorted(source.user, target.user)
    stop = np.empty(len(target), dtype=np.int64)
    for first in range(0, len(target), _SPINE_ROWS):
        rows = slice(first, first + _SPINE_ROWS)
        # One microsecond before the label: what shares its instant may be a part of the same visit.
        moments = pa.array(target.time[rows] - 1).cast(pa.timestamp("us", tz="UTC"))
        spine = pa.table({USER_ID: users.take(pa.array(target.user[rows])), EVENT_TIMESTAMP: moments})
        joined = point_in_time(settings, spine, wanted, known_by=until)
        count = joined[f"{view}__event_count"].fill_null(0).to_numpy().astype(np.int64)
        stop[rows] = begin[rows] + count
        last, there = _last_times(joined[f"{view}__event_timestamps"].combine_chunks()), count > 0
        place = np.minimum(stop[rows] - 1, len(source) - 1)
        if not np.array_equal(source.user[place][there], target.user[rows][there]) or not np.array_equal(
            source.time[place][there], last[there]
        ):
            raise TranslatorError(
                "the histories were built from other events than the log now holds",
                where=view,
                next_step="build them again: scalr histories",
            )
    place = stop[:, None] + np.arange(-length, 0)
    return np.where(place >= begin[:, None], place, -1).astype(np.int32)


def _last_times(lists: pa.ListArray) -> NDArray[np.int64]:
    """The last element of each list, as microseconds; 0 for empty and null lists."""
    import pyarrow.compute as pc

    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = micros_of(lists.flatten())
    ends = np.cumsum(length) - 1
    return np.where(length > 0, values[np.maximum(ends, 0)] if len(values) else 0, 0)
