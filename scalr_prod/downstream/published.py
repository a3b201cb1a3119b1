# SPDX-License-Identifier: Apache-2.0
"""What really ships: training sets with the events that went through generation, gate and publishing."""

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
    """Training sets with published synthetic events, one for each kind of draw that a family chose.

    Where the gate refuses a draw, nothing ships, and the arm is what remains: real events alone.

    Args:
        maker: Of the scene; its translator is the one that is published by.
        kept: What was published before is not published again, unless a model is to be fitted on it.
    """

    def __init__(self, maker: Maker, kept: Kept) -> None:
        self.scene = maker.scene
        self._maker, self._kept = maker, kept
        self._facts: dict[Draw, dict[str, Any]] = {}
        self._made: dict[Draw, tuple[Interactions, Interactions]] = {}

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What was published, in the order in which it was asked for."""
        return list(self._facts.values())

    def ships(self, arm: str, choice: Choice) -> bool:
        """Whether an arm trains on what is published; not where it trains on draws, or where λ is 0."""
        return arm in {OURS, "synthetic_only"} and any(choice.weights) and not self.refused(choice.draw)

    def refused(self, draw: Draw) -> bool:
        """Whether the gate refuses such events; published first, if they were not yet."""
        if draw not in self._facts:
            key = ("published", draw.to_json(), str(self.scene.settings.home))  # the facts name files in it
            self._facts[draw] = self._kept.once(key, lambda: self._publish(draw), FACTS)
        return not self._facts[draw]["events"]

    def events(self, draw: Draw) -> tuple[Interactions, Interactions]:
        """Real and synthetic events of the training set."""
        if draw not in self._made:
            self._publish(draw)
        return self._made[draw]

    def _publish(self, draw: Draw) -> dict[str, Any]:
        facts: dict[str, Any] = {"cutoff": self.scene.cutoff.isoformat(), "draw": draw.to_json()}
        _ = self._maker.translation  # the run below finds it
        try:
            real, synthetic, found = publish_draw(self.scene, draw)
            facts |= {"events": len(synthetic), "diagnostics": diagnose(self.scene, synthetic)} | found
        except QualityGateFailed as error:
            logger.warning("the quality gate refused %s: nothing ships, and %s is real events alone. %s", draw, OURS, error)
            real, synthetic = self.scene.real, self.scene.real.synthetic().weighted(0.0)
            facts |= {"events": 0, "diagnostics": {}, "refused": str(error)}
        self._made[draw] = (real, synthetic)
        return facts
