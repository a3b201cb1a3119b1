"""What really ships: training sets with the events that went through generation, gate and publishing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scalr_prod.downstream.diagnostics import diagnose
from scalr_prod.downstream.report import OURS
from scalr_prod.downstream.translation import publish_draw
from scalr_prod.errors import QualityGateFailed

if TYPE_CHECKING:
    from scalr_prod.downstream.arms import Choice
    from scalr_prod.downstream.protocol import Interactions
    from scalr_prod.downstream.scene import Scene
    from scalr_prod.downstream.translation import Draw

__all__ = ["Published"]

logger = logging.getLogger(__name__)


class Published:
    """Training sets with published synthetic events, one for each kind of draw that a family chose.

    Where the gate refuses a draw, nothing ships, and the arm is what remains: real events alone.

    Args:
        scene: Its home holds a trained translator.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.facts: list[dict[str, Any]] = []
        self._made: dict[Draw, tuple[Interactions, Interactions]] = {}

    def behind(self, arm: str, choice: Choice) -> tuple[Interactions, Interactions] | None:
        """What an arm trains on as it was published; None where it trains on draws, or where λ is 0."""
        shipped = arm in {OURS, "synthetic_only"} and any(choice.weights) and not self.refused(choice.draw)
        return self._of(choice.draw) if shipped else None

    def refused(self, draw: Draw) -> bool:
        """Whether the gate refuses such events; published first, if they were not yet."""
        return not len(self._of(draw)[1])

    def _of(self, draw: Draw) -> tuple[Interactions, Interactions]:
        if draw not in self._made:
            facts: dict[str, Any] = {"cutoff": self.scene.cutoff.isoformat(), "draw": draw.to_json()}
            try:
                real, synthetic, found = publish_draw(self.scene, draw)
                facts |= {"events": len(synthetic), "diagnostics": diagnose(self.scene, synthetic)} | found
            except QualityGateFailed as error:
                logger.warning("the quality gate refused %s: nothing ships, and %s is real events alone. %s", draw, OURS, error)
                real, synthetic = self.scene.real, self.scene.real.synthetic().weighted(0.0)
                facts |= {"events": 0, "diagnostics": {}, "refused": str(error)}
            self._made[draw] = (real, synthetic)
            self.facts.append(facts)
        return self._made[draw]
