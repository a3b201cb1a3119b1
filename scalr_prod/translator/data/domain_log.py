# SPDX-License-Identifier: Apache-2.0
"""Logs of domains read without a lake, each once, and the event log of any two of them.

Every event counts as known at its own time, so that an item's or a user's history as of an instant is what had happened before it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from scalr_prod.core.hashing import hash_fold, stable_hash
from scalr_prod.core.id_index import IdIndex, sorted_unique
from scalr_prod.errors import EmptyInput
from scalr_prod.ingest import EventParser, IdParser, common_id_type, open_events
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.translator.data.domain_events import DomainEvents, EventWeighting, load_events
from scalr_prod.translator.data.event_log import EventLog

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.config import Settings


@dataclass(frozen=True)
class DomainLog:
    """One domain's log.

    Attributes:
        users: [U]. Ids of its users as text, sorted.
        events: Its events; ``user`` is a position in ``users``.
        user_ids: Parser of the user ids, with their type.
    """

    users: pa.Array
    events: DomainEvents
    user_ids: IdParser

    @classmethod
    def from_settings(cls, settings: Settings, place: str) -> Self:
        """Read a domain's log with the ingest's parsers and checks.

        Args:
            settings: Settings that name the log.
            place: Key of its settings below ``[domains]``.

        Raises:
            InputError: The log cannot be read, is empty, lacks a column, or holds an invalid cell.
        """
        import pyarrow as pa

        batches, origin = open_events(settings, place)
        cells, parsed = EventParser(settings.domains[place], place), []
        with closing(batches):
            for batch in batches:
                rows = cells.parse(batch)
                # Ids repeat: a dictionary for each batch takes far less memory than their texts.
                ids = {name: _as_text(rows.column(name)).dictionary_encode() for name in (USER_ID, ITEM_ID)}
                parsed.append(pa.table(ids | {name: rows.column(name) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)}))
        cells.user_ids.ensure_no_nulls()
        cells.item_ids.ensure_no_nulls()
        cells.left_out.ensure_within_limit(sum(map(len, parsed)) + sum(cells.left_out.counts.values()))
        if not sum(map(len, parsed)):
            raise EmptyInput("holds no row", where=origin, next_step=f"check what [domains.{place}] names")
        # Ids that a tool printed as floats are those of logs that hold integers.
        as_floats = cells.user_ids.declared_type is None and cells.user_ids.all_integral_floats
        return cls.from_events(pa.concat_tables(parsed), cells.user_ids, strip_fractions=as_floats)

    @classmethod
    def from_events(cls, events: pa.Table, user_ids: IdParser | None = None, *, strip_fractions: bool = False) -> Self:
        """Build the log of a table.

        Args:
            events: ``user_id`` and ``item_id`` as texts, which may be dictionary-encoded, ``event_timestamp``, ``created_timestamp``.
            user_ids: Parser of the user ids; default: one of ids without a known type.
            strip_fractions: Whether user ids are integers printed as floats.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        users, items = (_distinct(events[name]) for name in (USER_ID, ITEM_ID))
        arrays, _ = load_events(events.to_batches(), users, items, EventWeighting(), None)
        if strip_fractions:
            # Integers sort in another order as texts with a fraction than without.
            names = pc.replace_substring_regex(users, r"\.0$", "")
            users = sorted_unique(names)
            number = IdIndex(users).positions(names)[arrays.user]
            order = np.lexsort((arrays.time, number))
            arrays = DomainEvents(number[order], arrays.item[order], arrays.time[order], items)
        return cls(users.cast(pa.string()), arrays, user_ids or IdParser())

    @classmethod
    def merged(cls, logs: Mapping[str, DomainLog]) -> DomainLog:
        """Merge the logs of several source domains into one; items of different domains are different items.

        Args:
            logs: Name → log.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        users = sorted_unique(pa.chunked_array([log.users for log in logs.values()]))
        index, first = IdIndex(users), 0
        columns: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]] = []
        ids = []
        for name, log in logs.items():
            columns.append((index.positions(log.users)[log.events.user], log.events.item + np.int32(first), log.events.time))
            ids.append(pc.binary_join_element_wise(name, log.events.ids.cast(pa.string()), ":"))
            first += len(log.events.ids)
        user, item, time = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.lexsort((item, time, user))
        merged = DomainEvents(user[order], item[order], time[order], pa.concat_arrays(ids))
        return cls(users, merged, next(iter(logs.values())).user_ids)

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.events)

    def n_labels(self) -> int:
        """Return the number of distinct pairs of a user and an item."""
        return len(np.unique(self.events.user.astype(np.int64) * len(self.events.ids) + self.events.item))

    def n_windows(self, length: int) -> int:
        """Return the number of windows of ``length`` events that the users' events fill."""
        return int((-(-np.bincount(self.events.user) // length)).sum())

    def ensure_same_ids(self, other: DomainLog) -> None:
        """Ensure that the ingest would accept the user ids of both logs together.

        Raises:
            BadValue: Their types differ.
        """
        common_id_type("user", [self.user_ids, other.user_ids])

    def common_users(self, other: DomainLog) -> int:
        """Return the number of users that both logs have."""
        import pyarrow.compute as pc

        return int(pc.sum(pc.is_in(self.users, value_set=other.users)).as_py() or 0)


def pair_log(source: DomainLog, target: DomainLog, *, length: int, folds: int, max_events: int) -> EventLog:
    """Pair two logs for training.

    Args:
        source: Log of the source domain.
        target: Log of the target domain.
        length: L, the number of events in a history.
        folds: Number of user folds.
        max_events: Largest number of events of each domain. Users of both domains are taken first, then others, each in the order of a
            hash of their ids; a user is taken with all events or left out.

    Returns:
        The log, with every history complete.
    """
    import pyarrow as pa

    all_users = sorted_unique(pa.chunked_array([source.users, target.users]))
    index = IdIndex(all_users)
    numbers = {name: index.positions(log.users)[log.events.user] for name, log in (("source", source), ("target", target))}
    kept = _sample_users(all_users, numbers["source"], numbers["target"], max_events)
    users = all_users.filter(pa.array(kept))
    position = (np.cumsum(kept) - 1).astype(np.int32)
    sides = []
    for log, number in ((source, numbers["source"]), (target, numbers["target"])):
        rows = kept[number]
        events = log.events
        sides.append(replace(events, user=position[number[rows]], item=events.item[rows], time=events.time[rows]))
    return EventLog.with_complete_histories(users, hash_fold(users, folds), *sides, length=length)


def with_first_items(log: EventLog, n_items: int) -> EventLog:
    """Return a log without the source events of all but the first ``n_items`` source ids; users and target events stay."""
    rows = log.source.item < n_items
    source = replace(log.source, user=log.source.user[rows], item=log.source.item[rows], time=log.source.time[rows])
    return EventLog.with_complete_histories(log.users, log.fold, source, log.target, length=log.history.shape[1])


def _sample_users(users: pa.Array, source: NDArray[np.int32], target: NDArray[np.int32], max_events: int) -> NDArray[np.bool_]:
    """Return which users are kept, see `pair_log`: bool [U]; ``source`` and ``target`` hold the user of each event."""
    counts = np.stack([np.bincount(number, minlength=len(users)) for number in (source, target)])
    kept = np.zeros(len(users), dtype=bool)
    in_order = np.argsort(stable_hash(users), kind="stable")
    has_source, has_target = counts > 0
    both = has_source & has_target
    left = np.array([max_events, max_events])
    for candidates, domains in ((both, (0, 1)), (has_source & ~both, (0,)), (has_target & ~both, (1,))):
        ordered = in_order[candidates[in_order]]
        totals = np.cumsum(counts[:, ordered], axis=1)
        fitting = min(int(np.searchsorted(totals[domain], left[domain], side="right")) for domain in domains)
        kept[ordered[:fitting]] = True
        if fitting:
            left = left - totals[:, fitting - 1]
    return kept


def _as_text(ids: pa.Array) -> pa.Array:
    import pyarrow as pa

    return ids.cast(pa.string())


def _distinct(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    chunks = [chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk for chunk in column.chunks]
    return sorted_unique(pa.chunked_array(chunks))
