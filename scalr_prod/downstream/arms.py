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

from scalr_prod.downstream.few import ALL, Few
from scalr_prod.errors import EmptyWindow, EvaluationError, TranslatorError
from scalr_prod.numbering import index_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from scalr_prod.downstream.models.lately import PopularLately
    from scalr_prod.downstream.protocol import Interactions
    from scalr_prod.downstream.scene import Numbering, Scene
    from scalr_prod.downstream.translation import Draw, Translation

    #: Real and synthetic events of a training set.
    TrainingSetEvents: TypeAlias = "tuple[Interactions, Interactions]"

__all__ = [
    "ABLATIONS", "BASE", "CONTROLS", "LISTS", "MAIN", "NEEDS", "OURS", "QUICK", "RIVAL", "TUNED", "Choice", "Maker", "leaving_out",
]  # fmt: skip

logger = logging.getLogger(__name__)

BASE: Final = "real"
OURS: Final = "real+scalr"
MAIN: Final = (BASE, OURS, "synthetic_only")
#: Arms that rank without a model of the family.
LISTS: Final = ("popular_lately", "translator")
CONTROLS: Final = ("popularity", "trend", "shuffled", "duplicated", "frequency")
RIVAL: Final = "model_level_transfer"
#: Variants of real+scalr with one change each.
ABLATIONS: Final = (
    "sampled", "top_k", "top_1",
    "dose_0.25", "dose_0.5", "dose_2", "align_off", "align_on", "filter_off", "filter_on",
    "only_topics", "only_linear", "only_factorisation", "only_sequential",
)  # fmt: skip
#: Arms with synthetic events whose volume, temperature, boost and λ are tuned separately, with the same budget.
TUNED: Final = (OURS, "synthetic_only", *CONTROLS)
#: Smallest set that decides: the baselines, real+scalr, two controls, and joint training.
QUICK: Final = (BASE, OURS, *LISTS, "trend", "shuffled", RIVAL)
#: A temperature low enough that sampling returns the k most probable items.
TOP: Final = 0.02
#: Sampling options in which an arm differs from real+scalr.
_OTHERWISE: Final[dict[str, dict[str, Any]]] = {
    "trend": {"member": "popularity"},
    "frequency": {"member": "frequency"},
    "sampled": {"temperature": 1.0},
    "top_k": {"temperature": TOP},
    "top_1": {"temperature": TOP, "volume": 1},
    "align_off": {"align": False},
    "align_on": {"align": True},
    "filter_off": {"min_lift": 0.0},
    "filter_on": {"min_lift": 1.0},
    **{arm: {"member": arm.removeprefix("only_")} for arm in ABLATIONS if arm.startswith("only_")},
}
#: Estimator that an arm requires in the translator.
NEEDS: Final[dict[str, str]] = {arm: how["member"] for arm, how in _OTHERWISE.items() if "member" in how}
#: Prefix of arms that leave out one of several source domains.
_WITHOUT: Final = "without_"
#: Minimum number of items per context when the translator is used as a recommender, before consumed items are removed.
_RECOMMENDED: Final = 50


def leaving_out(sources: Sequence[str]) -> tuple[str, ...]:
    """Return one arm per source domain that trains the translator without it; none if there is only one source."""
    return tuple(f"{_WITHOUT}{name}" for name in sources) if len(sources) > 1 else ()


@dataclass(frozen=True, eq=False)
class Choice:
    """Tuned hyperparameters of one arm of one family.

    Attributes:
        options: Model options; ``half_life`` (days) decays observed events before the fit.
        draw: Sampling options: volume, temperature, filter, alignment.
        weights: λ for cold, sparse and dense users.
        source_weight: Weight of source events in joint training.
        boost: b of score = model + b × log decayed popularity, for cold, sparse and dense users.
    """

    options: dict[str, Any]
    draw: Draw
    weights: tuple[float, float, float]
    source_weight: float
    boost: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def fitted_by(self) -> tuple[Any, ...]:
        """Return everything that a fit depends on: all values but the boost."""
        return (tuple(sorted(self.options.items())), self.draw, self.weights, self.source_weight)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self)) | {"draw": self.draw.to_json()}


