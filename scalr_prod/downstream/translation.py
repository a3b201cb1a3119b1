# SPDX-License-Identifier: Apache-2.0
"""Synthetic events of an isolated home: drawn in process for the many arms, and published the way a user would get them.

Both ways ask the same contexts of the same translator: the run is planned by `scalr_prod.generation`, its contexts are read by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.contracts import ITEM_ID, USER_ID
from scalr_prod.downstream.protocol import Interactions
from scalr_prod.generation.confidence import confidence
from scalr_prod.numbering import index_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.downstream.scene import Scene
    from scalr_prod.settings import Settings
    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

__all__ = ["Draw", "Translation", "publish_draw"]


@dataclass(frozen=True)
class Draw:
    """How synthetic events are drawn.

    Attributes:
        volume: Events for each context, at most.
        temperature: 1 samples from P; towards 0: top-k.
        min_lift: The confidence filter; 0 is off.
        align: Bucket-wise downsampling.
        member: ``mixture``, or one estimator alone.
        seed: Of the draws.
    """

    volume: int
    temperature: float
    min_lift: float = 0.0
    align: bool = False
    member: str = "mixture"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Translation:
    """A trained translator and the contexts of a scene.

    Attributes:
        scene: The scene.
        contexts: One for each context of the run.
        user: int32 [C]. Whose they are, by number.
        item_number: int32 [n_target]. The scene's number of each of the translator's items.
        value_bucket: int64 [N]. Of each item of the scene, as alignment cuts them.
        module: The translator.
        information: What source histories say beyond popularity, as measured at its training (see `translator.information`); None
            where its version has no such measure.
    """

    scene: Scene
    contexts: Contexts
    user: NDArray[np.int32]
    item_number: NDArray[np.int32]
    value_bucket: NDArray[np.int64]
    module: TranslatorModule
    information: dict[str, Any] | None = None

    @classmethod
    def of(cls, scene: Scene, *, most: int | None = None) -> Translation:
        """Build histories, train the translator, and read the contexts of the run up to the cutoff.

        Args:
            scene: The scene.
            most: Contexts that are read, at most, chosen at random and alike in every call; default: all.

        Raises:
            TranslatorError: Too little to learn from.
        """
        from scalr_prod.duck import open_duckdb, staging_folder
        from scalr_prod.generation import plan_run
        from scalr_prod.generation.alignment import value_buckets
        from scalr_prod.generation.bucket import ask, read_bucket
        from scalr_prod.generation.contexts import Consumed
        from scalr_prod.stages import Job, path, walk
        from scalr_prod.translator import TranslatorModule, load_version
        from scalr_prod.translator.contexts import Contexts

        settings = scene.settings
        job = walk(Job(settings), path("histories", "translator"))
        spec = plan_run(settings, version=job.version)
        version = load_version(settings, job.version)
        vocabulary = version.vocabulary()
        with staging_folder(settings, "evaluate") as folder, open_duckdb(settings, folder) as connection:
            rows, real = read_bucket(connection, settings, spec, 0, 1)
        if most is not None and len(rows) > most:
            rows = rows.take(np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False)))
        consumed = None if real is None else Consumed.of(real, vocabulary)
        contexts = Contexts.concat(list(ask(settings, spec, vocabulary, rows, consumed, folds=version.folds)))
        counts = np.round(scene.real.popularity()).astype(np.int64)
        return cls(
            scene=scene,
            contexts=contexts,
            user=index_in(rows[USER_ID], scene.numbering.users),
            item_number=index_in(vocabulary.target_ids_all, scene.numbering.items),
            value_bucket=value_buckets(counts, settings.generation.align_buckets),
            module=TranslatorModule.load(version.path, trusted=True),
            information=version.manifest["metrics"].get("information"),
        )

    def draw(self, how: Draw) -> Interactions:
        """Synthetic events, weighted by their confidence P / (P + prior), the best of each (user, item) kept."""
        events, probability, prior = self._best_of_pairs(how)
        events = replace(events, weight=confidence(probability, prior))
        return events.take(self._aligned(events.item, how.seed)) if how.align else events

    def recommended(self, how: Draw) -> Interactions:
        """The same events, before alignment, weighted by their probability: what the translator itself would recommend."""
        events, probability, _ = self._best_of_pairs(how)
        return replace(events, weight=probability.astype(np.float32))

    def _best_of_pairs(self, how: Draw) -> tuple[Interactions, NDArray[np.float64], NDArray[np.float64]]:
        """Drawn events of weight 1, the most probable of each (user, item), their P and prior."""
        from scalr_prod.translator.contexts import Contexts

        contexts = self.contexts
        if how.seed:
            keys = contexts.noise_key ^ np.int64(how.seed * 0x9E3779B97F4A7C15 % 2**63)
            contexts = Contexts(**{**vars(contexts), "noise_key": keys})
        drawn = self.module.sample(
            contexts,
            how.volume,
            temperature=how.temperature,
            min_lift=how.min_lift,
            shortlist=self.scene.settings.generation.shortlist,
            member=how.member,
        )
        row, place = np.nonzero(drawn.items >= 0)
        probability = drawn.probabilities[row, place].astype(np.float64)
        prior = drawn.prior[row, place].astype(np.float64)
        item = self.item_number[drawn.items[row, place]]
        order = np.lexsort((-probability, item, self.user[row]))
        pair = self.user[row].astype(np.int64) * len(self.scene.numbering.items) + item
        _, first = np.unique(pair[order], return_index=True)
        kept = order[first]
        events = Interactions(
            user=self.user[row][kept],
            item=item[kept],
            time=contexts.event_time[row][kept],
            weight=np.ones(len(kept), dtype=np.float32),
            n_users=self.scene.real.n_users,
            n_items=self.scene.real.n_items,
            until=self.scene.real.until,
        )
        return events.synthetic(), probability[kept], prior[kept]

    def _aligned(self, item: NDArray[np.int32], seed: int) -> NDArray[np.bool_]:
        """Which events stay: those that bring the items' value buckets nearest to the real ones, chosen at random."""
        from scalr_prod.generation.alignment import bucket_targets, keep_counts

        buckets = self.scene.settings.generation.align_buckets
        counts = np.round(self.scene.real.popularity()).astype(np.int64)
        bucket = self.value_bucket[item]
        keep = keep_counts(np.bincount(bucket, minlength=buckets), bucket_targets(counts, self.value_bucket, buckets))
        order = np.lexsort((np.random.default_rng(seed).random(len(item)), bucket))
        begin = np.searchsorted(bucket[order], np.arange(buckets))
        stays = np.zeros(len(item), dtype=bool)
        stays[order[np.arange(len(item)) - begin[bucket[order]] < keep[bucket[order]]]] = True
        return stays


