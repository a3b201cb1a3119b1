"""`scalr evaluate`: does training on synthetic events help, and is it the translation that does it?"""

from __future__ import annotations

import logging
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.contracts import Table
from scalr_prod.downstream.arms import ABLATIONS, CONTROLS, MAIN, NEEDS, RIVAL, Maker
from scalr_prod.downstream.diagnostics import diagnose
from scalr_prod.downstream.report import BASE, OURS, SEGMENTS, EvaluationReport, summarise, write_report
from scalr_prod.downstream.scene import Scene
from scalr_prod.downstream.translation import Translation, publish_draw
from scalr_prod.downstream.trial import Judge
from scalr_prod.downstream.tuning import Stage, fits_of, tune
from scalr_prod.errors import EvaluationError, TranslatorError
from scalr_prod.instants import datetime_of, micros_of
from scalr_prod.lake import Lake
from scalr_prod.progress import counting
from scalr_prod.translator.fitting import cut_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from scalr_prod.downstream.arms import Choice
    from scalr_prod.downstream.translation import Draw
    from scalr_prod.settings import Settings

__all__ = ["ARMS", "evaluate"]

logger = logging.getLogger(__name__)

ARMS: Final = (*MAIN, *CONTROLS, RIVAL, *ABLATIONS)
TEST_SHARE: Final = 0.8
VALIDATION_SHARE: Final = 0.8


def evaluate(
    settings: Settings,
    *,
    cold_fraction: float | None = None,
    cutoff: datetime | None = None,
    arms: Sequence[str] = ARMS,
    progress: bool = False,
) -> EvaluationReport:
    """Train models with and without synthetic events up to a cutoff and judge them on what came after.

    Everything that learns reads an isolated home (see `isolation`). Volume, temperature and λ are chosen for each family on
    ``[downstream] windows`` of the training period, each in a home of its own: its last fifth, the last fifth of what comes before …

    Args:
        settings: The project's settings; what was not ingested yet is.
        cold_fraction: Share of users whose target history is hidden from everything; default: ``[downstream] cold_fraction``.
        cutoff: Default: ``[downstream] cutoff``, or the 80th percentile of target time.
        arms: Which of `ARMS`; real events alone always are among them.
        progress: Show a progress bar on stderr.

    Raises:
        EvaluationError: Too few test users, an unknown arm, or a model that cannot be used.
        QualityGateFailed: The gate refused what was generated.
    """
    started = time.perf_counter()
    wanted = settings.downstream
    cold = wanted.cold_fraction if cold_fraction is None else cold_fraction
    chosen = _checked(arms, settings.translator.estimators)
    _ingested(settings)
    moment = (cutoff or wanted.cutoff or _default_cutoff(settings)).astimezone(UTC)
    scene = Scene.of(settings, moment, end=None, cold_fraction=cold, name="test")
    steps = sum(fits_of(settings, family) + len(chosen) * wanted.seeds for family in wanted.models)
    with counting("evaluate", show=progress, total=steps, unit=f"of {steps} fits") as done:
        stages = _stages(scene, cold)
        tuned = {family: tune(family, stages, settings, done) for family in wanted.models}
        judge, maker = Judge(scene, wanted.k), Maker(scene, Translation.of(scene))
        published = _Published(scene)
        rows: list[dict[str, Any]] = []
        for family, (choice, _) in tuned.items():
            outcomes = {
                arm: [
                    judge.trial(family, choice.options, _events(maker, published, arm, choice, seed, done), seed=seed)
                    for seed in range(wanted.seeds)
                ]
                for arm in chosen
            }
            found = summarise(scene, family, outcomes, seed=wanted.seed)
            rows += [row | _drawn(maker, published, row["name"], choice) for row in found]
    folder = settings.home / "evaluations" / f"report-{scene.settings.home.name}"
    segments = scene.segments()[scene.users]
    report = EvaluationReport(
        cutoff=scene.cutoff.isoformat(),
        cold_fraction=cold,
        users={"all": len(scene.users)} | {name: int((segments == n).sum()) for n, name in enumerate(SEGMENTS)},
        arms=rows,
        choices={family: _choice_json(choice, figures) for family, (choice, figures) in tuned.items()},
        runs=published.facts,
        path=str(folder),
        seconds=round(time.perf_counter() - started, 1),
    )
    write_report(report, folder)
    return report