class Maker:
    """Builds the training events of any arm on one split.

    Args:
        scene: The split.
        translation: Its translator; default: trained or loaded when an arm first needs it.
        begun: Called before the translator is trained or loaded.
        few: Data budget of the translator.
    """

    def __init__(
        self,
        scene: Scene,
        translation: Translation | None = None,
        *,
        begun: Callable[[], None] = lambda: None,
        few: Few = ALL,
    ) -> None:
        self.scene, self.few = scene, few
        self._translation, self.begun = translation, begun
        self._segments = scene.segments()
        self._drawn: dict[Draw, Interactions] = {}
        self._leaving_out: dict[str, Maker | None] = {}

    @property
    def translation(self) -> Translation:
        """The split's translator.

        Raises:
            TranslatorError: Too little training data.
        """
        from scalr_prod.downstream.translation import Translation

        if self._translation is None:
            self.begun()
            self._translation = Translation.of(self.few.learned_from(self.scene), most=self.few.contexts)
        return self._translation

    def events(self, arm: str, choice: Choice, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        """Return the training events of an arm.

        Args:
            arm: Name of the arm.
            choice: Hyperparameters of the arm.
            seed: Seed of shuffles; sampled events are the same for every seed, like published ones.
            published: Real and synthetic events of a published training set, for ``real+scalr`` and ``synthetic_only``; default: sampled
                in process.
        """
        real = self.scene.real
        if arm == BASE:
            return real
        if arm == RIVAL:
            return both_domains(self.scene, choice.source_weight)
        synthetic = self.synthetic(arm, choice, seed, published)
        if arm == "synthetic_only":
            return synthetic
        base = published[0] if arm == OURS and published else real
        return base.joined([self.weigh(synthetic, choice.weights)])

    def with_before(self, events: Interactions, arm: str, choice: Choice, seed: int) -> Interactions:
        """Add the arm's events of an earlier split (`Interactions.before`); its synthetic events are sampled in process.

        If there is too little data before or after the earlier cutoff, log a warning and return every arm's events unchanged.

        Args:
            events: Training events of the arm.
            arm: Name of the arm.
            choice: Hyperparameters of the arm.
            seed: Seed of shuffles.
        """
        earlier = self._earlier
        if earlier is None:
            return events
        found = replace(earlier.events(arm, choice, seed), source=earlier.scene.source)
        return replace(events, before=renumbered(found, earlier.scene.numbering, self.scene.numbering))

    @cached_property
    def _earlier(self) -> Maker | None:
        """Builder of the earlier split with its translator; None, for all arms, if either cannot be created."""
        try:
            found = Maker(self.scene.earlier(), begun=self.begun, few=self.few)
            _ = found.translation
        except (EvaluationError, EmptyWindow, TranslatorError) as error:
            logger.warning("no earlier split before %s: %s", self.scene.cutoff.date(), error)
            return None
        return found

    def synthetic(self, arm: str, choice: Choice, seed: int, published: TrainingSetEvents | None = None) -> Interactions:
        """Return the synthetic events of an arm that has some, before λ is applied."""
        base, rng = choice.draw, np.random.default_rng([seed, 17])
        if arm in {OURS, "synthetic_only"}:
            return published[1] if published else self.draw(base)
        if arm.startswith(_WITHOUT):
            others = self._without(arm.removeprefix(_WITHOUT))
            return others.draw(base) if others else self.scene.real.synthetic().weighted(0.0)
        if arm in _OTHERWISE:
            return self.draw(replace(base, **_OTHERWISE[arm]))
        if arm == "dose_2":
            return self.draw(replace(base, volume=2 * base.volume))
        controls: dict[str, Callable[[Interactions, np.random.Generator], Interactions]] = {
            "popularity": self._popularity,
            "shuffled": self._shuffled,
            "duplicated": self._duplicated,
            "dose_0.25": partial(_thinned, share=0.25),
            "dose_0.5": partial(_thinned, share=0.5),
        }
        return controls[arm](self.draw(base), rng)

    def recommender(self, how: Draw, lately: PopularLately) -> Recommended:
        """Use the translator as a recommender: each user's most probable items, then recent popularity.

        Args:
            how: Sampling options; temperature, filter and alignment are replaced so that the most probable items are returned.
            lately: Fitted model that ranks the remaining items.
        """
        deep = replace(how, volume=max(_RECOMMENDED, how.volume), temperature=TOP, min_lift=0.0, align=False)
        return Recommended(self.translation.recommended(deep), lately)

    def draw(self, how: Draw) -> Interactions:
        """Return sampled events, sampled once per combination of options."""
        if how not in self._drawn:
            self._drawn[how] = self.translation.draw(how)
        return self._drawn[how]

    def weigh(self, events: Interactions, weights: tuple[float, float, float]) -> Interactions:
        """Multiply weights by λ of the user's segment."""
        return events.weighted(np.asarray(weights, dtype=np.float32)[self._segments[events.user]])

    def _without(self, source: str) -> Maker | None:
        """Return the builder of a translator trained without one source domain; None if the others have too little data."""
        from scalr_prod.downstream.translation import Translation

        if source not in self._leaving_out:
            split = self.scene.without(source)
            try:
                self._leaving_out[source] = Maker(split, Translation.of(split))
            except (EmptyWindow, TranslatorError) as error:
                logger.warning("no translator without '%s'; the arm trains on real events alone: %s", source, error)
                self._leaving_out[source] = None
        return self._leaving_out[source]

    def _popularity(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """Replace items by draws in proportion to their number of real events; users, times and weights stay."""
        share = self.scene.real.popularity()
        return replace(like, item=rng.choice(len(share), len(like), p=share / share.sum()).astype(np.int32))

    def _shuffled(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """Assign each user's events to another user of the same segment.

        As in real+scalr, events of items that the new user already has are dropped.
        """
        owners = np.unique(like.user)
        other = np.arange(like.n_users, dtype=np.int32)
        for segment in np.unique(self._segments[owners]):
            alike = owners[self._segments[owners] == segment]
            other[alike] = rng.permutation(alike)
        moved = replace(like, user=other[like.user])
        return moved.take(np.asarray(self.scene.seen()[moved.user, moved.item]).ravel() == 0)

    def _duplicated(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """Repeat real events: as many as the synthetic ones, with the same mean weight."""
        again = self.scene.real.take(rng.integers(0, len(self.scene.real), len(like))).synthetic()
        return replace(again, weight=np.full(len(like), like.weight.mean() if len(like) else 0, dtype=np.float32))


class Recommended:
    """Ranks items by the weight of a user's events, and the others by recent popularity.

    Args:
        events: Recommended events, weighted by probability.
        lately: Fitted recent-popularity model.
    """

    def __init__(self, events: Interactions, lately: PopularLately) -> None:
        self._matrix, self._lately = events.matrix(), lately

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return scores [B, n_items]."""
        probability = np.asarray(self._matrix[users].todense(), dtype=np.float32)
        place = self._lately.score(users)  # 0, -1, -2 …
        found: NDArray[np.float32] = np.where(probability > 0, 1 + probability, place).astype(np.float32)
        return found


def both_domains(scene: Scene, source_weight: float) -> Interactions:
    """Return target and source events as one training set; source items are numbered after the target items."""
    real, source = scene.real, scene.source
    items = real.n_items + source.n_items
    shifted = replace(source, item=source.item + np.int32(real.n_items), n_items=items).weighted(source_weight)
    return replace(real, n_items=items, catalogue=real.n_items).joined([shifted])


def renumbered(events: Interactions, own: Numbering, other: Numbering) -> Interactions:
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


def _thinned(events: Interactions, rng: np.random.Generator, *, share: float) -> Interactions:
    selected: NDArray[np.bool_] = rng.random(len(events)) < share
    return events.take(selected)
