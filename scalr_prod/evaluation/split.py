# SPDX-License-Identifier: Apache-2.0
"""Temporal evaluation split: an isolated home with data up to a cutoff, and the users' later events to test on.

Translator and models read the isolated home only. Events after the cutoff are read in this module, for evaluation, and nowhere else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.id_index import index_in, sorted_unique
from scalr_prod.core.timestamps import column_to_micros, micros_to_datetime, to_micros
from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models.cluster_popularity import cluster_users
from scalr_prod.evaluation.sandbox import Sandbox, choose_hidden_users, create_sandbox
from scalr_prod.lake import Lake
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table, item_id_prefix
from scalr_prod.translator import time_quantile

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

#: Minimum number of test users.
MIN_TEST_USERS = 20
#: The setting of the first cutoff.
CUTOFF_SETTING: Final = "[downstream] cutoff"
#: Share of a training period's target events that lie before the cutoff of the next earlier split.
EARLIER_EVENT_SHARE: Final = 0.8


@dataclass(frozen=True)
class IdNumbering:
    """Mapping from ids to the numbers that models use: the position in each sorted array.

    Attributes:
        users: All users of either domain, sorted.
        items: Target items with an event known by the cutoff, sorted.
        source_items: Source items with an event known by the cutoff, sorted.
    """

    users: pa.Array
    items: pa.Array
    source_items: pa.Array

    def to_interactions(self, table: pa.Table, until: datetime, *, weight: NDArray[np.float32] | None = None) -> Interactions:
        """Convert target events (``user_id, item_id, event_timestamp``, and ``weight`` unless passed); drop unknown users and items."""
        user, item = index_in(table[USER_ID], self.users), index_in(table[ITEM_ID], self.items)
        weight = table["weight"].to_numpy().astype(np.float32) if weight is None else weight
        known = (user >= 0) & (item >= 0)
        return Interactions(
            user=user[known],
            item=item[known],
            time=column_to_micros(table[EVENT_TIMESTAMP])[known],
            weight=weight[known],
            n_users=len(self.users),
            n_items=len(self.items),
            until=to_micros(until),
        )


@dataclass(frozen=True)
class EvaluationSplit:
    """Training data and test data of one cutoff.

    Attributes:
        sandbox: The isolated home.
        numbering: Numbers of users and items.
        real: Visible target events before the cutoff.
        later: Target events from the cutoff on, of items known by then.
        source: Source events before the cutoff; item numbers are positions in `IdNumbering.source_items`.
        hidden: bool [U]. Users whose target history was hidden.
        users: int64 [V]. Test users: those with a test item, and an event before the cutoff that models or the translator see.
        relevant: scipy CSR [U, N]. Target items that users interacted with from the cutoff on and that are not in their visible history.
        held_out: scipy CSR [U, N]. Those items and the hidden users' histories: real events that were withheld from all training.
        cold_fraction: Share of users whose target history was hidden.
        name: Prefix of the home's name, and salt of the choice of hidden users.
        hidden_in_home: Whether the isolated home lacks the hidden users' target events, too; see `with_new_users`.
        cutoff_place: The setting or option that the cutoff comes from, for errors.
    """

    sandbox: Sandbox
    numbering: IdNumbering
    real: Interactions
    later: Interactions
    source: Interactions
    hidden: NDArray[np.bool_]
    users: NDArray[np.int64]
    relevant: Any
    held_out: Any
    cold_fraction: float = 0.0
    name: str = "test"
    hidden_in_home: bool = True
    cutoff_place: str = CUTOFF_SETTING
    _clusters: dict[int, NDArray[np.int32]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        cutoff: datetime,
        *,
        end: datetime | None,
        cold_fraction: float,
        name: str,
        cutoff_place: str = CUTOFF_SETTING,
    ) -> EvaluationSplit:
        """Create the isolated home and read the test data.

        Args:
            settings: A project whose lake holds both domains.
            cutoff: End of training and start of testing (UTC).
            end: End of testing; None: all data.
            cold_fraction: Share of users whose target history is hidden.
            name: Prefix of the home's name.
            cutoff_place: The setting or option that the cutoff comes from, for errors.

        Raises:
            EvaluationError: Too few test users.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        lake = Lake.open(settings)
        columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, "weight"]
        source, target = (lake.read(Table.events(domain), columns=columns) for domain in ("source", "target"))
        known_source, known_target = (_known_by(table, cutoff) for table in (source, target))
        users = sorted_unique(pa.chunked_array([*source[USER_ID].chunks, *target[USER_ID].chunks]))
        hidden = choose_hidden_users(users, cold_fraction, salt=f"{settings.downstream.seed}|{name}")
        isolated = create_sandbox(settings, cutoff, users.filter(pa.array(hidden)), name=name)
        numbering = IdNumbering(users, sorted_unique(known_target[ITEM_ID]), sorted_unique(known_source[ITEM_ID]))
        visible = _known_by(Lake.open(isolated.settings).read(Table.TARGET_EVENTS, columns=columns), cutoff)
        real = numbering.to_interactions(visible, cutoff)
        source_numbering = IdNumbering(users, numbering.source_items, numbering.source_items)
        after = pc.greater_equal(target[EVENT_TIMESTAMP], pa.scalar(cutoff))
        if end is not None:
            after = pc.and_(after, pc.less(target[EVENT_TIMESTAMP], pa.scalar(end)))
        later = numbering.to_interactions(target.filter(after), cutoff)
        relevant = _unseen_pairs(later, real)
        held_out = _unseen_pairs(numbering.to_interactions(target, cutoff), real)
        source_events = source_numbering.to_interactions(known_source, cutoff)
        tested = _test_users(relevant, real, source_events)
        without_events = int((np.diff(relevant.indptr) > 0).sum()) - len(tested)
        if without_events:
            message = (
                "%s: %d users without an event before %s in either domain are left out: only a list can rank items for them"
            )
            logger.info(message, name, without_events, cutoff.isoformat())
        if len(tested) < MIN_TEST_USERS:
            raise EvaluationError(
                f"only {len(tested)} users with earlier events interacted with a known target item from {cutoff.isoformat()} on; "
                f"{MIN_TEST_USERS} are needed",
                where=cutoff_place,
                next_step="choose a cutoff with events before and after it, or ingest more target events",
            )
        return cls(
            isolated,
            numbering,
            real,
            later,
            source_events,
            hidden,
            tested,
            relevant,
            held_out,
            cold_fraction,
            name,
            cutoff_place=cutoff_place,
        )

    def earlier(self, number: int = 0, *, end: datetime | None = None, cold_fraction: float | None = None) -> EvaluationSplit:
        """Create a split within this one's training period: number 0 tests on its last fifth of events, 1 on the last fifth of the rest.

        Args:
            number: How many fifths lie between its test period and this split's cutoff.
            end: End of testing; None: end of the training period.
            cold_fraction: Share of users whose target history is hidden, on top of those hidden here; None: the same share as here.

        Raises:
            EvaluationError: Too few test users.
        """
        begin = micros_to_datetime(time_quantile(self.real.time, EARLIER_EVENT_SHARE ** (number + 1)))
        name = "validation" if self.name == "test" else f"{self.name}-earlier"  # another name hides other users
        if number:
            name = f"{name}-{number + 1}"
        fraction = self.cold_fraction if cold_fraction is None else cold_fraction
        split = EvaluationSplit.from_settings(
            self.settings, begin, end=end, cold_fraction=fraction, name=name, cutoff_place=self.cutoff_place
        )
        if self.hidden_in_home:
            return split
        number_here = index_in(split.numbering.users, self.numbering.users)
        return split.with_new_users(self.hidden[number_here] & (number_here >= 0))

    def with_new_users(self, hidden: NDArray[np.bool_]) -> EvaluationSplit:
        """Create the same split with some users as if they were new: models see none of their target events. Only they are tested.

        The isolated home stays as it is. Its translator is cross-fitted: a user's draws do not depend on that user's target events.

        Args:
            hidden: bool [U]. Users to hide.
        """
        real = self.real.take(~hidden[self.real.user])
        relevant = _unseen_pairs(self.later, real)
        tested = _test_users(relevant, real, self.source)
        tested = tested[hidden[tested]]
        known = {"real": real, "relevant": relevant, "held_out": self.held_out + _unseen_pairs(self.real, real)}
        return replace(self, **known, hidden=self.hidden | hidden, users=tested, hidden_in_home=False)

    def new_user_folds(self) -> list[EvaluationSplit]:
        """Create two splits, each with one half of the users as if they were new; every user is new in one of them."""
        half = choose_hidden_users(self.numbering.users, 0.5, salt=f"{self.settings.downstream.seed}|new users")
        folds = [self.with_new_users(hidden) for hidden in (half, ~half)]
        return [fold for fold in folds if len(fold.users)]

    def without_source(self, source: str) -> EvaluationSplit:
        """Create the same split without one of several source domains."""
        import pyarrow.compute as pc

        no_users = self.numbering.users.slice(0, 0)
        isolated = create_sandbox(self.settings, self.cutoff, no_users, name=f"without-{source}", excluded_source=source)
        others = ~pc.starts_with(self.numbering.source_items, pattern=item_id_prefix(source)).to_numpy(zero_copy_only=False)
        return replace(self, sandbox=isolated, source=self.source.take(others[self.source.item]), _clusters={})

    @property
    def settings(self) -> Settings:
        """Settings of the isolated home."""
        return self.sandbox.settings

    @property
    def cutoff(self) -> datetime:
        """End of training (UTC)."""
        return self.sandbox.cutoff

    def seen(self) -> Any:
        """Return the visible history, which is excluded from rankings: scipy CSR [U, N]."""
        return self.real.matrix()

    def events_per_user(self) -> NDArray[np.int64]:
        """Return the number of visible target events of each user: int64 [U]."""
        return np.bincount(self.real.user, minlength=self.real.n_users)

    def user_clusters(self, clusters: int) -> NDArray[np.int32]:
        """Return each user's cluster by source history, computed once per number of clusters: int32 [U], -1 without source events."""
        if clusters not in self._clusters:
            self._clusters[clusters] = cluster_users(self.source, clusters, seed=self.settings.downstream.seed)
        return self._clusters[clusters]

    def segments(self) -> NDArray[np.int8]:
        """Return each user's segment: 0 cold (no visible target event), 1 sparse, 2 dense; int8 [U]."""
        count = self.events_per_user()
        return ((count > 0).astype(np.int8) + (count >= self.settings.downstream.sparse_below)).astype(np.int8)

    def is_head(self) -> NDArray[np.bool_]:
        """Return a mask of the most popular items, which make up half of the visible events: bool [N]."""
        popularity = self.real.popularity()
        order = np.argsort(-popularity, kind="stable")
        head = np.zeros(len(popularity), dtype=bool)
        head[order[np.cumsum(popularity[order]) <= popularity.sum() / 2]] = True
        return head


def _test_users(relevant: Any, real: Interactions, source: Interactions) -> NDArray[np.int64]:
    """Return the users with a test item and an event in either domain, sorted: int64 [V]."""
    has_events = np.zeros(real.n_users, dtype=bool)
    has_events[real.user] = has_events[source.user] = True
    return np.flatnonzero((np.diff(relevant.indptr) > 0) & has_events)


def _unseen_pairs(events: Interactions, real: Interactions) -> Any:
    """Return 1 for pairs of the events that are not among the real ones: scipy CSR [U, N]."""
    pairs, seen = events.matrix(), real.matrix()
    pairs.data[:] = 1
    seen.data[:] = 1
    pairs = (pairs - pairs.multiply(seen)).tocsr()
    pairs.eliminate_zeros()
    return pairs


def _known_by(table: pa.Table, cutoff: datetime) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    moment = pa.scalar(cutoff)
    return table.filter(pc.and_(pc.less(table[EVENT_TIMESTAMP], moment), pc.less_equal(table[CREATED_TIMESTAMP], moment)))
