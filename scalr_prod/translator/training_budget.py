# SPDX-License-Identifier: Apache-2.0
"""Estimates of the work of each unit of training, for the progress bar and the remaining time.

Only the ratios of units matter: the actual speed is measured while they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from scalr_prod.core.memmap import iter_row_slices
from scalr_prod.translator.estimators import linear, scored_estimators
from scalr_prod.translator.estimators.window_index import windows_per_batch

if TYPE_CHECKING:
    from scalr_prod.config import TranslatorSettings
    from scalr_prod.translator.data.training_pairs import TrainingSlice


#: Microseconds on one core for each source event and each target event of a slice, with 64 factors, as measured on Yelp's logs.
_SHARE: Final = {"popularity": (0.0, 0.6), "tastes": (1.0, 0.0), "linear": (5.6, 0.0)}
_FIT: Final = {"frequency": (0.0, 5.0), "topics": (0.0, 8.0), "linear": (0.3, 0.0), "factorisation": (2.4, 2.4)}
#: Microseconds for each source event that the topics of source items are fitted to.
_SOURCE_TOPICS: Final = 12.0
#: Microseconds for each position in a window of source events, in all epochs: pretraining, and the fit to target events.
_PRETRAINING: Final = 20.0
_SEQUENTIAL: Final = 10.0
#: The same as `_FIT` for an estimator of another package.
_OTHER: Final = (1.0, 10.0)
#: Microseconds for each target event to fit weights and to measure metrics and information gain on it.
_CALIBRATION: Final = 3700.0
_DIM: Final = 64
_EPOCHS: Final = 3


class TrainingCounts(Protocol):
    """Counts of a slice that decide the work of training on it."""

    @property
    def source_events(self) -> int:
        """Number of source events."""

    @property
    def windows(self) -> int:
        """Number of windows of a history's length that the users' source events fill, see `window_index.index_source_windows`."""

    @property
    def labels(self) -> int:
        """Number of target events that are learned from."""

    @property
    def length(self) -> int:
        """Number of events in a history."""


@dataclass(frozen=True)
class LogCounts:
    """`TrainingCounts` of two logs."""

    source_events: int
    windows: int
    labels: int
    length: int


class _SliceCounts:
    """`TrainingCounts` of a slice, each counted when it is needed."""

    def __init__(self, pairs: TrainingSlice) -> None:
        self._pairs = pairs

    @property
    def source_events(self) -> int:
        time = self._pairs.log.source.time
        return sum(int((time[rows] < self._pairs.until).sum()) for rows in iter_row_slices(len(time)))

    @property
    def windows(self) -> int:
        log = self._pairs.log
        source, events = log.source, np.zeros(len(log.users), dtype=np.int64)
        for rows in iter_row_slices(len(source)):
            events += np.bincount(source.user[rows][source.time[rows] < self._pairs.until], minlength=len(events))
        return int((-(-events // self.length)).sum())

    @property
    def labels(self) -> int:
        return len(self._pairs.target_rows())

    @property
    def length(self) -> int:
        length: int = self._pairs.log.history.shape[1]
        return length


def estimate_shared_work(name: str, pairs: TrainingSlice) -> float:
    """Estimate the microseconds to fit the shared tensors of an estimator, ``popularity`` or ``tastes``."""
    return _shared_work(name, _SliceCounts(pairs), pairs.settings)


def estimate_fit_work(name: str, pairs: TrainingSlice) -> float:
    """Estimate the microseconds to fit an estimator of one parameter set."""
    return _fit_work(name, _SliceCounts(pairs), pairs.settings)


def estimate_calibration_work(events: int) -> float:
    """Estimate the microseconds to calibrate one set on this many target events and to measure it on them."""
    return _CALIBRATION * events


def estimate_training_work(pairs: TrainingSlice, sets: int) -> float:
    """Estimate the microseconds to fit a slice's shared parameters and ``sets`` parameter sets.

    A slice with popularity from after its end is for calibration: one set is then calibrated and measured on the events between the two.
    """
    log = pairs.log
    measured = log.is_label & (log.target.time >= pairs.until) & (log.target.time < pairs.popularity_until)
    return _sets_work(_SliceCounts(pairs), pairs.settings, sets) + estimate_calibration_work(int(measured.sum()))


def estimate_training_minutes(counts: TrainingCounts, settings: TranslatorSettings) -> float:
    """Estimate the minutes of one core that `training.train` takes on whole logs."""
    measured = settings.validation_fraction * counts.labels
    # Both slices are estimated by the larger one, since they differ by the last target events alone.
    work = _sets_work(counts, settings, 1) + _sets_work(counts, settings, settings.folds + 1)
    return (work + _CALIBRATION * measured) / 60e6


def _shared_work(name: str, counts: TrainingCounts, settings: TranslatorSettings) -> float:
    share = min(1.0, settings.pretraining_events / max(counts.source_events, 1))
    if name == "sequential":
        return _scaled(settings, share * _PRETRAINING * counts.windows * counts.length)
    if name == "topics":
        return _scaled(settings, share * _SOURCE_TOPICS * counts.source_events)
    source, target = _SHARE.get(name, (0.0, 0.0))
    source_events = min(counts.source_events, linear.MAX_CELLS) if name == "linear" else counts.source_events
    return _scaled(settings, source * source_events + target * counts.labels)


def _fit_work(name: str, counts: TrainingCounts, settings: TranslatorSettings) -> float:
    labels = counts.labels
    if name == "sequential":
        windows = min(counts.windows, labels)
        passes = min(settings.epochs, settings.sequential_steps * windows_per_batch(settings.batch_size) / max(windows, 1))
        return _scaled(settings, _SEQUENTIAL * passes / _EPOCHS * windows * counts.length)
    source, target = _FIT.get(name, _OTHER)
    return _scaled(settings, source * counts.source_events + target * labels)


def _sets_work(counts: TrainingCounts, settings: TranslatorSettings, sets: int) -> float:
    names = scored_estimators(settings.estimators)
    shared = sum(_shared_work(name, counts, settings) for name in (*names, "popularity", "tastes"))
    return shared + sets * sum(_fit_work(name, counts, settings) for name in names)


def _scaled(settings: TranslatorSettings, work: float) -> float:
    return work * settings.dim / _DIM
