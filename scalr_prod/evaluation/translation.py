# SPDX-License-Identifier: Apache-2.0
"""Synthetic events of an isolated home: sampled in process for most arms, or published by a complete run.

Both paths query the same translator with the same contexts, which `scalr_prod.generation` plans and reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.generation import confidence_weight
from scalr_prod.schemas import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.translator import Contexts, TranslatorModule

__all__ = ["DrawOptions", "SplitTranslator", "publish_synthetic_events"]


@dataclass(frozen=True)
class DrawOptions(Jsonable):
    """Sampling options of synthetic events.

    Attributes:
        volume: Maximum events per context.
        temperature: 1 samples from P; towards 0 it becomes top-k.
        min_lift: Threshold of the confidence filter; 0 is off.
        align: Whether events are downsampled to match popularity buckets.
        member: ``mixture``, or the name of one estimator.
        seed: Seed of the sampling.
    """

    volume: int
    temperature: float
    min_lift: float = 0.0
    align: bool = False
    member: str = "mixture"
    seed: int = 0


@dataclass(frozen=True)
class SplitTranslator:
    """A trained translator with the contexts of one evaluation split.

    Attributes:
        split: The split.
        contexts: Contexts of the run.
        user: int32 [C]. User number of each context.
        item_number: int32 [n_target]. The split's number of each of the translator's items.
        value_bucket: int64 [N]. Popularity bucket of each item, as used by alignment.
        module: The translator.
        information: Information of source histories beyond popularity, measured when the translator was trained; None if its version
            lacks that measurement.
    """

    split: EvaluationSplit
    contexts: Contexts
    user: NDArray[np.int32]
    item_number: NDArray[np.int32]
    value_bucket: NDArray[np.int64]
    module: TranslatorModule
    information: dict[str, Any] | None = None

    @classmethod
    def from_split(cls, split: EvaluationSplit, *, max_contexts: int | None = None) -> SplitTranslator:
        """Build histories, train the translator, and read the contexts up to the cutoff.

        Args:
            split: The split.
            max_contexts: Maximum number of contexts, sampled at random with a fixed seed; default: all.

        Raises:
            TranslatorError: Too little to learn from.
        """
        from scalr_prod.generation import ConsumptionIndex, iter_requests, plan_run, read_contexts, value_buckets
        from scalr_prod.pipeline import PipelineContext, execute_stages, stages_to
        from scalr_prod.translator import Contexts, TranslatorModule, load_version
        from scalr_prod.workspace import open_duckdb, staging_folder

        settings = split.settings
        job = execute_stages(PipelineContext(settings), stages_to("histories", "translator"))
        spec = plan_run(settings, version=job.version)
        version = load_version(settings, job.version)
        vocabulary = version.vocabulary()
        with staging_folder(settings, "evaluate") as folder, open_duckdb(settings, folder) as connection:
            rows, real = read_contexts(connection, settings, spec, 0, 1)
        if max_contexts is not None and len(rows) > max_contexts:
            rows = rows.take(np.sort(np.random.default_rng(0).choice(len(rows), max_contexts, replace=False)))
        consumed = None if real is None else ConsumptionIndex.from_rows(real, vocabulary)
        contexts = Contexts.concat(list(iter_requests(settings, spec, vocabulary, rows, consumed, folds=version.folds)))
        counts = np.round(split.real.popularity()).astype(np.int64)
        return cls(
            split=split,
            contexts=contexts,
            user=index_in(rows[USER_ID], split.numbering.users),
            item_number=index_in(vocabulary.all_target_ids, split.numbering.items),
            value_bucket=value_buckets(counts, settings.generation.align_buckets),
            module=TranslatorModule.load(version.path, trusted=True),
            information=version.manifest["metrics"].get("information"),
        )

    def draw(self, options: DrawOptions) -> Interactions:
        """Sample synthetic events weighted by confidence P / (P + prior); of each (user, item) only the most probable event is kept."""
        events, probability, prior = self._most_probable_per_pair(options)
        events = replace(events, weight=confidence_weight(probability, prior))
        return events.take(self._alignment_mask(events.item, options.seed)) if options.align else events

    def recommended_events(self, options: DrawOptions) -> Interactions:
        """Sample the same events before alignment, weighted by probability: what the translator itself would recommend."""
        events, probability, _ = self._most_probable_per_pair(options)
        return replace(events, weight=probability.astype(np.float32))

    def _most_probable_per_pair(self, options: DrawOptions) -> tuple[Interactions, NDArray[np.float64], NDArray[np.float64]]:
        """Sample events of weight 1, the most probable of each (user, item); return them with their P and prior."""
        from scalr_prod.translator import Contexts

        contexts = self.contexts
        if options.seed:
            keys = contexts.noise_key ^ np.int64(options.seed * 0x9E3779B97F4A7C15 % 2**63)
            contexts = Contexts(**{**vars(contexts), "noise_key": keys})
        drawn = self.module.sample(
            contexts,
            options.volume,
            temperature=options.temperature,
            min_lift=options.min_lift,
            shortlist=self.split.settings.generation.shortlist,
            component=options.member,
        )
        row, place = np.nonzero(drawn.items >= 0)
        probability = drawn.probabilities[row, place].astype(np.float64)
        prior = drawn.prior[row, place].astype(np.float64)
        item = self.item_number[drawn.items[row, place]]
        order = np.lexsort((-probability, item, self.user[row]))
        pair = self.user[row].astype(np.int64) * len(self.split.numbering.items) + item
        _, first = np.unique(pair[order], return_index=True)
        best = order[first]
        events = Interactions(
            user=self.user[row][best],
            item=item[best],
            time=contexts.event_time[row][best],
            weight=np.ones(len(best), dtype=np.float32),
            n_users=self.split.real.n_users,
            n_items=self.split.real.n_items,
            until=self.split.real.until,
        )
        return events.synthetic(), probability[best], prior[best]

    def _alignment_mask(self, item: NDArray[np.int32], seed: int) -> NDArray[np.bool_]:
        """Return a mask of events to keep: a random subset whose bucket shares come closest to the real ones."""
        from scalr_prod.generation import bucket_shares, keep_counts

        buckets = self.split.settings.generation.align_buckets
        counts = np.round(self.split.real.popularity()).astype(np.int64)
        bucket = self.value_bucket[item]
        keep = keep_counts(np.bincount(bucket, minlength=buckets), bucket_shares(counts, self.value_bucket, buckets))
        order = np.lexsort((np.random.default_rng(seed).random(len(item)), bucket))
        begin = np.searchsorted(bucket[order], np.arange(buckets))
        keep_mask = np.zeros(len(item), dtype=bool)
        keep_mask[order[np.arange(len(item)) - begin[bucket[order]] < keep[bucket[order]]]] = True
        return keep_mask


def publish_synthetic_events(split: EvaluationSplit, options: DrawOptions) -> tuple[Interactions, Interactions, dict[str, Any]]:
    """Generate, validate and publish events and build the training set; return its real and synthetic events and the run's reports.

    Args:
        split: A split whose home holds a trained translator.
        options: Volume, temperature, filter and alignment; the mixture is always used.

    Raises:
        QualityGateFailed: The quality gate rejected the events.
    """
    import pyarrow.compute as pc

    from scalr_prod.pipeline import PipelineContext, execute_stages, stages_to
    from scalr_prod.training_set import TrainingSet

    job = execute_stages(PipelineContext(with_draw_options(split.settings, options)), stages_to("plan"))
    made = job.reports["dataset"].to_json()
    del made["fingerprint"]  # depends on random file names in the split's lake
    rows = TrainingSet.open(made["path"]).to_arrow([USER_ID, ITEM_ID, "event_timestamp", "weight", "is_synthetic"])
    is_synthetic = rows["is_synthetic"]
    masks = (pc.invert(is_synthetic), is_synthetic)
    real, synthetic = (split.numbering.to_interactions(rows.filter(mask), split.cutoff) for mask in masks)
    return real, synthetic.synthetic(), {"run_id": job.run_id, "gate": job.reports["validate"].to_json(), "training_set": made}


def with_draw_options(settings: Settings, options: DrawOptions) -> Settings:
    """Return settings of a run with these sampling options, and of a training set of positives without λ, which the evaluation applies.

    The gate's information check is off: the evaluation itself decides whether there is a signal.
    """
    generation = settings.generation.model_copy(
        update={
            "events_per_source_event": options.volume,
            "temperature": options.temperature,
            "min_lift": options.min_lift,
            "align": options.align,
            "seed": options.seed,
        }
    )
    quality = settings.quality.model_copy(update={"min_information": 0.0})
    plain = {"task": "ranking", "negatives_per_event": 0, "synthetic_weight": 1.0, "segment_weights": None}
    training_set = settings.training_set.model_copy(update=plain)
    return settings.model_copy(update={"generation": generation, "quality": quality, "training_set": training_set})
