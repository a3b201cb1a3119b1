# SPDX-License-Identifier: Apache-2.0
"""Event log on which the translator is trained: both domains' events known by ``trained_until``, as integer arrays.

Events are read through Feast. Each target event is paired with its user's source history strictly before it by a point-in-time join.

*Labels* are the target events that a run can generate; the translator is fitted, calibrated and measured on them. If consumed items are
excluded (``[generation] exclude_consumed``), a run never repeats an item for a user. Then only the first event of a user with an item is a
label, and items that the user consumed earlier are not eligible at it (`training_pairs.consumed_before`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from scalr_prod.compute import worker_folder
from scalr_prod.core.delta_log import latest_time
from scalr_prod.core.hashing import hash_fold, stable_hash
from scalr_prod.core.id_index import IdIndex, sorted_unique
from scalr_prod.core.memmap import drop_pages, iter_row_slices, spill_arrays
from scalr_prod.core.timestamps import column_to_micros, to_micros
from scalr_prod.errors import NoCommonUsers, TranslatorError
from scalr_prod.features import ViewWindow, join_point_in_time, open_feature_store, stream_window
from scalr_prod.lake import Lake
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.translator.data.domain_events import (
    DomainEvents,
    EventWeighting,
    distinct_ids,
    is_first_interaction,
    load_events,
)
from scalr_prod.workspace import ConsentState, staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable
    from numpy.typing import NDArray

    from scalr_prod.config import Settings


_EventRanges: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]"

#: Target events per point-in-time join.
_SPINE_ROWS = 200_000
#: Users and times looked up at a time.
_LOOKUP_BATCH = 65_536
_DOMAINS: Final = ("source", "target")
_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)
_COLUMNS: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP)


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


@dataclass(frozen=True)
class EventLog:
    """Events of both domains.

    Attributes:
        users: [U]. Ids of the users of both domains, sorted.
        fold: int32 [U]. Fold of each user.
        source: Source events.
        target: Target events.
        history: [len(target), L], or a `HistoryIndex`, which is indexed in the same way. Positions in ``source`` of the last L events
            strictly before each target event, left-padded with -1; int32 or int64, see `position_dtype`.
        exclude_consumed: Whether runs exclude items that the user already consumed.
        scratch_dir: Folder for anonymous temporary files, see `core.memmap`; None: the system's temporary folder.
    """

    users: pa.Array
    fold: NDArray[np.int32]
    source: DomainEvents
    target: DomainEvents
    history: NDArray[np.int32 | np.int64] | HistoryIndex
    exclude_consumed: bool = True
    scratch_dir: Path | None = None

    @classmethod
    def with_complete_histories(
        cls, users: pa.Array, fold: NDArray[np.int32], source: DomainEvents, target: DomainEvents, *, length: int
    ) -> EventLog:
        """Pair two domains' events without a feature store, with histories of all source events before each target event.

        Args:
            users: [U]. Ids of the users of both domains, sorted.
            fold: int32 [U]. Fold of each user.
            source: Source events.
            target: Target events.
            length: L, the number of events in a history.
        """
        dtype = position_dtype(len(source))
        begin = stop = np.zeros(len(target), dtype=np.int64)
        if len(source):
            begin, stop = np.searchsorted(source.user, target.user), _EventFinder(source).end_before(target.user, target.time)
        count = np.minimum(stop - begin, length).astype(np.int32)
        late = np.empty(0, dtype=np.int64), np.empty((0, length), dtype=dtype)
        return cls(users, fold, source, target, HistoryIndex(stop.astype(dtype), count, length, *late))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "scratch_dir"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the log in another process, whose temporary files lie elsewhere."""
        vars(self).update(state, scratch_dir=worker_folder())

    @cached_property
    def is_label(self) -> NDArray[np.bool_]:
        """Return which target events are labels: bool [len(target)]."""
        return is_first_interaction(self.target) if self.exclude_consumed else np.ones(len(self.target), dtype=bool)

    @cached_property
    def weight_gains(self) -> NDArray[np.float32] | None:
        """Return how much each target event adds to its item's count: float32 [len(target)]; None: labels add 1, others 0.

        A user's events on one item count together as much as the heaviest one. So a purchase after a view adds the difference. One after
        an event that a recommendation led to, which weighs 0, adds its whole weight (measured: ADR 0098).
        """
        weight = self.target.weight
        if weight is None or not self.exclude_consumed:
            return weight
        _, pair = np.unique(self._pairs(), return_inverse=True)
        order = np.argsort(pair, kind="stable")
        # Offsets larger than any weight keep the pairs apart.
        offset = pair[order] * (float(weight.max(initial=0)) + 1)
        heaviest = np.maximum.accumulate(weight[order] + offset) - offset
        before = np.append(0.0, heaviest[:-1]) * np.append(False, pair[order][1:] == pair[order][:-1])
        gains = np.empty(len(weight), dtype=np.float32)
        gains[order] = np.maximum(heaviest - before, 0)
        # Set rounding errors to 0.
        return np.where(gains > 1e-6 * max(float(weight.max(initial=0)), 1e-30), gains, 0).astype(np.float32)

    def label_weights(self, until: int) -> NDArray[np.float32] | None:
        """Return the weight of each target event as a label, from the events before a time (µs): float32 [len(target)]; None: 1 each."""
        weight = self.target.weight
        if weight is None or not self.exclude_consumed:
            return weight
        _, pair = np.unique(self._pairs(), return_inverse=True)
        heaviest = np.zeros(pair.max(initial=-1) + 1, dtype=np.float32)
        known = self.target.time < until
        np.maximum.at(heaviest, pair[known], weight[known])
        return heaviest[pair]

    def _pairs(self) -> NDArray[np.int64]:
        """Return the user and item of each target event as one integer: int64 [len(target)]."""
        pairs: NDArray[np.int64] = self.target.user.astype(np.int64) * len(self.target.ids) + self.target.item
        return pairs

    def sample_by_weight(self, rows: NDArray[np.int64], until: int, seed: int) -> NDArray[np.int64]:
        """Sample labels in proportion to their weight; return all of them if each has weight 1.

        Args:
            rows: int64 [R]. Positions in ``target``.
            until: Time (µs) of the weights, see `label_weights`.
            seed: Seed of the random generator.
        """
        weight = self.label_weights(until)
        if weight is None or not len(rows):
            return rows
        threshold = np.random.default_rng(seed).random(len(rows)) * max(float(weight[rows].max()), 1e-30)
        return rows[threshold < weight[rows]]

    def label_times(self) -> NDArray[np.int64]:
        """Return the times of the labels: int64 [labels], microseconds."""
        return self.target.time[self.is_label]

    def sample_users(self, denominator: int) -> NDArray[np.bool_]:
        """Sample one in ``denominator`` users by hash, independently of the folds: bool [U]."""
        # Buckets and folds depend mostly on other bits of the hash.
        mask: NDArray[np.bool_] = (stable_hash(self.users) >> np.uint64(20)) % np.uint64(denominator) == 0
        return mask


