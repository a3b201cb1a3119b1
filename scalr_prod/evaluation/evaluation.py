# SPDX-License-Identifier: Apache-2.0
"""Entry point of `scalr evaluate`: plan the arms, cutoffs and validation windows, then run the evaluation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.timestamps import column_to_micros, micros_to_datetime, to_micros
from scalr_prod.errors import EvaluationError, TranslatorError
from scalr_prod.evaluation.arms import (
    ABLATION_ARMS,
    CONTROL_ARMS,
    DEFAULT_ARMS,
    JOINT_TRAINING,
    MAIN_ARMS,
    REAL_ONLY,
    REQUIRED_ESTIMATORS,
    UNTRAINED_ARMS,
    WITH_SYNTHETIC,
    ArmDataBuilder,
    leave_one_out_arms,
)
from scalr_prod.evaluation.cutoff_run import EvaluationRunner
from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.progress_ticker import evaluation_progress
from scalr_prod.evaluation.quick_verdict import run_quick_verdict, with_budget
from scalr_prod.evaluation.result_cache import ResultCache
from scalr_prod.evaluation.signal import measure_signal
from scalr_prod.evaluation.split import EvaluationSplit
from scalr_prod.evaluation.trial_cache import ValidationWindow
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator import time_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.evaluation.evaluation_report import EvaluationReport
    from scalr_prod.evaluation.progress_ticker import EvaluationProgress

__all__ = ["ALL_ARMS", "evaluate"]

logger = logging.getLogger(__name__)

#: Arms of every project. Projects with several source domains also have one arm that leaves each of them out.
ALL_ARMS: Final = (*MAIN_ARMS, *UNTRAINED_ARMS, *CONTROL_ARMS, JOINT_TRAINING, *ABLATION_ARMS)
#: Arms that are always evaluated, since all others are compared with them.
_REQUIRED_ARMS: Final = (REAL_ONLY, WITH_SYNTHETIC, "popular_lately")
#: Share of the target events before the default cutoff.
TRAINING_SHARE: Final = 0.8
_DEFAULT_SEEDS: Final = 2


def evaluate(
    settings: Settings,
    *,
    cold_fraction: float | None = None,
    cutoff: datetime | None = None,
    cutoffs: int | None = None,
    arms: Sequence[str] | None = None,
    full: bool = False,
    quick: bool = False,
    progress: bool = False,
) -> EvaluationReport:
    """Train models with and without synthetic events up to a cutoff and evaluate them on later events.

    A quick verdict comes first. Results are cached in the isolated homes: an interrupted call resumes when it is repeated, and gives the
    same report except for `EvaluationReport.seconds`.

    Everything that learns reads an isolated home. Each arm is tuned on validation windows within the training period of the first
    cutoff, each in a home of its own: its last fifth of events, the last fifth of the rest, and so on. Later cutoffs are tested with the
    same choices. The result is written to the project as a policy, which runs apply.

    Args:
        settings: The project's settings; missing logs are ingested first.
        cold_fraction: Share of users whose target history is hidden from all training; default: ``[downstream] cold_fraction``.
        cutoff: The first cutoff; default: ``[downstream] cutoff``, or the 80th percentile of target time.
        cutoffs: Number of rolling cutoffs, which split the events after the first into parts of equal size; default:
            ``[downstream] cutoffs``.
        arms: Arms to evaluate in addition to those that are always evaluated; default: the main baselines and controls, and the arms
            that leave one source domain out; with ``full`` all arms.
        full: All arms, models, seeds and windows. Otherwise the first model, at most two seeds and one window, unless the settings set
            these values.
        quick: Stop after the quick verdict: the first model, the first cutoff, three arms; no policy is written.
        progress: Show a progress bar on stderr; otherwise progress is logged.

    Raises:
        EvaluationError: Too few test users, an unknown arm, or an unusable model.
    """
    plan = _EvaluationPlan.from_settings(settings, arms, full=full)
    cold = settings.downstream.cold_fraction if cold_fraction is None else cold_fraction
    with evaluation_progress(show_bar=progress) as reporter:
        reporter.start_task("reading the logs")
        _ensure_ingested(settings)
        count = 1 if quick else cutoffs or settings.downstream.cutoffs
        moments = _choose_cutoffs(settings, cutoff, count)
        ends = [*moments[1:], None]
        splits = [
            EvaluationSplit.from_settings(plan.settings, moment, end=end, cold_fraction=cold, name="test")
            for moment, end in zip(moments, ends, strict=True)
        ]
        latest = _validation_window(splits[0], 0, None, reporter)
        first = run_quick_verdict(
            EvaluationRunner(plan.quick_settings(), _REQUIRED_ARMS, splits[:1], cold, reporter, quick=True), with_budget(latest)
        )
        if quick:
            return first
        bench = EvaluationRunner(plan.settings, plan.arms, splits, cold, reporter)
        bench.tune_arms(_validation_windows(latest, splits[0], reporter))
        for split in splits:
            bench.evaluate_split(split)
        return bench.finish()


@dataclass(frozen=True)
class _EvaluationPlan:
    """The arms to evaluate, and settings with the models, seeds and windows."""

    settings: Settings
    arms: list[str]

    @classmethod
    def from_settings(cls, settings: Settings, arms: Sequence[str] | None, *, full: bool) -> _EvaluationPlan:
        wanted = settings.downstream
        sources = settings.domains.source_names
        if arms is None:
            arms = (*(ALL_ARMS if full else DEFAULT_ARMS), *leave_one_out_arms(sources))
        few = {"models": wanted.models[:1], "seeds": min(wanted.seeds, _DEFAULT_SEEDS), "windows": 1}
        if full:
            few = {}
        changed = {name: value for name, value in few.items() if f"downstream.{name}" not in settings.explicit_keys}
        quick = settings.model_copy(update={"downstream": wanted.model_copy(update=changed)})
        return cls(quick, _select_arms(arms, settings.translator.estimators, sources))

    def quick_settings(self) -> Settings:
        """Return the settings of the quick verdict."""
        wanted = self.settings.downstream
        few = {"models": wanted.models[:1], "seeds": min(wanted.seeds, _DEFAULT_SEEDS)}
        return self.settings.model_copy(update={"downstream": wanted.model_copy(update=few)})


def _validation_window(
    split: EvaluationSplit, number: int, end: datetime | None, progress: EvaluationProgress
) -> ValidationWindow:
    """Create a validation window within a split's training period.

    Raises:
        EvaluationError: It has too few users.
    """
    earlier = split.earlier(number, end=end)
    data_builder = ArmDataBuilder(
        earlier, on_training=lambda: progress.start_task(f"training the translator of validation window {number + 1}")
    )
    return ValidationWindow(SplitEvaluator(earlier, split.settings.downstream.k), data_builder, ResultCache.from_split(earlier))


def _validation_windows(
    latest: ValidationWindow, split: EvaluationSplit, progress: EvaluationProgress
) -> list[ValidationWindow]:
    """Create the validation windows, latest first; fewer than configured if the log is too short.

    Args:
        latest: The latest window.
        split: The split whose training period they lie in.
        progress: Progress reporting.
    """
    windows = [latest]
    for number in range(1, split.settings.downstream.windows):
        try:
            window = _validation_window(split, number, windows[-1].evaluator.split.cutoff, progress)
            measure_signal(window)  # trains the translator, which fails if there is too little data
        except (EvaluationError, TranslatorError) as error:
            logger.warning("validation rests on %d of %d windows: %s", number, split.settings.downstream.windows, error)
            break
        windows.append(window)
    return windows


def _select_arms(arms: Sequence[str], estimators: Sequence[str], sources: Sequence[str] = ()) -> list[str]:
    """Return the arms in canonical order, without those whose estimator the translator lacks."""
    known = (*ALL_ARMS, *leave_one_out_arms(sources))
    unknown = sorted(set(arms) - set(known))
    if unknown:
        raise EvaluationError(
            f"there is no arm {', '.join(unknown)}; there are: {', '.join(known)}", where="arms", next_step="name some of those"
        )
    available = [arm for arm in known if REQUIRED_ESTIMATORS.get(arm) in {None, *estimators}]
    return [arm for arm in available if arm in {*_REQUIRED_ARMS, *arms}]


def _ensure_ingested(settings: Settings) -> None:
    from scalr_prod.ingest import ingest

    lake = Lake.open(settings)
    if not all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)):
        ingest(settings)


def _choose_cutoffs(settings: Settings, first: datetime | None, count: int) -> list[datetime]:
    """Return the first cutoff, and the later ones that split the following target events into parts of equal size.

    Raises:
        EvaluationError: Too few distinct timestamps for so many cutoffs.
    """
    table = Lake.open(settings).read(Table.TARGET_EVENTS, columns=["event_timestamp"])
    times = column_to_micros(table["event_timestamp"])
    wanted = first or settings.downstream.cutoff
    begin = wanted.astimezone(UTC) if wanted else micros_to_datetime(time_quantile(times, TRAINING_SHARE))
    after = np.sort(times[times >= to_micros(begin)])
    more = [micros_to_datetime(after[len(after) * part // count]) for part in range(1, count)] if len(after) else []
    moments = [begin, *more]
    if len(set(moments)) < count:
        raise EvaluationError(
            f"{count} cutoffs from {begin.isoformat()} on are not distinct: there are {len(after)} target events after it",
            where="[downstream] cutoffs",
            next_step="use fewer cutoffs, or an earlier first one",
        )
    return moments
