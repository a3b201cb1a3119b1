# SPDX-License-Identifier: Apache-2.0
"""`scalr evaluate`: does training on synthetic events help, over what knows the time already, and is it the translation that does it?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.contracts import Table
from scalr_prod.downstream.arms import ABLATIONS, BASE, CONTROLS, LISTS, MAIN, NEEDS, OURS, QUICK, RIVAL, Maker, leaving_out
from scalr_prod.downstream.bench import Bench
from scalr_prod.downstream.few import with_few
from scalr_prod.downstream.first import first_verdict
from scalr_prod.downstream.heartbeat import heartbeat
from scalr_prod.downstream.kept import Kept
from scalr_prod.downstream.scene import Scene
from scalr_prod.downstream.signal import signal_of
from scalr_prod.downstream.trial import Judge
from scalr_prod.downstream.trials import Stage
from scalr_prod.errors import EvaluationError, TranslatorError
from scalr_prod.instants import datetime_of, micros, micros_of
from scalr_prod.lake import Lake
from scalr_prod.translator.fitting import cut_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scalr_prod.downstream.heartbeat import Heartbeat
    from scalr_prod.downstream.report import EvaluationReport
    from scalr_prod.settings import Settings

__all__ = ["ARMS", "evaluate"]

logger = logging.getLogger(__name__)

#: Of any project; where there are several source domains, `leaving_out` each of them comes to these.
ARMS: Final = (*MAIN, *LISTS, *CONTROLS, RIVAL, *ABLATIONS)
#: Always there: what is compared.
_ALWAYS: Final = (BASE, OURS, "popular_lately")
TEST_SHARE: Final = 0.8
_QUICK_SEEDS: Final = 2


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
    """Train models with and without synthetic events up to a cutoff and judge them on what came after.

    A first verdict comes before the rest (see `first`). What is worked out is kept in the isolated homes (see `kept`): the same call goes
    on from where an earlier one was stopped, and comes to the same report but for `EvaluationReport.seconds`.

    Everything that learns reads an isolated home (see `isolation`). Each arm's choices are made on windows of the training period of the
    first cutoff, each in a home of its own: its last fifth, the last fifth of what comes before … Cutoffs after the first are tested
    with the same choices. The verdict goes into the home as a policy that runs follow (see `scalr_prod.policy`).

    Args:
        settings: The project's settings; what was not ingested yet is.
        cold_fraction: Share of users whose target history is hidden from everything; default: ``[downstream] cold_fraction``.
        cutoff: The first cutoff; default: ``[downstream] cutoff``, or the 80th percentile of target time.
        cutoffs: Rolling cutoffs: what comes after the first, in as many parts of equal size; default: ``[downstream] cutoffs``.
        arms: Which of `ARMS`, and of those that leave one of several source domains out, beside those that are compared; default:
            those that decide and those that leave one out, or with ``full`` all.
        full: All arms, models, seeds and windows. Otherwise the first model, two seeds and one window, unless the settings name others.
        quick: End with the first verdict: the first model, the first cutoff, three arms; no policy is written.
        progress: Show a progress bar on stderr; without one, lines of log say what is going on.

    Raises:
        EvaluationError: Too few test users, an unknown arm, or a model that cannot be used.
    """
    plan = _Plan.of(settings, arms, full=full)
    cold = settings.downstream.cold_fraction if cold_fraction is None else cold_fraction
    with heartbeat(bar=progress) as pulse:
        pulse.at("reading the logs")
        _ingested(settings)
        count = 1 if quick else cutoffs or settings.downstream.cutoffs
        moments = _cutoffs(settings, cutoff, count)
        ends = [*moments[1:], None]
        scenes = [
            Scene.of(plan.settings, moment, end=end, cold_fraction=cold, name="test")
            for moment, end in zip(moments, ends, strict=True)
        ]
        latest = _stage(scenes[0], 0, None, pulse)
        first = first_verdict(Bench(plan.first(), _ALWAYS, scenes[:1], cold, pulse, quick=True), with_few(latest))
        if quick:
            return first
        bench = Bench(plan.settings, plan.arms, scenes, cold, pulse)
        bench.choose(_stages(latest, scenes[0], pulse))
        for scene in scenes:
            bench.judge(scene)
        return bench.finish()


@dataclass(frozen=True)
class _Plan:
    """What is evaluated: the arms, and settings with the models, seeds and windows."""

    settings: Settings
    arms: list[str]

    @classmethod
    def of(cls, settings: Settings, arms: Sequence[str] | None, *, full: bool) -> _Plan:
        wanted = settings.downstream
        sources = settings.domains.source_names
        if arms is None:
            arms = (*(ARMS if full else QUICK), *leaving_out(sources))
        few = {"models": wanted.models[:1], "seeds": min(wanted.seeds, _QUICK_SEEDS), "windows": 1}
        if full:
            few = {}
        changed = {name: value for name, value in few.items() if f"downstream.{name}" not in settings.named}
        quick = settings.model_copy(update={"downstream": wanted.model_copy(update=changed)})
        return cls(quick, _checked(arms, settings.translator.estimators, sources))

    def first(self) -> Settings:
        """What the first verdict needs."""
        wanted = self.settings.downstream
        few = {"models": wanted.models[:1], "seeds": min(wanted.seeds, _QUICK_SEEDS)}
        return self.settings.model_copy(update={"downstream": wanted.model_copy(update=few)})


def _stage(scene: Scene, number: int, end: datetime | None, pulse: Heartbeat) -> Stage:
    """A validation scene within a scene's training period (see `Scene.earlier`).

    Raises:
        EvaluationError: Too few users in it.
    """
    earlier = scene.earlier(number, end=end)
    maker = Maker(earlier, begun=lambda: pulse.at(f"training the translator of validation window {number + 1}"))
    return Stage(Judge(earlier, scene.settings.downstream.k), maker, Kept.of(earlier))


def _stages(latest: Stage, scene: Scene, pulse: Heartbeat) -> list[Stage]:
    """Validation scenes within a scene's training period, the latest first; fewer than asked for where the log is too short.

    Args:
        latest: The latest.
        scene: The scene.
        pulse: Is told what goes on.
    """
    stages = [latest]
    for number in range(1, scene.settings.downstream.windows):
        try:
            stage = _stage(scene, number, stages[-1].judge.scene.cutoff, pulse)
            signal_of(stage)  # there is enough to learn from
        except (EvaluationError, TranslatorError) as error:
            logger.warning("validation rests on %d of %d windows: %s", number, scene.settings.downstream.windows, error)
            break
        stages.append(stage)
    return stages


def _checked(arms: Sequence[str], estimators: Sequence[str], sources: Sequence[str] = ()) -> list[str]:
    """The arms in their order, without those whose estimator the translator lacks."""
    known = (*ARMS, *leaving_out(sources))
    unknown = sorted(set(arms) - set(known))
    if unknown:
        raise EvaluationError(
            f"there is no arm {', '.join(unknown)}; there are: {', '.join(known)}", where="arms", next_step="name some of those"
        )
    there = [arm for arm in known if NEEDS.get(arm) in {None, *estimators}]
    return [arm for arm in there if arm in {*_ALWAYS, *arms}]


def _ingested(settings: Settings) -> None:
    from scalr_prod.ingest import ingest

    lake = Lake.open(settings)
    if not all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)):
        ingest(settings)


def _cutoffs(settings: Settings, first: datetime | None, count: int) -> list[datetime]:
    """The first cutoff, and those that cut the target events after it into parts of equal size.

    Raises:
        EvaluationError: Too few instants for so many cutoffs.
    """
    table = Lake.open(settings).read(Table.TARGET_EVENTS, columns=["event_timestamp"])
    times = micros_of(table["event_timestamp"])
    wanted = first or settings.downstream.cutoff
    begin = wanted.astimezone(UTC) if wanted else datetime_of(cut_at(times, TEST_SHARE))
    after = np.sort(times[times >= micros(begin)])
    more = [datetime_of(after[len(after) * part // count]) for part in range(1, count)] if len(after) else []
    moments = [begin, *more]
    if len(set(moments)) < count:
        raise EvaluationError(
            f"{count} cutoffs from {begin.isoformat()} on do not lie apart: there are {len(after)} target events",
            where="[downstream] cutoffs",
            next_step="ask for fewer cutoffs, or for an earlier first one",
        )
    return moments