def data_end(lake: Lake, *, opened: Mapping[Table, DeltaTable] | None = None) -> datetime:
    """Return the first time by which every event of both domains has happened and is known (UTC).

    Args:
        lake: The lake.
        opened: Its events tables, if already open.

    Raises:
        TableNotFound: Nothing was ingested yet.
        TranslatorError: Both logs are empty.
    """
    events = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
    tables = lake.open_tables(events) if opened is None else {table: opened[table] for table in events}
    found = [latest_time(table, (EVENT_TIMESTAMP, CREATED_TIMESTAMP)) for table in tables.values()]
    latest = [time for time in found if time is not None]
    if not latest:
        raise TranslatorError("both domains have no events", where=lake.root, next_step="read the logs: scalr ingest")
    return max(latest).astimezone(UTC) + timedelta(microseconds=1)


def read_event_log(settings: Settings, trained_until: datetime, *, versions: Mapping[str, int] | None = None) -> EventLog:
    """Read the events that had happened before ``trained_until`` and were known by then.

    With ``[translator] train_on = "consenting_users"``, users without consent are left out, in both domains. These are the users whom a run
    does not translate; users of the target domain alone are not asked, and stay.

    Args:
        settings: The project's settings.
        trained_until: Only events that had happened and were known before this time are read.
        versions: Table name → Delta version to read; default: the latest ones.

    Returns:
        The log, with its events on disk.

    Raises:
        InputError: Consent is required, and no ingest has recorded the users' answers.
        LakeError: The disk is full.
        NoCommonUsers: No user has events in both domains.
        TranslatorError: A domain has no event before that time, or the histories were built from another state of the log.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if versions is None:  # fixed, since each table is read more than once
        lake = Lake.open(settings)
        versions = lake.versions(_TABLES)
    with staging_folder(settings, "translator") as folder:
        consent, excluded = training_consent(settings), None
        if consent is not None:
            every_source_event = _column_reader(settings, Table.SOURCE_EVENTS, trained_until, versions, excluded=None)
            (source_users,) = distinct_ids(every_source_event(USER_ID))
            excluded = consent.users_without_consent(settings.home, source_users)
        readers = {
            domain: _column_reader(settings, Table.events(domain), trained_until, versions, excluded) for domain in _DOMAINS
        }
        users, items = {}, {}
        for domain in _DOMAINS:
            users[domain], items[domain] = distinct_ids(readers[domain](USER_ID, ITEM_ID))
            if not len(users[domain]):
                raise TranslatorError(
                    f"no {domain} event happened and was known before {trained_until.isoformat()}",
                    where=str(Table.events(domain)),
                    next_step="train later, or ingest older events",
                )
        if not pc.any(pc.is_in(users["target"], users["source"])).as_py():
            raise NoCommonUsers(
                f"no user is in both domains ({len(users['source'])} source users, {len(users['target'])} target users)",
                where="domains.source.columns.user, domains.target.columns.user",
                next_step="map the columns that have the same kind of user id in both logs",
            )
        weighting = {"source": EventWeighting(), "target": target_weighting(settings)}
        all_users = sorted_unique(pa.chunked_array([users["source"].cast(users["target"].type), users["target"]]))
        columns = {domain: [*_COLUMNS, *weighting[domain].columns] for domain in _DOMAINS}
        (source, source_known), (target, _) = (
            load_events(readers[domain](*columns[domain]), all_users, items[domain], weighting[domain], folder)
            for domain in _DOMAINS
        )
        ranges = _source_ranges(settings, source, source_known, target, trained_until, folder)
        del source_known
        return EventLog(
            users=all_users,
            fold=hash_fold(all_users, settings.translator.folds),
            source=source,
            target=target,
            history=_histories(settings, all_users, source, target, ranges, trained_until, versions),
            exclude_consumed=settings.generation.exclude_consumed,
            # Not the staging folder, which is removed: fits may create files after that.
            scratch_dir=folder.parent,
        )


def _column_reader(
    settings: Settings, table: Table, until: datetime, versions: Mapping[str, int] | None, excluded: pa.Array | None
) -> Callable[..., pa.RecordBatchReader]:
    """Return a function that reads columns of the events that had happened and were known, without those of ``excluded`` users."""

    def read(*columns: str) -> pa.RecordBatchReader:
        window = ViewWindow(table.value, end=until, known_by=until, columns=columns, versions=versions)
        reader = stream_window(settings, window)
        return reader if excluded is None else _without_users(reader, excluded)

    return read


def _without_users(reader: pa.RecordBatchReader, users: pa.Array) -> pa.RecordBatchReader:
    import pyarrow as pa
    import pyarrow.compute as pc

    excluded = users.cast(reader.schema.field(USER_ID).type)
    batches = (batch.filter(pc.invert(pc.is_in(batch.column(USER_ID), value_set=excluded))) for batch in reader)
    return pa.RecordBatchReader.from_batches(reader.schema, batches)


def training_consent(settings: Settings) -> ConsentState | None:
    """Return the consents that training respects (``[translator] train_on``), or None if it uses the events of all users.

    Raises:
        InputError: No ingest has recorded the users' answers.
    """
    return ConsentState.from_settings(settings) if settings.translator.train_on == "consenting_users" else None


def target_weighting(settings: Settings) -> EventWeighting:
    """Return how much target events weigh in training."""
    target = settings.domains.target
    types = target.types if target.weights_for == "all" and any(weight != 1 for weight in target.types.values()) else {}
    drops_recommended = target.columns.recommended_by is not None and settings.translator.recommended_events == "drop"
    return EventWeighting(dict(types), drops_recommended)


def _histories(
    settings: Settings,
    users: pa.Array,
    source: DomainEvents,
    target: DomainEvents,
    ranges: _EventRanges,
    until: datetime,
    versions: Mapping[str, int] | None,
) -> HistoryIndex:
    """Return the positions of the last L source events strictly before each target event.

    The join returns the length of each history and the time of its last event. If the log has as many events before the target event, they
    are consecutive events of ``source``. If the history is shorter, because it lacks late events (``[histories] late_step_s``), its events
    are looked up one by one.

    Raises:
        TranslatorError: The histories were built from another state of the log.
    """
    import pyarrow as pa

    view, length, store = Table.SOURCE_USER_HISTORY.value, settings.histories.length, open_feature_store(settings)
    begin, stop, settled = ranges
    incomplete_rows, finder = [np.empty(0, dtype=np.int64)], _EventFinder(source)
    dtype = position_dtype(len(source))
    positions = [np.empty((0, length), dtype=dtype)]
    for first in range(0, len(target), _SPINE_ROWS):
        rows = np.arange(first, min(first + _SPINE_ROWS, len(target)))
        # One microsecond before the label: an event at the same time may belong to the same visit.
        moments = pa.array(target.time[rows] - 1).cast(pa.timestamp("us", tz="UTC"))
        spine = pa.table({USER_ID: users.take(pa.array(target.user[rows])), EVENT_TIMESTAMP: moments})

        def join(*columns: str, spine: pa.Table = spine) -> pa.Table:
            joined = join_point_in_time(store, spine, [f"{view}:{name}" for name in columns], known_by=until, versions=versions)
            return joined.select([f"{view}__{name}" for name in columns])

        lengths, times = join("event_count", "event_timestamps").columns
        count, last = lengths.fill_null(0).to_numpy().astype(np.int64), _last_times(times.combine_chunks())
        is_complete = count == stop[rows] - begin[rows]
        is_consistent = np.where(is_complete & (count > 0), source.time[stop[rows] - 1] == last, count >= settled[rows])
        if not is_consistent.all() or (count > stop[rows] - begin[rows]).any():
            raise _histories_outdated()
        if not is_complete.all():
            incomplete = np.flatnonzero(~is_complete)
            items, times = join("item_ids", "event_timestamps", spine=spine.take(pa.array(incomplete))).columns
            incomplete_rows.append(rows[incomplete])
            positions.append(finder.positions(target.user[rows[incomplete]], items, times, length))
    counts = np.minimum(stop - begin, length)
    return HistoryIndex(
        stop.astype(dtype), counts.astype(np.int32), length, np.concatenate(incomplete_rows), np.concatenate(positions)
    )


def _source_ranges(
    settings: Settings, source: DomainEvents, known: NDArray[np.int64], target: DomainEvents, until: datetime, folder: Path
) -> _EventRanges:
    """Return, for each target event, start and end of its user's source events before it, and how many of them are settled: int64 each.

    An event is settled if every history known at ``until`` must contain it.
    """
    begin, stop = np.searchsorted(source.user, target.user), _EventFinder(source).end_before(target.user, target.time)
    settled = _count_settled(known, settings.histories.late_step_s * 1_000_000, to_micros(until), folder)
    return begin, stop, settled[stop] - settled[begin]


def _count_settled(known: NDArray[np.int64], step: int, until: int, folder: Path) -> NDArray[np.int64]:
    """Count the settled events in each prefix of the events: int64 [M + 1].

    Args:
        known: int64 [M]. Time at which each event became known, microseconds.
        step: Interval at which late events enter the histories, microseconds; 0: at once.
        until: Time of the histories, microseconds.
        folder: Folder of the result's file.
    """

    def cumulative_counts() -> Iterator[tuple[NDArray[np.int64]]]:
        total = np.zeros(1, dtype=np.int64)
        yield (total,)
        for rows in iter_row_slices(len(known)):
            entered = known[rows]
            if step:
                entered = entered // -step * -step
            total = total[-1] + np.cumsum(entered <= until)
            yield (total,)

    return spill_arrays(cumulative_counts(), [np.int64], folder)[0]


@dataclass(frozen=True)
class _EventFinder:
    """Index of source events by user and time.

    Attributes:
        source: The events.
    """

    source: DomainEvents

    @cached_property
    def _item_index(self) -> IdIndex:
        return IdIndex(self.source.ids)

    def end_before(self, user: NDArray[np.int32], time: NDArray[np.int64], *, inclusive: bool = False) -> NDArray[np.int64]:
        """Return the position after each user's last event before a time, or up to and including that time.

        Args:
            user: int32 [R], ascending.
            time: int64 [R], microseconds.
            inclusive: Include events at the time.

        Returns:
            int64 [R].
        """
        ends = np.empty(len(user), dtype=np.int64)
        batches = (self.source.time[rows] for rows in iter_row_slices(len(self.source)))
        bounds = np.array([(batch.min(), batch.max()) for batch in batches])
        low = int(bounds.min())
        span = int(bounds.max()) - low + 2
        first = 0
        while first < len(user):
            # Encode user and time as one integer, for as many users as fit into int64.
            lowest = int(user[first])
            beyond = min(lowest + (2**63 - 1) // span, 2**31 - 1)
            stop = first + int(np.searchsorted(user[first : first + _LOOKUP_BATCH], np.int32(beyond)))
            begin, end = np.searchsorted(self.source.user, user[[first, stop - 1]] + np.array([0, 1], np.int32))
            key = (self.source.user[begin:end].astype(np.int64) - lowest) * span
            key += self.source.time[begin:end] - low
            query = (user[first:stop].astype(np.int64) - lowest) * span
            query += (time[first:stop] + inclusive).clip(low, low + span - 1) - low
            ends[first:stop] = begin + np.searchsorted(key, query)
            first = stop
            drop_pages()
        return ends

    def positions(
        self, user: NDArray[np.int32], items: pa.ChunkedArray, times: pa.ChunkedArray, length: int
    ) -> NDArray[np.int32 | np.int64]:
        """Return the positions of the events listed in histories: [R, L], left-padded with -1; see `position_dtype`.

        Args:
            user: int32 [R]. User of each history.
            items: [R]. Item ids of each history.
            times: [R]. Event times of each history.
            length: L.

        Raises:
            TranslatorError: An event is missing in the log.
        """
        import pyarrow.compute as pc

        count = pc.fill_null(pc.list_value_length(items), 0).to_numpy().astype(np.int64)
        row = np.repeat(np.arange(len(user)), count)
        column = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + length - count[row]
        item = self._item_index.positions(pc.list_flatten(items))
        time = column_to_micros(pc.list_flatten(times))
        low, high = self.end_before(user[row], time), self.end_before(user[row], time, inclusive=True)
        # All events of the same user and time; the one with the same item is the event.
        entry = np.repeat(np.arange(len(row)), high - low)
        candidate = np.arange(len(entry)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[entry]
        same = self.source.item[candidate] == item[entry]
        positions = np.full((len(user), length), -1, dtype=position_dtype(len(self.source)))
        positions[row[entry[same]], column[entry[same]]] = candidate[same]
        if (positions >= 0).sum() < len(row):
            raise _histories_outdated()
        return positions


def _histories_outdated() -> TranslatorError:
    return TranslatorError(
        "the histories were built from another state of the event log",
        where=Table.SOURCE_USER_HISTORY.value,
        next_step="rebuild them: scalr histories",
    )


def _last_times(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the last element of each list, in microseconds; 0 for empty and null lists."""
    import pyarrow.compute as pc

    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = column_to_micros(lists.flatten())
    ends = np.cumsum(length) - 1
    return np.where(length > 0, values[np.maximum(ends, 0)] if len(values) else 0, 0)
