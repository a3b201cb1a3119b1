# SPDX-License-Identifier: Apache-2.0
"""Arms of an evaluation: the training events of each.

The main arms train on real events alone, on real and synthetic events, and on synthetic events alone. Controls are alternatives that
real+scalr must beat for a lift to count. Joint training is the stronger baseline: one model trained on both domains' real events. Two arms
train no model: recent popularity, one list for all users, and the translator itself as a recommender.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import EmptyWindow, EvaluationError, TranslatorError
from scalr_prod.evaluation.budget import UNLIMITED, DataBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import Interactions
    from scalr_prod.evaluation.models.recent_popularity import RecentPopularity
    from scalr_prod.evaluation.split import EvaluationSplit, IdNumbering
    from scalr_prod.evaluation.translation import DrawOptions, SplitTranslator

    #: Real and synthetic events of a training set.
    TrainingSetEvents: TypeAlias = "tuple[Interactions, Interactions]"

__all__ = [
    "ABLATION_ARMS",
    "CONTROL_ARMS",
    "DEFAULT_ARMS",
    "JOINT_TRAINING",
    "MAIN_ARMS",
    "REAL_ONLY",
    "REQUIRED_ESTIMATORS",
    "TUNED_ARMS",
    "UNTRAINED_ARMS",
    "WITH_SYNTHETIC",
    "ArmChoice",
    "ArmDataBuilder",
    "leave_one_out_arms",
]  # fmt: skip

logger = logging.getLogger(__name__)

REAL_ONLY: Final = "real"
WITH_SYNTHETIC: Final = "real+scalr"
MAIN_ARMS: Final = (REAL_ONLY, WITH_SYNTHETIC, "synthetic_only")
#: Arms that rank without a model of the family.
UNTRAINED_ARMS: Final = ("popular_lately", "translator")
CONTROL_ARMS: Final = ("popularity", "trend", "shuffled", "duplicated", "frequency")
JOINT_TRAINING: Final = "model_level_transfer"
#: Variants of real+scalr with one change each.
ABLATION_ARMS: Final = (
    "sampled", "top_k", "top_1",
    "dose_0.25", "dose_0.5", "dose_2", "align_off", "align_on", "filter_off", "filter_on",
    "only_topics", "only_linear", "only_factorisation", "only_sequential",
)  # fmt: skip
#: Arms with synthetic events whose volume, temperature, boost and λ are tuned separately, with the same budget.
TUNED_ARMS: Final = (WITH_SYNTHETIC, "synthetic_only", *CONTROL_ARMS)
#: Smallest set that decides: the baselines, real+scalr, two controls, and joint training.
DEFAULT_ARMS: Final = (REAL_ONLY, WITH_SYNTHETIC, *UNTRAINED_ARMS, "trend", "shuffled", JOINT_TRAINING)
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


@dataclass(frozen=True, eq=False)
class ArmChoice(Jsonable):
    """Tuned hyperparameters of one arm of one family.

    Attributes:
        options: Model options; ``half_life`` (days) decays observed events before the fit.
        draw: Sampling options: volume, temperature, filter, alignment.
        weights: λ for cold, sparse and dense users.
        source_weight: Weight of source events in joint training.
        boost: b of score = model + b × log decayed popularity, for cold, sparse and dense users.
    """

    options: dict[str, Any]
    draw: DrawOptions
    weights: tuple[float, float, float]
    source_weight: float
    boost: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def fit_key(self) -> tuple[Any, ...]:
        """Return everything that a fit depends on: all values but the boost."""
        return (tuple(sorted(self.options.items())), self.draw, self.weights, self.source_weight)


class ArmDataBuilder:
    """Builds the training events of any arm on one split.

    Args:
        split: The split.
        translation: Its translator; default: trained or loaded when an arm first needs it.
        on_training: Called before the translator is trained or loaded.
        budget: Data budget of the translator.
    """

    def __init__(
        self,
        split: EvaluationSplit,
        translation: SplitTranslator | None = None,
        *,
        on_training: Callable[[], None] = lambda: None,
        budget: DataBudget = UNLIMITED,
    ) -> None:
        self.split, self.budget = split, budget
        self._translation, self.on_training = translation, on_training
        self._segments = split.segments()
        self._drawn_events: dict[DrawOptions, Interactions] = {}
        self._without_source_builders: dict[str, ArmDataBuilder | None] = {}

    @property
    def translation(self) -> SplitTranslator:
        """The split's translator.

        Raises:
            TranslatorError: Too little training data.
        """
        from scalr_prod.evaluation.translation import SplitTranslator

        if self._translation is None:
            self.on_training()
            self._translation = SplitTranslator.from_split(self.budget.apply_to(self.split), max_contexts=self.budget.contexts)
        return self._translation

    def events(self, arm: str, choice: ArmChoice, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        """Return the training events of an arm.

        Args:
            arm: Name of the arm.
            choice: Hyperparameters of the arm.
            seed: Seed of shuffles; sampled events are the same for every seed, like published ones.
            published: Real and synthetic events of a published training set, for ``real+scalr`` and ``synthetic_only``; default: sampled
                in process.
        """
        real = self.split.real
        if arm == REAL_ONLY:
            return real
        if arm == JOINT_TRAINING:
            return joint_interactions(self.split, choice.source_weight)
        synthetic = self.synthetic_events(arm, choice, seed, published)
        if arm == "synthetic_only":
            return synthetic
        base = published[0] if arm == WITH_SYNTHETIC and published else real
        return base.joined([self.apply_weights(synthetic, choice.weights)])

    def with_earlier_events(self, events: Interactions, arm: str, choice: ArmChoice, seed: int) -> Interactions:
        """Add the arm's events of an earlier split (`Interactions.before`); its synthetic events are sampled in process.

        If there is too little data before or after the earlier cutoff, log a warning and return every arm's events unchanged.

        Args:
            events: Training events of the arm.
            arm: Name of the arm.
            choice: Hyperparameters of the arm.
            seed: Seed of shuffles.
        """
        earlier = self._earlier_builder
        if earlier is None:
            return events
        found = replace(earlier.events(arm, choice, seed), source=earlier.split.source)
        return replace(events, before=renumber(found, earlier.split.numbering, self.split.numbering))

    @cached_property
    def _earlier_builder(self) -> ArmDataBuilder | None:
        """Builder of the earlier split with its translator; None, for all arms, if either cannot be created."""
        try:
            found = ArmDataBuilder(self.split.earlier(), on_training=self.on_training, budget=self.budget)
            _ = found.translation
        except (EvaluationError, EmptyWindow, TranslatorError) as error:
            logger.warning("no earlier split before %s: %s", self.split.cutoff.date(), error)
            return None
        return found

    def synthetic_events(
        self, arm: str, choice: ArmChoice, seed: int, published: TrainingSetEvents | None = None
    ) -> Interactions:
        """Return the synthetic events of an arm that has some, before λ is applied."""
        base, rng = choice.draw, np.random.default_rng([seed, 17])
        if arm in {WITH_SYNTHETIC, "synthetic_only"}:
            return published[1] if published else self.draw_events(base)
        if arm.startswith(_WITHOUT_PREFIX):
            others = self._builder_without(arm.removeprefix(_WITHOUT_PREFIX))
            return others.draw_events(base) if others else self.split.real.synthetic().weighted(0.0)
        if arm in _DRAW_CHANGES:
            return self.draw_events(replace(base, **_DRAW_CHANGES[arm]))
        if arm == "dose_2":
            return self.draw_events(replace(base, volume=2 * base.volume))
        controls: dict[str, Callable[[Interactions, np.random.Generator], Interactions]] = {
            "popularity": self._popularity_control,
            "shuffled": self._shuffled_control,
            "duplicated": self._duplicated_control,
            "dose_0.25": partial(_subsample, share=0.25),
            "dose_0.5": partial(_subsample, share=0.5),
        }
        return controls[arm](self.draw_events(base), rng)

    def make_recommender(self, options: DrawOptions, recent_popularity: RecentPopularity) -> TranslatorRecommender:
        """Use the translator as a recommender: each user's most probable items, then recent popularity.

        Args:
            options: Sampling options; temperature, filter and alignment are replaced so that the most probable items are returned.
            recent_popularity: Fitted model that ranks the remaining items.
        """
        deep = replace(
            options, volume=max(_RECOMMENDED_ITEMS, options.volume), temperature=TOP_K_TEMPERATURE, min_lift=0.0, align=False
        )
        return TranslatorRecommender(self.translation.recommended_events(deep), recent_popularity)

    def draw_events(self, options: DrawOptions) -> Interactions:
        """Return sampled events, sampled once per combination of options."""
        if options not in self._drawn_events:
            self._drawn_events[options] = self.translation.draw(options)
        return self._drawn_events[options]

    def apply_weights(self, events: Interactions, weights: tuple[float, float, float]) -> Interactions:
        """Multiply weights by λ of the user's segment."""
        return events.weighted(np.asarray(weights, dtype=np.float32)[self._segments[events.user]])

    def _builder_without(self, source: str) -> ArmDataBuilder | None:
        """Return the builder of a translator trained without one source domain; None if the others have too little data."""
        from scalr_prod.evaluation.translation import SplitTranslator

        if source not in self._without_source_builders:
            split = self.split.without_source(source)
            try:
                self._without_source_builders[source] = ArmDataBuilder(split, SplitTranslator.from_split(split))
            except (EmptyWindow, TranslatorError) as error:
                logger.warning("no translator without '%s'; the arm trains on real events alone: %s", source, error)
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
        other = np.arange(events.n_users, dtype=np.int32)
        for segment in np.unique(self._segments[owners]):
            alike = owners[self._segments[owners] == segment]
            other[alike] = rng.permutation(alike)
        moved = replace(events, user=other[events.user])
        return moved.take(np.asarray(self.split.seen()[moved.user, moved.item]).ravel() == 0)

    def _duplicated_control(self, events: Interactions, rng: np.random.Generator) -> Interactions:
        """Repeat real events: as many as the synthetic ones, with the same mean weight."""
        again = self.split.real.take(rng.integers(0, len(self.split.real), len(events))).synthetic()
        return replace(again, weight=np.full(len(events), events.weight.mean() if len(events) else 0, dtype=np.float32))


