# SPDX-License-Identifier: Apache-2.0
"""Plan of an evaluation: which arms are evaluated, with which settings, on which cutoffs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.timestamps import column_to_micros, micros_to_datetime, to_micros
from scalr_prod.errors import EmptyWindow, EvaluationError
from scalr_prod.evaluation.arms import (
    ALL_ARMS,
    CLUSTER_BASELINE,
    DEFAULT_ARMS,
    REQUIRED_ARMS,
    REQUIRED_ESTIMATORS,
    leave_one_out_arms,
)
from scalr_prod.evaluation.split import CUTOFF_SETTING, EvaluationSplit
from scalr_prod.generation import logs_digest, preview_run, run_settings
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator import time_quantile
from scalr_prod.workspace import staging_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scalr_prod.config import Settings


#: Share of the target events before the default cutoff.
TRAINING_SHARE: Final = 0.8
_DEFAULT_SEEDS: Final = 2
_QUICK_CONTEXTS: Final = 50_000


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate; what is left out comes from the settings.

    Attributes:
        cold_fraction: Share of users whose target history is hidden from all training; default: ``[downstream] cold_fraction``.
        cutoff: The first cutoff; default: ``[downstream] cutoff``, or the 80th percentile of target time.
        cutoffs: Number of rolling cutoffs, which split the events after the first into parts of equal size; default:
            ``[downstream] cutoffs``.
        arms: Arms to evaluate in addition to those that are always evaluated; default: the main baselines and controls, and the arms
            that leave one source domain out; with ``full`` all arms.
        full: All arms, models, seeds and windows. Otherwise the first model, at most two seeds and one window, unless the settings set
            these values.
        quick: Stop after the quick verdict: a run's default settings, the first model, the first cutoff, four arms; no policy is written.
    """

    cold_fraction: float | None = None
    cutoff: datetime | None = None
    cutoffs: int | None = None
    arms: Sequence[str] | None = None
    full: bool = False
    quick: bool = False


@dataclass(frozen=True)
class EvaluationPlan:
    """Arms and settings of an evaluation, and the split of each cutoff.

    Attributes:
        settings: The project's settings, with the models, seeds and validation windows to use.
        arms: Names of the arms.
        splits: One split per cutoff, in order of time.
        cold_fraction: Share of users whose target history is hidden.
        logs: Digest of the logs that the splits were made from.
        quick: Whether this is a quick verdict, of a run's default settings.
    """

    settings: Settings
    arms: Sequence[str]
    splits: Sequence[EvaluationSplit]
    cold_fraction: float
    logs: str
    quick: bool = False

    @classmethod
    def from_request(cls, settings: Settings, request: EvaluationRequest) -> EvaluationPlan:
        """Select arms and cutoffs, and create the isolated home of each cutoff; missing logs are ingested first.

        Raises:
            EvaluationError: An unknown arm, too few test users, or too few distinct times for so many cutoffs.
        """
        downstream, sources = settings.downstream, settings.domains.source_names
        arms = request.arms
        if arms is None:
            arms = (*(ALL_ARMS if request.full else DEFAULT_ARMS), *leave_one_out_arms(sources))
        names = select_arms(arms, settings.translator.estimators, sources)
        if not request.full:
            defaults = {**_reduced_models_and_seeds(settings), "windows": 1}
            changed = {name: value for name, value in defaults.items() if f"downstream.{name}" not in settings.explicit_keys}
            settings = _with_downstream(settings, changed)
        cold_fraction = downstream.cold_fraction if request.cold_fraction is None else request.cold_fraction
        _ensure_ingested(settings)
        settings = _with_limited_events(settings)
        logs = logs_digest(settings)  # before they are read, so that a policy is not told to be of events that came meanwhile
        count = 1 if request.quick else request.cutoffs or downstream.cutoffs
        with staging_folder(settings, "evaluate"):  # `scalr maintain` keeps the files that are read meanwhile
            cutoffs = choose_cutoffs(
                settings, request.cutoff, count, place="--cutoffs" if request.cutoffs else "[downstream] cutoffs"
            )
            place = "--cutoff" if request.cutoff else CUTOFF_SETTING
            splits = [
                EvaluationSplit.from_settings(
                    settings, cutoff, end=end, cold_fraction=cold_fraction, name="test", cutoff_place=place
                )
                for cutoff, end in zip(cutoffs, [*cutoffs[1:], None], strict=True)
            ]
        return cls(settings, names, splits, cold_fraction, logs)

    def quick_plan(self) -> EvaluationPlan:
        """Return the plan of the quick verdict: one family, the first cutoff, the arms that are always evaluated, and clusters."""
        settings = _with_downstream(self.settings, _reduced_models_and_seeds(self.settings))
        return replace(self, settings=settings, arms=(*REQUIRED_ARMS, CLUSTER_BASELINE), splits=self.splits[:1], quick=True)


