# SPDX-License-Identifier: Apache-2.0
"""Training data of a parameter set: the log before a time as vocabularies, matrices, and contexts with labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from scalr_prod.core.memmap import drop_pages, iter_row_slices
from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import TranslatorError
from scalr_prod.translator.data.contexts import ConsumedItems, Contexts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from scalr_prod.config import TranslatorSettings
    from scalr_prod.translator.data.domain_events import DomainEvents
    from scalr_prod.translator.data.event_log import EventLog


#: An estimator's tensors, by name.
Parameters: TypeAlias = "dict[str, torch.Tensor]"

#: Histories read at a time.
_HISTORY_BATCH: Final = 16_384
#: Users whose source events are read at a time.
_USER_BATCH: Final = 32_768
_ALL: Final = slice(None)


@dataclass(frozen=True)
class VocabularyCoverage:
    """Share of a domain's items and events that its vocabulary covers.

    Attributes:
        items: Items with an event.
        kept: Items in the vocabulary: those with the most events.
        events: All events.
        events_kept: Events of items in the vocabulary.
    """

    items: int
    kept: int
    events: int
    events_kept: int

    @property
    def is_complete(self) -> bool:
        """Whether the vocabulary holds every item."""
        return self.kept == self.items


class PopularityEvents(NamedTuple):
    """The M target events that popularity counts.

    Attributes:
        item: int32 [M]. Vocabulary indices.
        time: int64 [M]. Microseconds since the epoch.
        weight: float32 [M]. Weight of each event; None: 1 each.
    """

    item: NDArray[np.int32]
    time: NDArray[np.int64]
    weight: NDArray[np.float32] | None


@dataclass(frozen=True)
class TrainingSlice:
    """Training data of one parameter set.

    Attributes:
        log: The whole log.
        until: End of the slice, exclusive (µs).
        source_index: int32 [source ids]. Vocabulary index, 1 … n_source; 0 for items outside it.
        target_index: int32 [target ids]. Vocabulary index, 0 … n_target - 1 in order of first appearance; -1 for items outside it.
        first_seen: int64 [n_target], ascending. Time of each target item's first event, microseconds.
        held_out: bool [U]. Users whose target events are excluded.
        popularity_until: End of the events that popularity uses (µs). It may be later than ``until``: popularity is a feature that is known
            at the time of each event, whereas the other parameters are fitted once.
        settings: ``[translator]``.
        device: Device that an estimator may train on; its tensors are returned on the CPU.
    """

    log: EventLog
    until: int
    source_index: NDArray[np.int32]
    target_index: NDArray[np.int32]
    first_seen: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    popularity_until: int
    settings: TranslatorSettings
    device: str = "cpu"

    @classmethod
    def from_log(
        cls,
        log: EventLog,
        until: int,
        settings: TranslatorSettings,
        *,
        popularity_until: int | None = None,
        device: str = "cpu",
    ) -> TrainingSlice:
        """Build the slice before ``until``, with no user held out.

        Args:
            log: Everything that training may read.
            until: Microseconds since the epoch.
            settings: ``[translator]``.
            popularity_until: See the attribute; default: ``until``.
            device: See the attribute.

        Returns:
            The slice, with vocabularies of the items that had events in it.

        Raises:
            TranslatorError: The slice has no source item, or fewer than two target items.
        """
        source_index, _ = _vocabulary(log.source, until, settings.max_source_items)
        target_index, first_seen = _vocabulary(log.target, until, settings.max_target_items)
        if source_index.max(initial=-1) < 0 or len(first_seen) < 2:  # noqa: PLR2004 - one item leaves no choice
            first_days = [np.datetime64(int(one.time.min()), "us").astype("M8[D]") for one in (log.source, log.target)]
            raise TranslatorError(
                f"too little training data: {source_index.max(initial=-1) + 1} source and {len(first_seen)} target items before "
                f"{np.datetime64(until, 'us')}; source events begin on {first_days[0]}, target events on {first_days[1]}",
                where="the training slice",
                next_step="ingest source events from before the target events, and target events of more than one time",
            )
        no_users = np.zeros(len(log.users), dtype=bool)
        source_index += np.int32(1)
        return cls(log, until, source_index, target_index, first_seen, no_users, popularity_until or until, settings, device)

    def without_users(self, held_out: NDArray[np.bool_]) -> TrainingSlice:
        """Return the same slice and vocabularies without the target events of some users.

        Args:
            held_out: bool [U]. Users whose target events are excluded.

        Returns:
            A slice that shares the log and the vocabularies.
        """
        return replace(self, held_out=held_out)

    @property
    def n_source(self) -> int:
        """Number of source items, without the padding."""
        return int(self.source_index.max(initial=0))

    @property
    def n_target(self) -> int:
        """Number of target items."""
        return len(self.first_seen)

    def coverage(self) -> dict[str, VocabularyCoverage]:
        """Return the coverage of both domains (``source``, ``target``) under the limits ``[translator] max_…_items``."""
        known = {"source": self.source_index > 0, "target": self.target_index >= 0}
        return {name: _coverage(getattr(self.log, name), self.until, mask) for name, mask in known.items()}

    def source_events(self, users: slice = _ALL) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the source events of the slice.

        Args:
            users: A range of consecutive users; default: all.

        Returns:
            User and vocabulary index: int32 [E] each, in the order of users.

        Raises:
            ValueError: ``users`` has a step other than 1.
        """
        events = self.log.source
        first, stop, step = users.indices(len(self.log.users))
        if step != 1:
            raise ValueError(f"users must be a range of consecutive users, not {users}")
        # searchsorted would copy all users to convert them to another type.
        begin, end = np.searchsorted(events.user, np.array([first, stop], dtype=events.user.dtype))
        index = self.source_index[events.item[begin:end]]
        counts = (events.time[begin:end] < self.until) & (index > 0)
        return events.user[begin:end][counts], index[counts]

    def target_rows(self) -> NDArray[np.int64]:
        """Return the positions in ``log.target`` of the slice's labels: eligible events of users who are not held out."""
        events = self.log.target
        counts = (events.time < self.until) & (self.target_index[events.item] >= 0) & ~self.held_out[events.user]
        counts &= self.log.is_label
        weights = self.log.label_weights(self.until)
        return np.flatnonzero(counts if weights is None else counts & (weights > 0))

    def target_weights(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the weight of each of `target_rows`.

        Args:
            rows: int64 [R]. Positions in ``log.target``.

        Returns:
            float32 [R], 0 or more; None: 1 each.
        """
        weights = self.log.label_weights(self.until)
        return None if weights is None else weights[rows]

    def popularity_events(self) -> PopularityEvents:
        """Return every target event that popularity counts, labels included."""
        events, gains = self.log.target, self.log.weight_gains
        index = self.target_index[events.item]
        counts = (events.time < self.popularity_until) & (index >= 0) & ~self.held_out[events.user]
        counts &= self.log.is_label if gains is None else gains > 0
        return PopularityEvents(index[counts], events.time[counts], None if gains is None else gains[counts])

    def source_matrix(self, users: slice = _ALL) -> Any:
        """Return the user-item matrix of source events. For all users of a long log it is large.

        Args:
            users: Users of the rows, a range of consecutive users; default: all.

        Returns:
            scipy CSR float32 [U, n_source + 1]: 1 if the user had an event with the item; column 0 is empty.

        Raises:
            ValueError: ``users`` has a step other than 1.
        """
        user, item = self.source_events(users)
        first, stop, _ = users.indices(len(self.log.users))
        return _matrix(user - np.int32(first), item, (stop - first, self.n_source + 1))

    def source_user_counts(self) -> NDArray[np.float32]:
        """Return the number of users of each source item: float32 [n_source + 1], 0 for the padding."""
        sums = (np.asarray(self.source_matrix(users).sum(axis=0)).ravel() for users in self.iter_user_batches())
        return sum(sums, np.zeros(self.n_source + 1, dtype=np.float32))

    def iter_user_batches(self) -> Iterator[slice]:
        """Yield all users as consecutive ranges, at least one."""
        return iter_row_slices(len(self.log.users), _USER_BATCH)

    def target_matrix(self) -> Any:
        """Return the user-item matrix of labels: scipy CSR float32 [U, n_target], 1 or the weight; rows of held-out users are empty."""
        rows = self.target_rows()
        events, shape = self.log.target, (len(self.log.users), self.n_target)
        matrix = _matrix(events.user[rows], self.target_index[events.item[rows]], shape)
        weights = self.target_weights(rows)
        if weights is not None:
            matrix.sort_indices()
            cell = events.user[rows].astype(np.int64) * self.n_target + self.target_index[events.item[rows]]
            cells, entry = np.unique(cell, return_inverse=True)  # in the order of the matrix
            heaviest = np.zeros(len(cells), dtype=np.float32)
            np.maximum.at(heaviest, entry, weights)
            matrix.data[:] = heaviest
            matrix.eliminate_zeros()
        return matrix


@dataclass(frozen=True)
class LazyContexts:
    """Contexts of target events, built on demand: those of all events of a long log do not fit into memory.

    Attributes:
        log: The event log.
        rows: int64 [R]. Positions in ``log.target``.
        source_index: int32 [source ids]. Vocabulary index of each source id.
        target_index: int32 [target ids]. Vocabulary index of each target id.
        asked_at: Time of all contexts, see `contexts_and_labels`; None: that of their events.
    """

    log: EventLog
    rows: NDArray[np.int64]
    source_index: NDArray[np.int32]
    target_index: NDArray[np.int32]
    asked_at: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def event_time(self) -> NDArray[np.int64]:
        """Return `Contexts.event_time` of the events: int64 [R]."""
        return self.log.target.time[self.rows] if self.asked_at is None else np.full(len(self.rows), self.asked_at)

    @property
    def labels(self) -> NDArray[np.int32]:
        """Return the target index of each event, -1 for items outside the vocabulary: int32 [R]."""
        return self.target_index[self.log.target.item[self.rows]]

    def has_known_items(self) -> NDArray[np.bool_]:
        """Return whether each history has an item of the vocabulary: bool [R]."""
        known = np.empty(len(self), dtype=bool)
        for batch, _, items in _history_batches(self.log, self.rows, self.source_index, self.asked_at):
            known[batch] = (items > 0).any(1)
        return known

    def take(self, rows: NDArray[Any]) -> Contexts:
        """Build the contexts of a selection of the events, int64 or bool, with fold -1."""
        return contexts_and_labels(
            self.log,
            self.rows[rows],
            source_index=self.source_index,
            target_index=self.target_index,
            asked_at=self.asked_at,
        )[0]


def contexts_and_labels(
    log: EventLog,
    rows: NDArray[np.int64],
    *,
    source_index: NDArray[np.int32],
    target_index: NDArray[np.int32],
    fold: NDArray[np.int32] | int = -1,
    asked_at: int | None = None,
) -> tuple[Contexts, NDArray[np.int32]]:
    """Return the contexts of target events, and the target index of each event.

    A run asks at one time about all of a user's later events, and does not know when they will happen. At the time of the event itself,
    recent popularity is fresher than any run can know, so that probabilities fitted there are too high for a run.

    Args:
        log: The event log.
        rows: int64 [R]. Positions in ``log.target``.
        source_index: int32 [source ids]. Vocabulary index of each source id.
        target_index: int32 [target ids]. Vocabulary index of each target id.
        fold: int32 [R], or one number. Parameter set of each context.
        asked_at: Time (µs) as of which all contexts are built, no later than the events; None: each is built strictly before its event.
            In both cases the items that the user consumed before the event are excluded.

    Returns:
        R contexts; int32 [R] labels, -1 for items outside the vocabulary.
    """
    items = np.empty((len(rows), log.history.shape[1]), dtype=np.int32)
    ages, end = np.empty(items.shape, dtype=np.float32), np.empty(len(rows), dtype=np.int64)
    time = log.target.time[rows] if asked_at is None else np.full(len(rows), asked_at)
    for batch, history, index in _history_batches(log, rows, source_index, asked_at):
        valid, items[batch] = history >= 0, index
        # Ages are relative to the history's last event, as in a run.
        last = log.source.time[history[:, -1]]
        ages[batch] = np.where(valid, (last[:, None] - log.source.time[history]) / DAY_US, 0)
        end[batch] = np.where(valid[:, -1], last, time[batch])
    contexts = Contexts(
        history_items=items,
        history_ages=ages,
        history_end=end,
        event_time=time,
        fold=np.broadcast_to(np.asarray(fold, dtype=np.int32), len(rows)).copy(),
        noise_key=rows.astype(np.int64),
        exclude=consumed_before(log, rows, target_index),
    )
    labels = target_index[log.target.item[rows]]
    drop_pages()
    return contexts, labels


def consumed_before(
    log: EventLog, rows: NDArray[np.int64], target_index: NDArray[np.int32]
) -> ConsumedItems | NDArray[np.int32]:
    """Return the items to exclude at target events: those that the event's user consumed strictly before it.

    Args:
        log: The event log.
        rows: int64 [R]. Positions in ``log.target``.
        target_index: int32 [target ids]. Vocabulary index of each target id.

    Returns:
        The consumed items of each event; int32 [R, 0] if the log does not exclude consumed items.
    """
    if not log.exclude_consumed:
        return np.empty((len(rows), 0), dtype=np.int32)
    user, time = log.target.user, log.target.time
    is_label = log.is_label
    labels_before = np.append(0, np.cumsum(is_label))
    is_first = np.ones(len(user), dtype=bool)
    is_first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    # Position of the first event with the same user and time.
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(user)), 0))[rows]
    begin = labels_before[np.searchsorted(user, user[rows])]
    return ConsumedItems(target_index[log.target.item[is_label]], begin, labels_before[first] - begin)


def _history_batches(
    log: EventLog, rows: NDArray[np.int64], source_index: NDArray[np.int32], asked_at: int | None
) -> Iterator[tuple[slice, NDArray[Any], NDArray[np.int32]]]:
    """Yield histories of target events in batches: a slice, positions in ``log.source`` and vocabulary indices, both [R, L]."""
    bounds = None if asked_at is None else _source_bounds(log, asked_at)
    for batch in iter_row_slices(len(rows), _HISTORY_BATCH):
        if bounds is None:
            history = log.history[rows[batch]]
        else:
            begin, end = (bound[log.target.user[rows[batch]]][:, None] for bound in bounds)
            position = end + np.arange(-log.history.shape[1], 0)
            history = np.where(position >= begin, position, -1)
        yield batch, history, np.where(history >= 0, source_index[log.source.item[history]], 0)


def _source_bounds(log: EventLog, time: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each user's source events begin, and where those before a time end: int64 [U] each."""
    events, (total, before) = log.source, np.zeros((2, len(log.users)), dtype=np.int64)
    for batch in iter_row_slices(len(events)):
        user = events.user[batch]
        total += np.bincount(user, minlength=len(total))
        before += np.bincount(user[events.time[batch] < time], minlength=len(total))
    begin = np.cumsum(total) - total
    return begin, begin + before


def _vocabulary(events: DomainEvents, until: int, max_size: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Build a vocabulary of the most frequent items before a time, in order of first appearance, then id.

    Returns:
        int32 [ids]: index of each id, -1 outside the vocabulary; int64 [items]: time of each index's first event.
    """
    count = np.zeros(len(events.ids), dtype=np.int64)
    first = np.full(len(events.ids), np.iinfo(np.int64).max)
    for item, time in _iter_events_before(events, until):
        count += np.bincount(item, minlength=len(count))
        np.minimum.at(first, item, time)
    selected = np.lexsort((np.arange(len(count)), -count))[:max_size]
    selected = selected[count[selected] > 0]
    selected = selected[np.lexsort((selected, first[selected]))]
    index = np.full(len(events.ids), -1, dtype=np.int32)
    index[selected] = np.arange(len(selected), dtype=np.int32)
    return index, first[selected]


def _iter_events_before(events: DomainEvents, until: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Yield item and time of the events before a time, in batches."""
    for batch in iter_row_slices(len(events)):
        mask = events.time[batch] < until
        yield events.item[batch][mask], events.time[batch][mask]


def _coverage(events: DomainEvents, until: int, kept: NDArray[np.bool_]) -> VocabularyCoverage:
    count = np.zeros(len(events.ids), dtype=np.int64)
    for item, _ in _iter_events_before(events, until):
        count += np.bincount(item, minlength=len(count))
    return VocabularyCoverage(int((count > 0).sum()), int(kept.sum()), int(count.sum()), int(count[kept].sum()))


def _matrix(user: NDArray[Any], item: NDArray[Any], shape: tuple[int, int]) -> Any:
    """Build a CSR matrix of ones from users, in ascending order, and items; takes ownership of ``item``."""
    from scipy import sparse

    start = np.searchsorted(user, np.arange(shape[0] + 1, dtype=user.dtype))
    # scipy's constructor from coordinates copies the users three times.
    matrix = sparse.csr_matrix((np.ones(len(item), dtype=np.float32), item, start), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