def publish_draw(scene: Scene, how: Draw) -> tuple[Interactions, Interactions, dict[str, Any]]:
    """Generate, audit, publish and build the training set: the real and the synthetic events in it, and the gate's figures.

    Args:
        scene: Its home holds a trained translator.
        how: Volume, temperature, filter and alignment; the member is the mixture.

    Raises:
        QualityGateFailed: The gate refused the events.
    """
    import pyarrow.compute as pc

    from scalr_prod.stages import Job, path, walk
    from scalr_prod.training_set import TrainingSet

    job = walk(Job(with_draw(scene.settings, how)), path("plan"))
    made = job.reports["dataset"].to_json()
    del made["fingerprint"]  # it is of the names of files in the scene's lake, which are drawn at random
    rows = TrainingSet.open(made["path"]).to_arrow([USER_ID, ITEM_ID, "event_timestamp", "weight", "is_synthetic"])
    is_synthetic = rows["is_synthetic"]
    masks = (pc.invert(is_synthetic), is_synthetic)
    real, synthetic = (scene.numbering.interactions(rows.filter(mask), scene.cutoff) for mask in masks)
    return real, synthetic.synthetic(), {"run_id": job.run_id, "gate": job.reports["validate"].to_json(), "training_set": made}


def with_draw(settings: Settings, how: Draw) -> Settings:
    """The settings of a run that draws so, and of a training set of positives without λ, which the evaluation adds.

    Whether there is anything to translate is for the evaluation to say, not for the gate.
    """
    generation = settings.generation.model_copy(
        update={
            "events_per_source_event": how.volume,
            "temperature": how.temperature,
            "min_lift": how.min_lift,
            "align": how.align,
            "seed": how.seed,
        }
    )
    quality = settings.quality.model_copy(update={"min_information": 0.0})
    plain = {"task": "ranking", "negatives_per_event": 0, "synthetic_weight": 1.0, "segment_weights": None}
    training_set = settings.training_set.model_copy(update=plain)
    return settings.model_copy(update={"generation": generation, "quality": quality, "training_set": training_set})
