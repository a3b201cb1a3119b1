# SPDX-License-Identifier: Apache-2.0
"""Published training sets: synthetic events that passed generation, quality gate and publication."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.downstream.arms import OURS
from scalr_prod.downstream.diagnostics import diagnose
from scalr_prod.downstream.kept import FACTS
from scalr_prod.downstream.translation import publish_draw
from scalr_prod.errors import QualityGateFailed

if TYPE_CHECKING:
    from scalr_prod.downstream.arms import Choice, Maker
    from scalr_prod.downstream.kept import Kept
    from scalr_prod.downstream.protocol import Interactions
    from scalr_prod.downstream.translation import Draw

__all__ = ["Published"]

logger = logging.getLogger(__name__)


class Published:
    """Training sets with published synthetic events, one per combination of sampling options.

    If the gate rejects the events, nothing is published, and the arm trains on real events alone.

    Args:
        maker: Builder of the arms' training events; its translator generates the published events.
        kept: Result cache; a cached publication is repeated only when a model has to be fitted on its events.
    """

    def __init__(self, maker: Maker, kept: Kept) -> None:
        self.scene = maker.scene
        self._maker, self._kept = maker, kept
        self._facts: dict[Draw, dict[str, Any]] = {}
        self._made: dict[Draw, tuple[Interactions, Interactions]] = {}

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Report of each publication, in order of first use."""
        return list(self._facts.values())

    def ships(self, arm: str, choice: Choice) -> bool:
        """Return whether an arm trains on published events: not if it trains on in-process samples, or if λ is 0."""
        return arm in {OURS, "synthetic_only"} and any(choice.weights) and not self.refused(choice.draw)

    def refused(self, draw: Draw) -> bool:
        """Return whether the gate rejects these events; publishes them first if needed."""
        if draw not in self._facts:
            key = ("published", draw.to_json(), str(self.scene.settings.home))  # the report names files in that home
            self._facts[draw] = self._kept.once(key, lambda: self._publish(draw), FACTS)
        return not self._facts[draw]["events"]

    def events(self, draw: Draw) -> tuple[Interactions, Interactions]:
        """Return the training set's real and synthetic events; publishes them first if needed."""
        if draw not in self._made:
            self._publish(draw)
        return self._made[draw]

    def _publish(self, draw: Draw) -> dict[str, Any]:
        facts: dict[str, Any] = {"cutoff": self.scene.cutoff.isoformat(), "draw": draw.to_json()}
        _ = self._maker.translation  # trains the translator that the run below uses
        try:
            real, synthetic, found = publish_draw(self.scene, draw)
            facts |= {"events": len(synthetic), "diagnostics": diagnose(self.scene, synthetic)} | found
        except QualityGateFailed as error:
            logger.warning(
                "the quality gate rejected %s: nothing is published, and %s trains on real events alone. %s", draw, OURS, error
            )
            real, synthetic = self.scene.real, self.scene.real.synthetic().weighted(0.0)
            facts |= {"events": 0, "diagnostics": {}, "refused": str(error)}
        self._made[draw] = (real, synthetic)
        return facts
