# SPDX-License-Identifier: Apache-2.0
"""Published training sets: synthetic events that passed generation, quality gate and publication."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.config import SegmentWeights
from scalr_prod.errors import QualityGateFailed
from scalr_prod.evaluation.arms import REAL_ONLY, SYNTHETIC_ONLY, WITH_SYNTHETIC, describe_baseline
from scalr_prod.evaluation.diagnostics import diagnose
from scalr_prod.evaluation.interactions import TrainingSetEvents
from scalr_prod.evaluation.result_cache import JSON_CODEC
from scalr_prod.schemas import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.evaluation.arms import Arm, ArmDataBuilder
    from scalr_prod.evaluation.result_cache import ResultCache
    from scalr_prod.evaluation.split import EvaluationSplit
    from scalr_prod.evaluation.translation import DrawOptions


logger = logging.getLogger(__name__)

_FULL_WEIGHT: Final = SegmentWeights(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PublishedRun:
    """A run that published synthetic events in an isolated home.

    Attributes:
        events: Events of the training set built after publication.
        run_id: Id of the run.
        gate: Report of the quality gate, as plain JSON values.
        training_set: Report of the training set, as plain JSON values.
    """

    events: TrainingSetEvents
    run_id: str
    gate: dict[str, Any]
    training_set: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all but the events as plain JSON values."""
        return {"run_id": self.run_id, "gate": self.gate, "training_set": self.training_set}


class PublishedTrainingSets:
    """Training sets with published synthetic events, one per combination of sampling options.

    If the gate rejects the events, nothing is published, and the arm trains on real events only.

    Args:
        data_builder: Builder of the arms' training events; its translator generates the published events.
        cache: Result cache; a cached publication is repeated only when a model has to be fitted on its events.
    """

    def __init__(self, data_builder: ArmDataBuilder, cache: ResultCache) -> None:
        self.split = data_builder.split
        self._data_builder, self._cache = data_builder, cache
        self._run_reports: dict[DrawOptions, dict[str, Any]] = {}
        self._events: dict[DrawOptions, TrainingSetEvents] = {}

    @property
    def run_reports(self) -> list[dict[str, Any]]:
        """Report of each publication, in order of first use."""
        return list(self._run_reports.values())

    def is_used_by(self, arm: Arm) -> bool:
        """Return whether an arm trains on published events: not if it trains on in-process samples, or if λ is 0."""
        return arm.name in {WITH_SYNTHETIC, SYNTHETIC_ONLY} and any(arm.weights) and not self.is_refused(arm.draw)

    def is_refused(self, draw: DrawOptions) -> bool:
        """Return whether the gate rejects these events; publishes them first if needed."""
        if draw not in self._run_reports:
            key = ("published", draw.to_json(), str(self.split.settings.home))  # the report names files in that home
            self._run_reports[draw] = self._cache.get_or_compute(key, lambda: self._publish(draw), JSON_CODEC)
        return not self._run_reports[draw]["events"]

    def events(self, draw: DrawOptions) -> TrainingSetEvents:
        """Return the training set's events; publishes them first if needed."""
        if draw not in self._events:
            self._publish(draw)
        return self._events[draw]

    def _publish(self, draw: DrawOptions) -> dict[str, Any]:
        """Publish events, keep them, and return the report of the publication."""
        report: dict[str, Any] = {"cutoff": self.split.cutoff.isoformat(), "draw": draw.to_json()}
        try:
            run = publish_synthetic_events(self.split, draw, self._data_builder.translation.version)
        except QualityGateFailed as error:
            message = "the quality gate rejected %s: nothing is published, and %s trains on %s. %s"
            logger.warning(message, draw, WITH_SYNTHETIC, describe_baseline(REAL_ONLY), error)
            self._events[draw] = TrainingSetEvents(self.split.real, self.split.real.synthetic().weighted(0.0))
            return report | {"events": 0, "diagnostics": {}, "refused": str(error)}
        self._events[draw] = run.events
        synthetic = run.events.synthetic
        return report | {"events": len(synthetic), "diagnostics": diagnose(self.split, synthetic)} | run.to_json()


def publish_synthetic_events(split: EvaluationSplit, options: DrawOptions, version: int) -> PublishedRun:
    """Generate, validate and publish events, and build the training set.

    Args:
        split: A split whose home holds a trained translator.
        options: Volume, temperature, filter and alignment; the mixture is always used.
        version: The translator version. The home may hold several, of evaluations with other settings.

    Raises:
        QualityGateFailed: The quality gate rejected the events.
    """
    import pyarrow.compute as pc

    from scalr_prod.pipeline import PipelineContext, execute_stages, stages_to
    from scalr_prod.training_set import TrainingSet, confidence_multipliers

    job = execute_stages(PipelineContext(_with_draw_options(split.settings, options), version=version), stages_to("plan"))
    training_set = job.reports["dataset"].to_json()
    del training_set["fingerprint"]  # depends on random file names in the split's lake
    dataset = TrainingSet.open(training_set["path"])
    rows = dataset.to_arrow([USER_ID, ITEM_ID, "event_timestamp", "weight", "is_synthetic"])
    is_synthetic = rows["is_synthetic"]
    masks = (pc.invert(is_synthetic), is_synthetic)
    real, synthetic = (split.numbering.to_interactions(rows.filter(mask), split.cutoff) for mask in masks)
    (multiplier, *_) = confidence_multipliers(_FULL_WEIGHT, dataset.manifest["settings"]["real_to_synthetic"])
    events = TrainingSetEvents(real, synthetic.synthetic().weighted(1 / multiplier))
    return PublishedRun(events, job.require_spec().run_id, job.reports["validate"].to_json(), training_set)


def _with_draw_options(settings: Settings, options: DrawOptions) -> Settings:
    """Return settings of a run with these sampling options, and of a training set of positives with λ = 1; the evaluation applies its own.

    The gate's information check is off: the evaluation itself decides whether there is a signal.
    """
    generation = settings.generation.model_copy(
        update={
            "events_per_source_event": options.volume,
            "temperature": options.temperature,
            "min_lift": options.min_lift,
            "align": options.align,
        }
    )
    quality = settings.quality.model_copy(update={"min_information": 0.0, "max_probability_factor": 0.0})
    positives_only = {"task": "ranking", "negatives_per_event": 0, "synthetic_weight": 1.0, "segment_weights": None}
    training_set = settings.training_set.model_copy(update=positives_only)
    return settings.model_copy(update={"generation": generation, "quality": quality, "training_set": training_set})