def _stages(scene: Scene, cold: float) -> list[Stage]:
    """Validation scenes within a scene's training period, the latest first; fewer than asked for where the log is too short.

    Raises:
        EvaluationError: Too few users in the latest.
        TranslatorError: Too little to learn from before it.
    """
    wanted, stages = scene.settings.downstream, list[Stage]()
    end, name = None, "validation"
    for number in range(wanted.windows):
        begin = datetime_of(cut_at(scene.real.time, VALIDATION_SHARE ** (number + 1)))
        try:
            earlier = Scene.of(scene.settings, begin, end=end, cold_fraction=cold, name=name)
            stages.append(Stage(Judge(earlier, wanted.k), Maker(earlier, Translation.of(earlier))))
        except (EvaluationError, TranslatorError) as error:
            if not stages:
                raise
            logger.warning("validation rests on %d of %d windows: %s", number, wanted.windows, error)
            break
        end, name = begin, f"validation-{number + 2}"
    return stages


class _Published:
    """Training sets with published synthetic events, one for each kind of draw that a family chose."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.facts: list[dict[str, Any]] = []
        self._made: dict[Draw, Any] = {}

    def of(self, draw: Draw) -> Any:
        if draw not in self._made:
            real, synthetic, facts = publish_draw(self.scene, draw)
            self._made[draw] = (real, synthetic)
            figures = diagnose(self.scene, synthetic)
            self.facts.append({"draw": draw.to_json(), "events": len(synthetic), "diagnostics": figures} | facts)
        return self._made[draw]

    def behind(self, arm: str, choice: Choice) -> Any:
        """What an arm trains on as it was published; None where it trains on draws, or where λ is 0."""
        return self.of(choice.draw) if arm in {OURS, "synthetic_only"} and any(choice.weights) else None


def _events(maker: Maker, published: _Published, arm: str, choice: Choice, seed: int, done: Callable[[int], None]) -> Any:
    done(1)
    return maker.events(arm, choice, seed, published.behind(arm, choice))


def _drawn(maker: Maker, published: _Published, arm: str, choice: Choice) -> dict[str, Any]:
    """How many synthetic events an arm has, before λ (first seed), and which share of the catalogue they name."""
    if arm in {BASE, RIVAL}:
        return {}
    events = maker.synthetic(arm, choice, 0, published.behind(arm, choice))
    return {"synthetic": {"events": len(events), "coverage": len(np.unique(events.item)) / events.n_items}}


def _checked(arms: Sequence[str], estimators: Sequence[str]) -> list[str]:
    """The arms in their order, without those whose estimator the translator lacks."""
    unknown = sorted(set(arms) - set(ARMS))
    if unknown:
        raise EvaluationError(
            f"there is no arm {', '.join(unknown)}; there are: {', '.join(ARMS)}", where="arms", next_step="name some of those"
        )
    there = [arm for arm in ARMS if NEEDS.get(arm) in {None, *estimators}]
    return [arm for arm in there if arm in {BASE, OURS, *arms}]


def _ingested(settings: Settings) -> None:
    from scalr_prod.ingest import ingest

    lake = Lake.open(settings)
    if not all(lake.exists(table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)):
        ingest(settings)


def _default_cutoff(settings: Settings) -> datetime:
    times = Lake.open(settings).read(Table.TARGET_EVENTS, columns=["event_timestamp"])["event_timestamp"]
    return datetime_of(cut_at(micros_of(times), TEST_SHARE))


def _choice_json(choice: Choice, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": choice.options,
        "draw": choice.draw.to_json(),
        "lambda": dict(zip(SEGMENTS, choice.weights, strict=True)),
        "source_weight": choice.source_weight,
        "helps": any(choice.weights),
        "validation": figures,
    }
