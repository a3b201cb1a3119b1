# SPDX-License-Identifier: Apache-2.0
"""A translator that is fitted in seconds, to judge a pair of domains before a project is set up for it.

It is the package's mixture with fewer estimators and factors and one parameter set, see `quick_settings`. The target's labels are in
three slices of time: parameters are fitted on the first one without the held-out users' target events, the mixture's weights on the
second, and rankings are made as of the start of the third.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from scalr_prod.translator.calibration import CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.calibration_table import CalibrationLayout
from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS
from scalr_prod.translator.data.training_pairs import LazyContexts, TrainingSlice
from scalr_prod.translator.information_gain import (
    EventScores,
    LabelledContexts,
    OwnOverOthers,
    bootstrap_mean,
    score_held_out_events,
)
from scalr_prod.translator.module import TrainingModule
from scalr_prod.translator.trainer import (
    fit_parameter_sets,
    fit_shared,
    label_rows_between,
    time_quantile,
    weights_metadata,
)
from scalr_prod.translator.worker_pool import ignore_progress

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.translator.data.event_log import EventLog


#: Estimators and sizes of `quick_settings`.
_ESTIMATORS: Final = ("popularity", "frequency", "topics", "linear", "factorisation")
_DIM: Final = 32
_PRETRAINING_EVENTS: Final = 50_000
#: Shares of the labels before the second and the third slice. As in training, a tenth of what precedes the third calibrates.
_CALIBRATED_FROM: Final = 0.72
_TESTED_FROM: Final = 0.8
#: Largest number of events that the mixture's weights are fitted on, and that the information of histories is measured on.
_MAX_EVENTS: Final = 1_500
_COMPONENTS: Final = ("mixture", "popularity")


def quick_settings(settings: Settings) -> Settings:
    """Return settings of a quick translator: without the sequential estimator, which takes most of a training, and with fewer factors."""
    translator = {"estimators": _ESTIMATORS, "dim": _DIM, "pretraining_events": _PRETRAINING_EVENTS}
    return settings.with_sections(translator=translator)


@dataclass(frozen=True)
class QuickTranslator:
    """A fitted quick translator.

    Attributes:
        pairs: The first slice, with popularity as of any event of the log.
        module: The calibrated mixture.
        held_out: bool [U]. Users whose target events did not shape the parameters.
        tested_from: Start of the third slice (µs).
        tensors: Parameters without calibration.
        metadata: Metadata of the parameters.
    """

    pairs: TrainingSlice
    module: TrainingModule
    held_out: NDArray[np.bool_]
    tested_from: int
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @classmethod
    def fit(cls, settings: Settings, log: EventLog) -> Self:
        """Fit on a log.

        Args:
            settings: Those of `quick_settings`.
            log: Both domains' events.

        Raises:
            TranslatorError: There is too little data.
        """
        times = log.label_times()
        begin, tested_from = time_quantile(times, _CALIBRATED_FROM), time_quantile(times, _TESTED_FROM)
        rows = label_rows_between(log, begin, tested_from)
        pairs = TrainingSlice.from_log(log, begin, settings.translator, popularity_until=int(times.max()) + 1)
        held_out, seed = log.sample_users(settings.translator.folds), settings.translator.seed
        (shared,) = fit_shared([pairs])
        tensors = fit_parameter_sets(pairs, {ALL_USERS: held_out}, ignore_progress, shared=shared)
        metadata = weights_metadata(settings, pairs, 0)
        plain = TrainingModule(tensors | uncalibrated_tables(CalibrationLayout.from_metadata(metadata)), metadata)
        if len(rows) > _MAX_EVENTS:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_MAX_EVENTS])
        contexts = LazyContexts(log, rows, pairs.source_index, pairs.target_index, asked_at=begin)
        events = CalibrationEvents(contexts, contexts.labels, held_out[log.target.user[rows]])
        tables = calibrate(plain, events, seed=seed, components=_COMPONENTS)
        return cls(pairs, TrainingModule(tensors | tables, metadata), held_out, tested_from, tensors, metadata)

    def label_rows(self, begin: int | None = None, end: int | None = None) -> NDArray[np.int64]:
        """Return the positions of the labels on known items with ``begin <= time < end``: int64."""
        log, target = self.pairs.log, self.pairs.log.target
        known = log.is_label & (self.pairs.target_index[target.item] >= 0)
        if begin is not None:
            known &= target.time >= begin
        if end is not None:
            known &= target.time < end
        return np.flatnonzero(known)

    def has_history(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the users of target events have a known source item before the third slice: bool [R]."""
        return self._contexts(rows).has_known_items()

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probability of each item for the users of target events, as of the start of the third slice: float32 [R, N].

        Args:
            rows: int64 [R]. Positions in ``log.target`` of each user's first event of the third slice.
        """
        fold = np.where(self.held_out[self.pairs.log.target.user[rows]], COLD_USERS, ALL_USERS).astype(np.int32)
        contexts = replace(self._contexts(rows).take(np.arange(len(rows))), fold=fold)
        scores = np.empty((len(rows), self.pairs.n_target), dtype=np.float32)
        for part, (p,) in self.module.distributions(contexts):
            scores[part] = p.numpy()
        return scores

    def measure_information(self) -> OwnOverOthers:
        """Measure the information of the held-out users' own histories over others'.

        Training measures it for the quality gate, too, on the users of all folds.
        """
        scores = self.score_held_out(self.held_out_rows())
        return OwnOverOthers.from_scores([scores], np.random.default_rng(self.pairs.settings.seed))

    def information_over(self, first: QuickTranslator) -> OwnOverOthers:
        """Measure what this translator's histories tell of the same events over those of another one.

        Args:
            first: Fitted on the same users and target events, with histories that lack some source domains.
        """
        log, pairs = first.pairs.log, first.pairs
        rows = first.held_out_rows()
        rows = rows[LazyContexts(log, rows, pairs.source_index, pairs.target_index).has_known_items()]
        scored = [translator.score_held_out(rows) for translator in (self, first)]
        (own, user), (other, other_user) = ((scores.own, scores.user) for scores in scored)
        if not np.array_equal(user, other_user):
            raise ValueError("the translators do not score the same events")
        nats = bootstrap_mean(own - other, user, np.random.default_rng(pairs.settings.seed))
        return OwnOverOthers(len(user), len(np.unique(user)), nats)

    def held_out_rows(self) -> NDArray[np.int64]:
        """Return the positions of the held-out users' labels on known items: int64."""
        rows = self.label_rows()
        return rows[self.held_out[self.pairs.log.target.user[rows]]]

    def score_held_out(self, rows: NDArray[np.int64]) -> EventScores:
        """Score a sample of held-out users' events, without those that have no history."""
        log, pairs = self.pairs.log, self.pairs
        contexts, user = LazyContexts(log, rows, pairs.source_index, pairs.target_index), log.target.user[rows]
        events = LabelledContexts(contexts, contexts.labels, user, np.ones(len(rows), dtype=bool))
        return score_held_out_events(self.tensors, self.metadata, events, seed=pairs.settings.seed, max_events=_MAX_EVENTS)

    def _contexts(self, rows: NDArray[np.int64]) -> LazyContexts:
        pairs = self.pairs
        return LazyContexts(pairs.log, rows, pairs.source_index, pairs.target_index, asked_at=self.tested_from)
