# SPDX-License-Identifier: Apache-2.0
"""Arms of an evaluation, and the training events of each.

The main arms train on real events only, on real and synthetic events, and on synthetic events only. Controls are alternatives that
real+scalr must beat for a lift to count. Joint training is one model trained on both domains' real events. Three arms train no model:
the popularity baseline, one list for all users; popularity by cluster of users; and the translator itself as a recommender.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.config import SegmentWeights
from scalr_prod.core.id_index import index_in
from scalr_prod.errors import EmptyWindow, EvaluationError, TranslatorError
from scalr_prod.evaluation.models import uses_earlier_events
from scalr_prod.training_set import confidence_multipliers, real_to_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions, TrainingSetEvents
    from scalr_prod.evaluation.models.recent_popularity import RecentPopularity
    from scalr_prod.evaluation.split import EvaluationSplit, IdNumbering
    from scalr_prod.evaluation.translation import DrawOptions, SplitTranslator


logger = logging.getLogger(__name__)

REAL_ONLY: Final = "real"
WITH_SYNTHETIC: Final = "real+scalr"
SYNTHETIC_ONLY: Final = "synthetic_only"
POPULARITY_BASELINE: Final = "popular_lately"
#: The better of the popularity baseline and real events only, in each segment of users.
BEST_BY_SEGMENT: Final = "best_by_segment"
#: Popularity among users whose source histories are alike.
CLUSTER_BASELINE: Final = "popular_in_cluster"
#: One model trained on the real events of both domains.
JOINT_BASELINE: Final = "model_level_transfer"
#: Arms that rank without a model of the family.
UNTRAINED_ARMS: Final = (POPULARITY_BASELINE, CLUSTER_BASELINE, "translator")
CONTROL_ARMS: Final = ("popularity", "trend", "shuffled", "duplicated", "frequency")
#: Variants of real+scalr with one change each.
ABLATION_ARMS: Final = (
    "sampled", "top_k", "top_1",
    "dose_0.25", "dose_0.5", "dose_2", "align_off", "align_on", "filter_off", "filter_on",
    "only_topics", "only_linear", "only_factorisation", "only_sequential",
)  # fmt: skip
#: Arms with synthetic events whose volume, temperature, boost and λ are tuned separately, with the same budget.
TUNED_ARMS: Final = (WITH_SYNTHETIC, SYNTHETIC_ONLY, *CONTROL_ARMS)
#: Arms of every project. Projects with several source domains also have one arm that leaves each of them out.
ALL_ARMS: Final = (
    REAL_ONLY, WITH_SYNTHETIC, SYNTHETIC_ONLY, *UNTRAINED_ARMS, *CONTROL_ARMS, JOINT_BASELINE, *ABLATION_ARMS
)  # fmt: skip
#: Arms that are always evaluated, since all others are compared with them.
REQUIRED_ARMS: Final = (REAL_ONLY, WITH_SYNTHETIC, POPULARITY_BASELINE)
#: Smallest set that decides: the baselines, real+scalr, and two controls.
DEFAULT_ARMS: Final = (REAL_ONLY, WITH_SYNTHETIC, *UNTRAINED_ARMS, "trend", "shuffled", JOINT_BASELINE)
#: A temperature low enough that sampling returns the k most probable items.
TOP_K_TEMPERATURE: Final = 0.02
#: Sampling options in which an arm differs from real+scalr.
_DRAW_CHANGES: Final[dict[str, dict[str, Any]]] = {
    "trend": {"member": "popularity"},
    "frequency": {"member": "frequency"},
    "sampled": {"temperature": 1.0},
    "top_k": {"temperature": TOP_K_TEMPERATURE},
    "top_1": {"temperature": TOP_K_TEMPERATURE, "volume": 1},
    "align_off": {"align": False},
    "align_on": {"align": True},
    "filter_off": {"min_lift": 0.0},
    "filter_on": {"min_lift": 1.0},
    **{arm: {"member": arm.removeprefix("only_")} for arm in ABLATION_ARMS if arm.startswith("only_")},
}
#: Estimator that an arm requires in the translator.
REQUIRED_ESTIMATORS: Final[dict[str, str]] = {arm: how["member"] for arm, how in _DRAW_CHANGES.items() if "member" in how}
#: Prefix of arms that leave out one of several source domains.
_WITHOUT_PREFIX: Final = "without_"
#: Minimum number of items per context when the translator is used as a recommender, before consumed items are removed.
_RECOMMENDED_ITEMS: Final = 50


def leave_one_out_arms(sources: Sequence[str]) -> tuple[str, ...]:
    """Return one arm per source domain that trains the translator without it; none if there is only one source."""
    return tuple(f"{_WITHOUT_PREFIX}{name}" for name in sources) if len(sources) > 1 else ()


def describe_baseline(arm: str) -> str:
    """Return the name of a baseline arm in prose."""
    return {REAL_ONLY: "real events only", POPULARITY_BASELINE: "the popularity baseline"}[arm]


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm of one model family: the data on which it trains, and the hyperparameters of data and model.

    Attributes:
        family: Model family.
        name: Name of the arm, which says what it trains on.
        options: Model options; ``half_life`` (days) decays observed events before the fit.
        draw: Sampling options: volume, temperature, filter, alignment.
        weights: λ of cold, sparse and dense users: total weight of synthetic events, as a share of the real events' total weight.
        source_weight: Weight of source events in joint training.
        boost: b of score = model + b × log decayed popularity, for cold, sparse and dense users.
    """

    family: str
    name: str
    options: dict[str, Any]
    draw: DrawOptions
    weights: tuple[float, float, float]
    source_weight: float
    boost: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def has_synthetic_events(self) -> bool:
        """Whether its training events include synthetic ones, whatever their λ."""
        return self.name not in {REAL_ONLY, JOINT_BASELINE}

    def fit_key(self) -> tuple[Any, ...]:
        """Return everything that a fit depends on: the name, and all values but the boost."""
        return (self.name, tuple(sorted(self.options.items())), self.draw, self.weights, self.source_weight)

    def hyperparameters_to_json(self) -> dict[str, Any]:
        """Return all values but family and name as plain JSON values."""
        hyperparameters = {name: value for name, value in vars(self).items() if name not in {"family", "name"}}
        return hyperparameters | {"draw": self.draw.to_json()}


