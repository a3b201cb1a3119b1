# SPDX-License-Identifier: Apache-2.0
"""The arms of an evaluation: what each trains on.

Real events alone; with translated ones; translated ones alone; the controls that a lift must survive; the rival, which needs no
synthetic event: one model trained on both domains' events at once. Two arms train no model: what is popular lately, one list for
everybody, and the translator itself as a recommender.
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

    #: Real and synthetic events, as a training set holds them.
    Published: TypeAlias = "tuple[Interactions, Interactions]"

__all__ = [
    "ABLATIONS", "BASE", "CONTROLS", "LISTS", "MAIN", "NEEDS", "OURS", "QUICK", "RIVAL", "TUNED", "Choice", "Maker", "leaving_out",
]  # fmt: skip

logger = logging.getLogger(__name__)

BASE: Final = "real"
OURS: Final = "real+scalr"
MAIN: Final = (BASE, OURS, "synthetic_only")
#: Arms that train no model of the family; each user's items come from elsewhere.
LISTS: Final = ("popular_lately", "translator")
CONTROLS: Final = ("popularity", "trend", "shuffled", "duplicated", "frequency")
RIVAL: Final = "model_level_transfer"
#: Ours with one thing changed.
ABLATIONS: Final = (
    "sampled", "top_k", "top_1",
    "dose_0.25", "dose_0.5", "dose_2", "align_off", "align_on", "filter_off", "filter_on",
    "only_topics", "only_linear", "only_factorisation", "only_sequential",
)  # fmt: skip
#: Arms with synthetic events that get a volume, a temperature, a boost and λ of their own, at the same budget.
TUNED: Final = (OURS, "synthetic_only", *CONTROLS)
#: The fewest that decide: the baselines, ours, the two controls that a lift has to survive, and the rival.
QUICK: Final = (BASE, OURS, *LISTS, "trend", "shuffled", RIVAL)
#: Near enough to 0 that the draw is the k most probable.
TOP: Final = 0.02
#: Arms whose events are drawn otherwise than ours: in what.
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
#: Arms that need an estimator of their own in the translator.
NEEDS: Final[dict[str, str]] = {arm: how["member"] for arm, how in _OTHERWISE.items() if "member" in how}
#: Begins the name of an arm that is ours without one of several source domains.
_WITHOUT: Final = "without_"
#: Items for each context that the translator is asked for as a recommender; the least, before what a user had falls away.
_RECOMMENDED: Final = 50


def leaving_out(sources: Sequence[str]) -> tuple[str, ...]:
    """Arms that leave each of several source domains out: the translator is trained anew without it."""
    return tuple(f"{_WITHOUT}{name}" for name in sources) if len(sources) > 1 else ()


@dataclass(frozen=True, eq=False)
class Choice:
    """What validation chose for one arm of one family.

    Attributes:
        options: Of the model; ``half_life`` (days) decays observed events before it is fitted.
        draw: Volume, temperature, filter, alignment.
        weights: λ for cold, sparse and dense users.
        source_weight: Of source events in the rival.
        boost: b of score = model + b × log decayed popularity (see `Boosted`), for cold, sparse and dense users.
    """

    options: dict[str, Any]
    draw: Draw
    weights: tuple[float, float, float]
    source_weight: float
    boost: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def fitted_by(self) -> tuple[Any, ...]:
        """Everything that a fit depends on: all but the boost."""
        return (tuple(sorted(self.options.items())), self.draw, self.weights, self.source_weight)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self)) | {"draw": self.draw.to_json()}


class Maker:
    """Training events of any arm on one scene.

    Args:
        scene: The scene.
        translation: Its translator; default: trained, or found, when an arm first asks for it.
        begun: Called before that.
        few: What the translator does not learn from, and is not asked about.
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
        """The scene's translator.

        Raises:
            TranslatorError: Too little to learn from.
        """
        from scalr_prod.downstream.translation import Translation

        if self._translation is None:
            self.begun()
            self._translation = Translation.of(self.few.learned_from(self.scene), most=self.few.contexts)
        return self._translation

    def events(self, arm: str, choice: Choice, seed: int, published: Published | None = None) -> Interactions:
        """What an arm trains on.

        Args:
            arm: One of this module's names.
            choice: Of the family.
            seed: Of shuffles; draws are the same for every seed, as those that are published are.
            published: Real and synthetic events of the training set, for ``real+scalr`` and ``synthetic_only``; default: draws.
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
        """An arm's training events with those of the earlier scene (`Interactions.before`), whose synthetic events are draws.

        Where too little happened before the earlier cutoff, or after it, a warning says so, and every arm's events come back as they are.

        Args:
            events: What `events` gave.
            arm: Likewise.
            choice: Likewise.
            seed: Likewise.
        """
        earlier = self._earlier
        if earlier is None:
            return events
        found = replace(earlier.events(arm, choice, seed), source=earlier.scene.source)
        return replace(events, before=renumbered(found, earlier.scene.numbering, self.scene.numbering))

    @cached_property
    def _earlier(self) -> Maker | None:
        """That of the earlier scene, with its translator; None for every arm alike where either cannot be."""
        try:
            found = Maker(self.scene.earlier(), begun=self.begun, few=self.few)
            _ = found.translation
        except (EvaluationError, EmptyWindow, TranslatorError) as error:
            logger.warning("nothing is known of an instant before %s: %s", self.scene.cutoff.date(), error)
            return None
        return found

    def synthetic(self, arm: str, choice: Choice, seed: int, published: Published | None = None) -> Interactions:
        """An arm's synthetic events, before λ; of those arms that have some."""
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
        changed: dict[str, Callable[[Interactions, np.random.Generator], Interactions]] = {
            "popularity": self._popularity,
            "shuffled": self._shuffled,
            "duplicated": self._duplicated,
            "dose_0.25": partial(_thinned, share=0.25),
            "dose_0.5": partial(_thinned, share=0.5),
        }
        return changed[arm](self.draw(base), rng)

    def recommender(self, how: Draw, lately: PopularLately) -> Recommended:
        """The translator as a recommender: each user's most probable items, then what is popular lately.

        Args:
            how: Filter and member; the draw is the most probable items, whatever temperature training needs.
            lately: Fitted; ranks what the translator does not name.
        """
        deep = replace(how, volume=max(_RECOMMENDED, how.volume), temperature=TOP, min_lift=0.0, align=False)
        return Recommended(self.translation.recommended(deep), lately)

    def draw(self, how: Draw) -> Interactions:
        """Draws, each kind once."""
        if how not in self._drawn:
            self._drawn[how] = self.translation.draw(how)
        return self._drawn[how]

    def weigh(self, events: Interactions, weights: tuple[float, float, float]) -> Interactions:
        """Confidence times λ of the user's segment."""
        return events.weighted(np.asarray(weights, dtype=np.float32)[self._segments[events.user]])

    def _without(self, source: str) -> Maker | None:
        """The same of a translator that never saw one of several source domains; None: the others have nothing to learn from."""
        from scalr_prod.downstream.translation import Translation

        if source not in self._leaving_out:
            scene = self.scene.without(source)
            try:
                self._leaving_out[source] = Maker(scene, Translation.of(scene))
            except (EmptyWindow, TranslatorError) as error:
                logger.warning("without '%s' there is no translation, and the arm is real events alone: %s", source, error)
                self._leaving_out[source] = None
        return self._leaving_out[source]

    def _popularity(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """The same users, times and weights, with items drawn by their number of real events."""
        share = self.scene.real.popularity()
        return replace(like, item=rng.choice(len(share), len(like), p=share / share.sum()).astype(np.int32))

    def _shuffled(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """Each user gets the events that another user's history was translated into, one with about as many real events.

        As in ours, none is of an item that its new user has had.
        """
        owners = np.unique(like.user)
        other = np.arange(like.n_users, dtype=np.int32)
        for segment in np.unique(self._segments[owners]):
            alike = owners[self._segments[owners] == segment]
            other[alike] = rng.permutation(alike)
        moved = replace(like, user=other[like.user])
        return moved.take(np.asarray(self.scene.seen()[moved.user, moved.item]).ravel() == 0)

    def _duplicated(self, like: Interactions, rng: np.random.Generator) -> Interactions:
        """Real events again: as many, and as heavy in all."""
        again = self.scene.real.take(rng.integers(0, len(self.scene.real), len(like))).synthetic()
        return replace(again, weight=np.full(len(like), like.weight.mean() if len(like) else 0, dtype=np.float32))


class Recommended:
    """Ranks by the weight of a user's events, then by a list.

    Args:
        events: What is recommended, weighted by probability.
        lately: Fitted.
    """

    def __init__(self, events: Interactions, lately: PopularLately) -> None:
        self._matrix, self._lately = events.matrix(), lately

    def score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, n_items]."""
        probability = np.asarray(self._matrix[users].todense(), dtype=np.float32)
        place = self._lately.score(users)  # 0, -1, -2 …
        found: NDArray[np.float32] = np.where(probability > 0, 1 + probability, place).astype(np.float32)
        return found


def both_domains(scene: Scene, source_weight: float) -> Interactions:
    """Target and source events as one training set: source items are numbered after the target's."""
    real, source = scene.real, scene.source
    items = real.n_items + source.n_items
    shifted = replace(source, item=source.item + np.int32(real.n_items), n_items=items).weighted(source_weight)
    return replace(real, n_items=items, catalogue=real.n_items).joined([shifted])


def renumbered(events: Interactions, own: Numbering, other: Numbering) -> Interactions:
    """The same events under the numbers of a scene that knows all their users and items, and more.

    Args:
        events: Of one domain, or of both where `Interactions.catalogue` is set.
        own: What they are numbered by.
        other: Of the other scene.
    """
    users, items = index_in(own.users, other.users), index_in(own.items, other.items)
    things = index_in(own.source_items, other.source_items)
    count = len(other.items)
    if events.catalogue is not None:
        items, count = np.concatenate([items, things + np.int32(count)]), count + len(other.source_items)
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
            item=things[source.item],
            n_users=len(other.users),
            n_items=len(other.source_items),
        ),
    )


def _thinned(events: Interactions, rng: np.random.Generator, *, share: float) -> Interactions:
    kept: NDArray[np.bool_] = rng.random(len(events)) < share
    return events.take(kept)
