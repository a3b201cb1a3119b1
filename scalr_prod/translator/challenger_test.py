# SPDX-License-Identifier: Apache-2.0
"""Challenger test: compare a new version with the served one on the events between their ``trained_until``.

The candidate has learned from these events. Therefore its recipe is fitted again on the earlier events, as the served version was. The
comparison measures changes of the settings, of the code, and of the log's past. It does not measure the benefit of more recent events,
which is why a tie is decided for the candidate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.progress import track
from scalr_prod.core.timestamps import to_micros
from scalr_prod.translator import training_budget
from scalr_prod.translator.dask_pool import open_training_pool
from scalr_prod.translator.data.event_log import read_event_log
from scalr_prod.translator.data.training_pairs import TrainingSlice, contexts_and_labels
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.registry import load_version
from scalr_prod.translator.trainer import (
    calibration_slice,
    fit_calibration,
    fit_parameter_sets,
    fit_shared,
    time_quantile,
    weights_metadata,
)
from scalr_prod.translator.training_device import training_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.data.event_log import EventLog
    from scalr_prod.translator.worker_pool import WorkerPool


#: Minimum number of events for a comparison.
MIN_EVENTS: Final = 30
#: A difference of at most this many standard errors is a tie.
_TIE_STANDARD_ERRORS: Final = 2.0


@dataclass(frozen=True)
class ChallengerResult:
    """Losses of two versions on the same events.

    Attributes:
        candidate: The new version.
        served: The version that is served.
        since: Start of the compared events (ISO 8601, UTC): the served version's ``trained_until``.
        until: End of the compared events, exclusive: the candidate's ``trained_until``.
        events: Number of events whose item both versions could propose.
        candidate_nll: Mean -log P(item) of the candidate's recipe (natural logarithm).
        served_nll: The same of the served version.
        error: Standard error of the mean paired difference.
    """

    candidate: int
    served: int
    since: str
    until: str
    events: int
    candidate_nll: float | None
    served_nll: float | None
    error: float | None

    @property
    def fit_to_serve(self) -> bool:
        """Return whether the candidate is better, or worse by at most two standard errors."""
        if self.candidate_nll is None or self.served_nll is None or self.error is None:
            return False
        return self.candidate_nll <= self.served_nll + _TIE_STANDARD_ERRORS * self.error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"fit_to_serve": self.fit_to_serve}


def compare_versions(settings: Settings, candidate: int, served: int, *, progress: bool = False) -> ChallengerResult:
    """Compare the negative log-likelihood of two versions on the target events between their ``trained_until``.

    Args:
        settings: The project's settings, with which the candidate was trained.
        candidate: The new version.
        served: The version that is served.
        progress: Show a progress bar on stderr.

    Returns:
        The comparison; its losses are None if there are fewer than 30 events.

    Raises:
        TranslatorNotFound: A version does not exist.
        TranslatorError: Too few events to fit the recipe on.
    """
    new, old = load_version(settings, candidate), load_version(settings, served)
    begin, end = to_micros(old.trained_until), to_micros(new.trained_until)
    since, until = old.trained_until.isoformat(), new.trained_until.isoformat()
    unknown = ChallengerResult(candidate, served, since, until, 0, None, None, None)
    if begin >= end:
        return unknown
    log = read_event_log(settings, new.trained_until)
    rows = np.flatnonzero(log.is_label & (log.target.time >= begin) & (log.target.time < end))
    if len(rows) < MIN_EVENTS:
        return unknown
    vocabulary = old.vocabulary()
    with open_training_pool(settings, command="scalr translator promote") as pool:
        served_loss = _losses(
            TranslatorModule.load(old.path, trusted=True),
            *contexts_and_labels(
                log,
                rows,
                source_index=vocabulary.source_index(log.source.ids),
                target_index=vocabulary.target_index(log.target.ids),
                asked_at=begin,
            ),
        )
        module, pairs = _refit_recipe(settings, log, begin, pool, progress=progress)
        loss = _losses(
            module,
            *contexts_and_labels(log, rows, source_index=pairs.source_index, target_index=pairs.target_index, asked_at=begin),
        )
    both = np.isfinite(loss) & np.isfinite(served_loss)
    if both.sum() < MIN_EVENTS:
        return unknown
    difference = loss[both] - served_loss[both]
    return ChallengerResult(
        candidate,
        served,
        since,
        until,
        events=int(both.sum()),
        candidate_nll=round(float(loss[both].mean()), 6),
        served_nll=round(float(served_loss[both].mean()), 6),
        error=round(float(difference.std(ddof=1) / np.sqrt(len(difference))), 6),
    )


def _refit_recipe(
    settings: Settings, log: EventLog, until: int, pool: WorkerPool, *, progress: bool
) -> tuple[TranslatorModule, TrainingSlice]:
    """Fit the version that training would have produced at a time (µs), for users with target events only.

    Returns:
        The fitted module, and the slice that it was fitted on.
    """
    past = log.label_times()
    middle = time_quantile(past[past < until], 1 - settings.translator.validation_fraction)
    held_out = log.sample_users(settings.translator.folds)
    pairs = TrainingSlice.from_log(log, until, settings.translator, device=training_device(settings.compute.device))
    before = calibration_slice(settings, log, middle, until)
    work = training_budget.estimate_training_work(before, 1) + training_budget.estimate_training_work(pairs, 1)
    with track("comparison", show=progress, total=work, unit="") as done:
        shared_before, shared = fit_shared([before, pairs], pool, done)
        calibrated = fit_calibration(settings, shared_before, held_out, done, pool)
        no_users = np.zeros(len(log.users), dtype=bool)
        tensors = fit_parameter_sets(pairs, {-1: no_users}, done, pool, shared=shared) | calibrated.tables
    return TranslatorModule(tensors, weights_metadata(settings, pairs, 0)), pairs


def _losses(module: TranslatorModule, contexts: Contexts, labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return -log P(item) of each event: float64 [R], NaN if the module could not propose the item."""
    p, _ = module.score(contexts, labels[:, None])
    with np.errstate(divide="ignore"):
        loss = -np.log(p[:, 0].astype(np.float64))
    return np.where((labels >= 0) & np.isfinite(loss), loss, np.nan)
