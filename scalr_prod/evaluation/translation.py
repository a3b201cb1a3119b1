# SPDX-License-Identifier: Apache-2.0
"""Synthetic events of an isolated home, sampled in process.

A published run queries the same translator with the same contexts, which `scalr_prod.generation` plans and reads (see `published_sets`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.generation import confidence_weight
from scalr_prod.schemas import USER_ID
from scalr_prod.training_set import discount_popularity
from scalr_prod.translator import NO_ITEM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.translator import Contexts, Samples, TranslatorModule


@dataclass(frozen=True)
class DrawOptions(Jsonable):
    """Sampling options of synthetic events.

    Attributes:
        volume: Maximum events per context.
        temperature: 1 samples from P; towards 0 it becomes top-k.
        min_lift: Threshold of the confidence filter; 0 is off.
        align: Whether events are downsampled to match popularity buckets.
        member: ``mixture``, or the name of one estimator.
    """

    volume: int
    temperature: float
    min_lift: float = 0.0
    align: bool = False
    member: str = "mixture"


class _SampledEvents(NamedTuple):
    """Sampled events of weight 1, with their probability and prior, float64 [M] each."""

    events: Interactions
    probability: NDArray[np.float64]
    prior: NDArray[np.float64]


@dataclass(frozen=True)
class SplitTranslator:
    """A trained translator with the contexts of one evaluation split.

    Attributes:
        split: The split.
        version: Number of the translator version.
        contexts: Contexts of the run.
        user: int32 [C]. User number of each context.
        item_number: int32 [n_target]. The split's number of each of the translator's items.
        popularity_bucket: int64 [N]. Popularity bucket of each item, as used by alignment.
        module: The translator.
        information: Information of source histories beyond popularity, measured when the translator was trained; None if its version
            lacks that measurement.
        base: The translator of the same split without new users; what it samples for all other users is reused. None if there is none.
    """

    split: EvaluationSplit
    version: int
    contexts: Contexts
    user: NDArray[np.int32]
    item_number: NDArray[np.int32]
    popularity_bucket: NDArray[np.int64]
    module: TranslatorModule
    information: dict[str, Any] | None = None
    base: SplitTranslator | None = None
    _samples: dict[DrawOptions, Samples] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_split(cls, split: EvaluationSplit, *, max_contexts: int | None = None) -> SplitTranslator:
        """Build histories, train the translator, and read the contexts up to the cutoff.

        Args:
            split: The split.
            max_contexts: Maximum number of contexts, sampled at random with a fixed seed; default: all.

        Raises:
            TranslatorError: Too little to learn from.
        """
        from scalr_prod.generation import ConsumptionIndex, RequestEncoder, plan_run, popularity_buckets, read_contexts
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
        contexts = Contexts.concat(
            list(RequestEncoder(settings, spec, vocabulary, version.folds).iter_requests(rows, consumed))
        )
        counts = np.round(split.real.popularity()).astype(np.int64)
        return cls(
            split=split,
            version=version.version,
            contexts=contexts,
            user=index_in(rows[USER_ID], split.numbering.users),
            item_number=index_in(vocabulary.all_target_ids, split.numbering.items),
            popularity_bucket=popularity_buckets(counts, settings.generation.align_buckets),
            module=TranslatorModule.load(version.path, trusted=True),
            information=version.manifest["metrics"].get("information"),
        )

    def with_new_users(self, split: EvaluationSplit) -> SplitTranslator:
        """Return the translator for a split of `EvaluationSplit.with_new_users`: for users hidden there no item counts as consumed."""
        exclude = np.where(split.hidden[self.user][:, None], np.int32(NO_ITEM), self.contexts.exclude_matrix())
        return replace(self, split=split, contexts=replace(self.contexts, exclude=exclude), base=self)

    def draw(self, options: DrawOptions) -> Interactions:
        """Sample synthetic events weighted by confidence P / (P + prior), as a run does, and discounted as a training set does.

        Of each (user, item) the first one is kept; of each (user, item, time) the most probable one where a run may repeat a user's items.
        """
        sampled = self._sampled_events(options, as_run=True)
        confidence = confidence_weight(sampled.probability, sampled.prior)
        weight = discount_popularity(confidence, sampled.prior, self.split.settings.training_set.popularity_discount)
        events = replace(sampled.events, weight=weight)
        return events.take(self._alignment_mask(events.item)) if options.align else events

    def recommended_events(self, options: DrawOptions) -> Interactions:
        """Sample events weighted by probability, the most probable one of each (user, item): what the translator itself would recommend."""
        sampled = self._sampled_events(options, as_run=False)
        return replace(sampled.events, weight=sampled.probability.astype(np.float32))

    def _sampled_events(self, options: DrawOptions, *, as_run: bool) -> _SampledEvents:
        """Sample events of weight 1, and keep those that a run keeps, or the most probable of each (user, item)."""
        samples = self._sample(options)
        row, column = np.nonzero(samples.items >= 0)
        probability = samples.probabilities[row, column].astype(np.float64)
        prior = samples.prior[row, column].astype(np.float64)
        item = self.item_number[samples.items[row, column]]
        user = self.user[row]
        time = self.contexts.event_time[row] if as_run else np.zeros(len(row), np.int64)
        keys = (user, item) if self.split.settings.generation.exclude_consumed else (user, item, time)
        order = np.lexsort((-probability, time, item, user))
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
        best = order[is_first]
        best = best[np.lexsort((item[best], time[best], user[best]))]
        events = Interactions(
            user=user[best],
            item=item[best],
            time=self.contexts.event_time[row][best],
            weight=np.ones(len(best), dtype=np.float32),
            n_users=self.split.real.n_users,
            n_items=self.split.real.n_items,
            until=self.split.real.until,
        )
        return _SampledEvents(events.synthetic(), probability[best], prior[best])

    def _sample(self, options: DrawOptions) -> Samples:
        """Return the draws of every context, which is sampled once per temperature and component.

        Fewer draws are the first of more, since draws come in the order of their keys, and the confidence filter drops draws afterwards.
        """
        settings = self.split.settings
        # A shortlist is at least as long as the number of draws, so that other numbers may draw from other lists.
        volume = options.volume if settings.generation.shortlist else max(options.volume, *settings.downstream.volumes)
        samples = self._sample_once(replace(options, volume=volume, min_lift=0.0, align=False))
        first = np.s_[:, : options.volume]
        probabilities, prior = samples.probabilities[first], samples.prior[first]
        kept = probabilities >= np.float32(options.min_lift) * prior
        items = np.where(kept, samples.items[first], np.int32(NO_ITEM))
        return replace(samples, items=items, probabilities=probabilities, prior=prior)

    def _sample_once(self, options: DrawOptions) -> Samples:
        """Sample every context; the draws of users who are not new are the base translator's."""
        if options not in self._samples:
            if self.base is None:
                self._samples[options] = self._sample_contexts(self.contexts, options)
            else:
                new = np.flatnonzero(self.split.hidden[self.user])
                samples = self.base._sample_once(options)  # noqa: SLF001 - the same class
                self._samples[options] = _replace_rows(samples, new, self._sample_contexts(self.contexts.take(new), options))
        return self._samples[options]

    def _sample_contexts(self, contexts: Contexts, options: DrawOptions) -> Samples:
        return self.module.sample(
            contexts,
            options.volume,
            temperature=options.temperature,
            shortlist=self.split.settings.generation.shortlist,
            component=options.member,
        )

    def _alignment_mask(self, item: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return a mask of events to keep: a random subset whose bucket shares come closest to the real ones."""
        from scalr_prod.generation import bucket_shares, keep_counts

        buckets = self.split.settings.generation.align_buckets
        counts = np.round(self.split.real.popularity()).astype(np.int64)
        bucket = self.popularity_bucket[item]
        keep = keep_counts(np.bincount(bucket, minlength=buckets), bucket_shares(counts, self.popularity_bucket, buckets))
        order = np.lexsort((np.random.default_rng(0).random(len(item)), bucket))
        begin = np.searchsorted(bucket[order], np.arange(buckets))
        keep_mask = np.zeros(len(item), dtype=bool)
        keep_mask[order[np.arange(len(item)) - begin[bucket[order]] < keep[bucket[order]]]] = True
        return keep_mask


def _replace_rows(samples: Samples, rows: NDArray[np.int64], drawn: Samples) -> Samples:
    """Return a copy of the samples in which some rows are replaced by other draws."""
    arrays = {name: array.copy() for name, array in vars(samples).items()}
    for name, array in vars(drawn).items():
        arrays[name][rows] = array
    return replace(samples, **arrays)