def select_arms(arms: Sequence[str], estimators: Sequence[str], sources: Sequence[str] = ()) -> list[str]:
    """Return the required and the given arms in canonical order, without those whose estimator the translator lacks.

    Args:
        arms: Names of arms.
        estimators: Estimators of the translator.
        sources: Names of the source domains.

    Raises:
        EvaluationError: An unknown arm.
    """
    known = (*ALL_ARMS, *leave_one_out_arms(sources))
    unknown = sorted(set(arms) - set(known))
    if unknown:
        raise EvaluationError(
            f"there is no arm {', '.join(unknown)}; there are: {', '.join(known)}", where="arms", next_step="name some of those"
        )
    available = [arm for arm in known if REQUIRED_ESTIMATORS.get(arm) in {None, *estimators}]
    return [arm for arm in available if arm in {*REQUIRED_ARMS, *arms}]


def quick_context_limit(split: EvaluationSplit) -> int | None:
    """Return the maximum number of contexts of a quick verdict; None if the split has no more than that."""
    of_users = split.settings.generation.contexts == "users"
    contexts = len(split.numbering.users) if of_users else len(split.source)
    return _QUICK_CONTEXTS if contexts > _QUICK_CONTEXTS else None


def choose_cutoffs(
    settings: Settings, first: datetime | None, count: int, *, place: str = "[downstream] cutoffs"
) -> list[datetime]:
    """Return the first cutoff, and the later ones that split the following target events into parts of equal size.

    Args:
        settings: A project whose lake holds target events.
        first: The first cutoff; default: ``[downstream] cutoff``, or the 80th percentile of target time.
        count: Number of cutoffs.
        place: The setting or option that the number comes from, for the error.

    Raises:
        EvaluationError: Too few distinct timestamps for so many cutoffs.
    """
    table = Lake.open(settings).read(Table.TARGET_EVENTS, columns=["event_timestamp"])
    times = column_to_micros(table["event_timestamp"])
    configured = first or settings.downstream.cutoff
    begin = configured.astimezone(UTC) if configured else micros_to_datetime(time_quantile(times, TRAINING_SHARE))
    after = np.sort(times[times >= to_micros(begin)])
    later = [micros_to_datetime(after[len(after) * part // count]) for part in range(1, count)] if len(after) else []
    cutoffs = [begin, *later]
    if len(set(cutoffs)) < count:
        raise EvaluationError(
            f"{count} cutoffs from {begin.isoformat()} on are not distinct: the {len(after)} target events after it have too few different "
            "times",
            where=place,
            next_step="use fewer cutoffs, or an earlier first one",
        )
    return cutoffs


def _reduced_models_and_seeds(settings: Settings) -> dict[str, Any]:
    downstream = settings.downstream
    return {"models": downstream.models[:1], "seeds": min(downstream.seeds, _DEFAULT_SEEDS)}


def _with_limited_events(settings: Settings) -> Settings:
    """Return settings by which a split's contexts get at most as many events as those of the project's own run."""
    try:
        limit = preview_run(settings).max_events_by_ratio
    except EmptyWindow:  # such as a causal run's last day without source events: there is nothing to reckon it by
        return settings
    of_a_run = run_settings(settings, limit)["generation"]
    generation = {name: of_a_run[name] for name in ("events_per_source_event", "temperature")}
    generation["max_synthetic_ratio"] = 0.0  # a split has fewer real events
    volumes = tuple(dict.fromkeys(min(volume, limit) for volume in settings.downstream.volumes))
    settings = settings.model_copy(update={"generation": settings.generation.model_copy(update=generation)})
    return _with_downstream(settings, {"volumes": volumes})


def _with_downstream(settings: Settings, changed: dict[str, Any]) -> Settings:
    return settings.model_copy(update={"downstream": settings.downstream.model_copy(update=changed)})


def _ensure_ingested(settings: Settings) -> None:
    from scalr_prod.ingest import ingest

    lake = Lake.open(settings)
    if not all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)):
        ingest(settings)