class TranslatorRecommender:
    """Ranks items by the weight of a user's events, and the others by recent popularity.

    Args:
        events: Recommended events, weighted by probability.
        recent_popularity: Fitted recent-popularity model.
    """

    def __init__(self, events: Interactions, recent_popularity: RecentPopularity) -> None:
        self._matrix, self._lately = events.matrix(), recent_popularity

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores [B, n_items]."""
        probability = np.asarray(self._matrix[users].todense(), dtype=np.float32)
        place = self._lately.score(users)  # 0, -1, -2 …
        found: NDArray[np.float32] = np.where(probability > 0, 1 + probability, place).astype(np.float32)
        return found


def joint_interactions(split: EvaluationSplit, source_weight: float) -> Interactions:
    """Return target and source events as one training set; source items are numbered after the target items."""
    real, source = split.real, split.source
    items = real.n_items + source.n_items
    shifted = replace(source, item=source.item + np.int32(real.n_items), n_items=items).weighted(source_weight)
    return replace(real, n_items=items, catalogue=real.n_items).joined([shifted])


def renumber(events: Interactions, own: IdNumbering, other: IdNumbering) -> Interactions:
    """Convert events to the user and item numbers of another split, which contains all their users and items.

    Args:
        events: Events of one domain, or of both if `Interactions.catalogue` is set.
        own: Current numbers.
        other: Numbers of the other split.
    """
    users, items = index_in(own.users, other.users), index_in(own.items, other.items)
    source_items = index_in(own.source_items, other.source_items)
    count = len(other.items)
    if events.catalogue is not None:
        items, count = np.concatenate([items, source_items + np.int32(count)]), count + len(other.source_items)
    source = events.source
    return replace(
        events,
        user=users[events.user],
        item=items[events.item],
        n_users=len(other.users),
        n_items=count,
        catalogue=None if events.catalogue is None else len(other.items),
        source=None
        if source is None
        else replace(
            source,
            user=users[source.user],
            item=source_items[source.item],
            n_users=len(other.users),
            n_items=len(other.source_items),
        ),
    )


def _subsample(events: Interactions, rng: np.random.Generator, *, share: float) -> Interactions:
    selected: NDArray[np.bool_] = rng.random(len(events)) < share
    return events.take(selected)
