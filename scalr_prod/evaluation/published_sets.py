# SPDX-License-Identifier: Apache-2.0
"""Published training sets: synthetic events that passed generation, quality gate and publication."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import QualityGateFailed
from scalr_prod.evaluation.arms import WITH_SYNTHETIC
from scalr_prod.evaluation.diagnostics import diagnose
from scalr_prod.evaluation.result_cache import JSON_CODEC
from scalr_prod.evaluation.translation import publish_synthetic_events

if TYPE_CHECKING:
    from scalr_prod.evaluation.arms import ArmChoice, ArmDataBuilder
    from scalr_prod.evaluation.interactions import Interactions
    from scalr_prod.evaluation.result_cache import ResultCache
    from scalr_prod.evaluation.translation import DrawOptions

__all__ = ["PublishedTrainingSets"]

logger = logging.getLogger(__name__)


class PublishedTrainingSets:
    """Training sets with published synthetic events, one per combination of sampling options.

    If the gate rejects the events, nothing is published, and the arm trains on real events alone.

    Args:
        data_builder: Builder of the arms' training events; its translator generates the published events.
        cache: Result cache; a cached publication is repeated only when a model has to be fitted on its events.
    """

    def __init__(self, data_builder: ArmDataBuilder, cache: ResultCache) -> None:
        self.split = data_builder.split
        self._data_builder, self._cache = data_builder, cache
        self._run_reports: dict[DrawOptions, dict[str, Any]] = {}
        self._events: dict[DrawOptions, tuple[Interactions, Interactions]] = {}

    @property
    def run_reports(self) -> list[dict[str, Any]]:
        """Report of each publication, in order of first use."""
        return list(self._run_reports.values())

    def is_used_by(self, arm: str, choice: ArmChoice) -> bool:
        """Return whether an arm trains on published events: not if it trains on in-process samples, or if λ is 0."""
        return arm in {WITH_SYNTHETIC, "synthetic_only"} and any(choice.weights) and not self.is_refused(choice.draw)

    def is_refused(self, draw: DrawOptions) -> bool:
        """Return whether the gate rejects these events; publishes them first if needed."""
        if draw not in self._run_reports:
            key = ("published", draw.to_json(), str(self.split.settings.home))  # the report names files in that home
            self._run_reports[draw] = self._cache.get_or_compute(key, lambda: self._publish(draw), JSON_CODEC)
        return not self._run_reports[draw]["events"]

    def events(self, draw: DrawOptions) -> tuple[Interactions, Interactions]:
        """Return the training set's real and synthetic events; publishes them first if needed."""
        if draw not in self._events:
            self._publish(draw)
        return self._events[draw]

    def _publish(self, draw: DrawOptions) -> dict[str, Any]:
        facts: dict[str, Any] = {"cutoff": self.split.cutoff.isoformat(), "draw": draw.to_json()}
        _ = self._data_builder.translation  # trains the translator that the run below uses
        try:
            real, synthetic, found = publish_synthetic_events(self.split, draw)
            facts |= {"events": len(synthetic), "diagnostics": diagnose(self.split, synthetic)} | found
        except QualityGateFailed as error:
            logger.warning(
                "the quality gate rejected %s: nothing is published, and %s trains on real events alone. %s",
                draw,
                WITH_SYNTHETIC,
                error,
            )
            real, synthetic = self.split.real, self.split.real.synthetic().weighted(0.0)
            facts |= {"events": 0, "diagnostics": {}, "refused": str(error)}
        self._events[draw] = (real, synthetic)
        return facts