class ArmDataBuilder:
    """Builds the training events of any arm on one split.

    Args:
        split: The split.
        translation: Its translator; default: trained or loaded when an arm first needs it.
        on_training: Called before the translator is trained or loaded.
        max_contexts: Maximum number of contexts to sample events for; None: all.
        base: Builder of the same split without new users, whose translator is used; see `with_new_users`.
    """

    def __init__(
        self,
        split: EvaluationSplit,
        translation: SplitTranslator | None = None,
        *,
        on_training: Callable[[], None] = lambda: None,
        max_contexts: int | None = None,
        base: ArmDataBuilder | None = None,
    ) -> None:
        self.split, self.max_contexts = split, max_contexts
        self._translation, self.on_training, self._base = translation, on_training, base
        self._segments = split.segments()
        self._drawn_events: dict[DrawOptions, Interactions] = {}
        self._without_source_builders: dict[str, ArmDataBuilder | None] = {}

    def with_new_users(self, split: EvaluationSplit) -> ArmDataBuilder:
        """Return the builder of a split of `EvaluationSplit.with_new_users`, which uses this builder's translator."""
        return ArmDataBuilder(split, on_training=self.on_training, max_contexts=self.max_contexts, base=self)

    @property
    def translation(self) -> SplitTranslator:
        """The split's translator.

        Raises:
            TranslatorError: Too little training data.
        """
        from scalr_prod.evaluation.translation import SplitTranslator

        if self._translation is None and self._base is not None:
            self._translation = self._base.translation.with_new_users(self.split)
        if self._translation is None:
            self.on_training()
            self._translation = SplitTranslator.from_split(self.split, max_contexts=self.max_contexts)
        return self._translation

    def events(self, arm: Arm, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        """Return the training events of an arm.

        For families that use them, `Interactions.before` holds the arm's events of an earlier split, whose synthetic events are sampled in
        process. It is None, with a warning, if there is too little data before or after the earlier cutoff.

        Args:
            arm: The arm.
            seed: Seed of shuffles; sampled events are the same for every seed, like published ones.
            published: Events of a published training set, for ``real+scalr`` and ``synthetic_only``; default: sampled in process.
        """
        events = self._events_until_cutoff(arm, seed, published)
        earlier = self._earlier_builder if uses_earlier_events(arm.family) else None
        if earlier is None:
            return events
        before = replace(earlier._events_until_cutoff(arm, seed), source=earlier.split.source)  # noqa: SLF001 - the same class
        return replace(events, before=renumber(before, earlier.split.numbering, self.split.numbering))

    def _events_until_cutoff(self, arm: Arm, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        real = self.split.real
        if arm.name == REAL_ONLY:
            return real
        if arm.name == JOINT_BASELINE:
            return joint_interactions(self.split, arm.source_weight)
        synthetic = self.synthetic_events(arm, seed, published)
        if arm.name == SYNTHETIC_ONLY:
            return synthetic
        base = published.real if arm.name == WITH_SYNTHETIC and published else real
        return base.joined([self.apply_weights(synthetic, arm.weights)])

    @cached_property
    def _earlier_builder(self) -> ArmDataBuilder | None:
        """Builder of the earlier split with its translator; None, for all arms, if either cannot be created."""
        try:
            earlier = ArmDataBuilder(self.split.earlier(), on_training=self.on_training, max_contexts=self.max_contexts)
            _ = earlier.translation
        except (EvaluationError, EmptyWindow, TranslatorError) as error:
            logger.warning("no earlier split before %s: %s", self.split.cutoff.date(), error)
            return None
        return earlier

    def synthetic_events(self, arm: Arm, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        """Return the synthetic events of an arm that has some, before λ is applied; arguments as for `events`."""
        draw, rng = arm.draw, np.random.default_rng([seed, 17])
        if arm.name in {WITH_SYNTHETIC, SYNTHETIC_ONLY}:
            return published.synthetic if published else self.draw_events(draw)
        if arm.name.startswith(_WITHOUT_PREFIX):
            builder = self._builder_without(arm.name.removeprefix(_WITHOUT_PREFIX))
            return builder.draw_events(draw) if builder else self.split.real.synthetic().weighted(0.0)
        if arm.name in _DRAW_CHANGES:
            return self.draw_events(replace(draw, **_DRAW_CHANGES[arm.name]))
        if arm.name == "dose_2":
            return self.draw_events(replace(draw, volume=2 * draw.volume))
        controls: dict[str, Callable[[Interactions, np.random.Generator], Interactions]] = {
            "popularity": self._popularity_control,
            "shuffled": self._shuffled_control,
            "duplicated": self._duplicated_control,
            "dose_0.25": partial(_subsample, share=0.25),
            "dose_0.5": partial(_subsample, share=0.5),
        }
        return controls[arm.name](self.draw_events(draw), rng)

    def make_recommender(self, options: DrawOptions, recent_popularity: RecentPopularity) -> TranslatorRecommender:
        """Use the translator as a recommender: each user's most probable items, then recent popularity.

        Args:
            options: Sampling options; temperature, filter and alignment are replaced so that the most probable items are returned.
            recent_popularity: Fitted model that ranks the remaining items.
        """
        most_probable = replace(
            options, volume=max(_RECOMMENDED_ITEMS, options.volume), temperature=TOP_K_TEMPERATURE, min_lift=0.0, align=False
        )
        return TranslatorRecommender(self.translation.recommended_events(most_probable), recent_popularity)

    def draw_events(self, options: DrawOptions) -> Interactions:
        """Return sampled events, sampled once per combination of options."""
        if options not in self._drawn_events:
            self._drawn_events[options] = self.translation.draw(options)
        return self._drawn_events[options]

    def apply_weights(self, events: Interactions, weights: tuple[float, float, float]) -> Interactions:
        """Multiply confidences by λ of the user's segment and the ratio of real to synthetic weight, as a training set does."""
        ratio = real_to_synthetic(float(self.split.real.weight.sum()), float(events.weight.sum()))
        multipliers = confidence_multipliers(SegmentWeights(*weights), ratio)
        weighted = events.weighted(np.asarray(multipliers, dtype=np.float32)[self._segments[events.user]])
        return replace(weighted, weight=weighted.weight.clip(max=1))  # above 1 only with a popularity discount

    def _builder_without(self, source: str) -> ArmDataBuilder | None:
        """Return the builder of a translator trained without one source domain; None if the others have too little data."""
        from scalr_prod.evaluation.translation import SplitTranslator

        if self._base is not None:
            base = self._base._builder_without(source)  # noqa: SLF001 - the same class
            return base and base.with_new_users(base.split.with_new_users(self.split.hidden))
        if source not in self._without_source_builders:
            split = self.split.without_source(source)
            try:
                self._without_source_builders[source] = ArmDataBuilder(split, SplitTranslator.from_split(split))
            except (EmptyWindow, TranslatorError) as error:
                logger.warning("no translator without '%s'; the arm trains on real events only: %s", source, error)
                self._without_source_builders[source] = None
        return self._without_source_builders[source]

    def _popularity_control(self, events: Interactions, rng: np.random.Generator) -> Interactions:
        """Replace items by draws in proportion to their number of real events; users, times and weights stay."""
        share = self.split.real.popularity()
        return replace(events, item=rng.choice(len(share), len(events), p=share / share.sum()).astype(np.int32))

    def _shuffled_control(self, events: Interactions, rng: np.random.Generator) -> Interactions:
        """Assign each user's events to another user of the same segment.

        As in real+scalr, events of items that the new user already has are dropped.
        """
        owners = np.unique(events.user)
        new_owner = np.arange(events.n_users, dtype=np.int32)
        for segment in np.unique(self._segments[owners]):
            members = owners[self._segments[owners] == segment]
            new_owner[members] = rng.permutation(members)
        shuffled = replace(events, user=new_owner[events.user])
        return shuffled.take(np.asarray(self.split.seen()[shuffled.user, shuffled.item]).ravel() == 0)

    def _duplicated_control(self, events: Interactions, rng: np.random.Generator) -> Interactions:
        """Repeat real events: as many as the synthetic ones, with the same mean weight."""
        repeated = self.split.real.take(rng.integers(0, len(self.split.real), len(events))).synthetic()
        return replace(repeated, weight=np.full(len(events), events.weight.mean() if len(events) else 0, dtype=np.float32))


class TranslatorRecommender:
    """Ranks items by the weight of a user's events, and the others by recent popularity.

    Args:
        events: Recommended events, weighted by probability.
        recent_popularity: Fitted recent-popularity model.
    """

    def __init__(self, events: Interactions, recent_popularity: RecentPopularity) -> None:
        self._matrix, self._recent_popularity = events.matrix(), recent_popularity

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores [B, n_items]."""
        probability = np.asarray(self._matrix[users].todense(), dtype=np.float32)
        negated_rank = self._recent_popularity.score(users)  # 0, -1, -2 …
        scores: NDArray[np.float32] = np.where(probability > 0, 1 + probability, negated_rank).astype(np.float32)
        return scores


def joint_interactions(split: EvaluationSplit, source_weight: float) -> Interactions:
    """Return target and source events as one training set; source items are numbered after the target items."""
    real, source = split.real, split.source
    items = real.n_items + source.n_items
    shifted = replace(source, item=source.item + np.int32(real.n_items), n_items=items).weighted(source_weight)
    return replace(real, n_items=items, catalogue=real.n_items).joined([shifted])


def renumber(events: Interactions, current: IdNumbering, new: IdNumbering) -> Interactions:
    """Convert events to the user and item numbers of another split, which contains all their users and items.

    Args:
        events: Events of one domain, or of both if `Interactions.catalogue` is set.
        current: Numbers of the events.
        new: Numbers of the other split.
    """
    users, items = index_in(current.users, new.users), index_in(current.items, new.items)
    source_items = index_in(current.source_items, new.source_items)
    count = len(new.items)
    if events.catalogue is not None:
        items, count = np.concatenate([items, source_items + np.int32(count)]), count + len(new.source_items)
    source = events.source
    return replace(
        events,
        user=users[events.user],
        item=items[events.item],
        n_users=len(new.users),
        n_items=count,
        catalogue=None if events.catalogue is None else len(new.items),
        source=None
        if source is None
        else replace(
            source,
            user=users[source.user],
            item=source_items[source.item],
            n_users=len(new.users),
            n_items=len(new.source_items),
        ),
    )


def _subsample(events: Interactions, rng: np.random.Generator, *, share: float) -> Interactions:
    return events.take(rng.random(len(events)) < share)
