# SPDX-License-Identifier: Apache-2.0
"""Estimates of the work of each unit of training, for the progress bar and the remaining time.

Only the ratios of units matter: the actual speed is measured while they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.memmap import iter_row_slices
from scalr_prod.translator.estimators import scored_estimators

if TYPE_CHECKING:
    from scalr_prod.translator.data.training_pairs import TrainingSlice


#: Microseconds on one core for each source event and each target event of a slice, with 64 factors, as measured on Yelp's logs.
_SHARE: Final = {"popularity": (0.0, 0.6), "tastes": (1.0, 0.0), "topics": (20.0, 0.0), "linear": (5.6, 0.0)}
_FIT: Final = {"frequency": (0.0, 5.0), "topics": (0.0, 8.0), "linear": (0.3, 0.0), "factorisation": (2.4, 2.4)}
#: Microseconds for each position in a window of source events, in all epochs: pretraining, and the fit to target events.
_PRETRAINING: Final = 20.0
_SEQUENTIAL: Final = 10.0
#: The same as `_FIT` for an estimator of another package.
_OTHER: Final = (1.0, 10.0)
#: Microseconds for each target event to fit weights and to measure metrics and information gain on it.
_CALIBRATION: Final = 3700.0
_DIM: Final = 64
_EPOCHS: Final = 3


def estimate_shared_work(name: str, pairs: TrainingSlice) -> float:
    """Estimate the microseconds to fit the shared tensors of an estimator, ``popularity`` or ``tastes``."""
    if name == "sequential":
        max_events, events = pairs.settings.pretraining_events, _count_source_events(pairs)
        share = min(1.0, max_events / max(events, 1))
        return _scaled(pairs, share * _PRETRAINING * _count_windows(pairs) * pairs.log.history.shape[1])
    source, target = _SHARE.get(name, (0.0, 0.0))
    return _scaled(pairs, source * _count_source_events(pairs) + target * len(pairs.target_rows()))


def estimate_fit_work(name: str, pairs: TrainingSlice) -> float:
    """Estimate the microseconds to fit an estimator of one parameter set."""
    labels = len(pairs.target_rows())
    if name == "sequential":
        windows = min(_count_windows(pairs), labels)
        return _scaled(pairs, _SEQUENTIAL * pairs.settings.epochs / _EPOCHS * windows * pairs.log.history.shape[1])
    source, target = _FIT.get(name, _OTHER)
    return _scaled(pairs, source * _count_source_events(pairs) + target * labels)


def estimate_calibration_work(events: int) -> float:
    """Estimate the microseconds to calibrate one set on this many target events and to measure it on them."""
    return _CALIBRATION * events


def estimate_training_work(pairs: TrainingSlice, sets: int) -> float:
    """Estimate the microseconds to fit a slice's shared parameters and ``sets`` parameter sets.

    A slice with popularity from after its end is for calibration: one set is then calibrated and measured on the events between the two.
    """
    log = pairs.log
    measured = log.is_label & (log.target.time >= pairs.until) & (log.target.time < pairs.popularity_until)
    names = scored_estimators(pairs.settings.estimators)
    shared = sum(estimate_shared_work(name, pairs) for name in (*names, "popularity", "tastes"))
    return (
        shared + sets * sum(estimate_fit_work(name, pairs) for name in names) + estimate_calibration_work(int(measured.sum()))
    )


def _scaled(pairs: TrainingSlice, work: float) -> float:
    return work * pairs.settings.dim / _DIM


def _count_windows(pairs: TrainingSlice) -> int:
    """Count the windows of the history's length that the users' source events fill, see `window_index.index_source_windows`."""
    source, events = pairs.log.source, np.zeros(len(pairs.log.users), dtype=np.int64)
    for rows in iter_row_slices(len(source)):
        events += np.bincount(source.user[rows][source.time[rows] < pairs.until], minlength=len(events))
    return int((-(-events // pairs.log.history.shape[1])).sum())


def _count_source_events(pairs: TrainingSlice) -> int:
    time = pairs.log.source.time
    return sum(int((time[rows] < pairs.until).sum()) for rows in iter_row_slices(len(time)))
