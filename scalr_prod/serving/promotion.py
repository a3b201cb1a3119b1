# SPDX-License-Identifier: Apache-2.0
"""Promotion of a new version if it is no worse than the served one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.serving.promotion_stack import served_version

if TYPE_CHECKING:
    from scalr_prod.config import Settings


@dataclass(frozen=True)
class PromotionDecision(Jsonable):
    """Describe whether and why a new translator was promoted.

    Attributes:
        version: The new version.
        served: The version served from now on.
        promoted: Whether the new version was promoted.
        reason: The reason, in one sentence.
        comparison: Both versions on the same events; None if there was no served version.
    """

    version: int
    served: int
    promoted: bool
    reason: str
    comparison: dict[str, Any] | None


def promote_if_better(settings: Settings, version: int, *, progress: bool = False) -> PromotionDecision:
    """Promote a new version if none is served, or if it is no worse than the served one on events unseen by both.

    Args:
        settings: The project's settings.
        version: The new version.
        progress: Show a progress bar on stderr.

    Raises:
        ScalrError: The version does not exist, or does not answer once it is loaded.
    """
    from scalr_prod.serving.served_versions import promote
    from scalr_prod.translator import compare_versions

    served = served_version(settings)
    if served == version:
        return PromotionDecision(version, version, promoted=False, reason="it is served already", comparison=None)
    if served is None:
        promote(settings, version)
        return PromotionDecision(version, version, promoted=True, reason="none was served", comparison=None)
    comparison = compare_versions(settings, version, served, progress=progress)
    facts = f"NLL {comparison.candidate_nll} against {comparison.served_nll} on {comparison.events} events from {comparison.since} on"
    if comparison.fit_to_serve:
        promote(settings, version)
        return PromotionDecision(version, version, promoted=True, reason=facts, comparison=comparison.to_json())
    reason = facts if comparison.events else f"too few events between {comparison.since} and {comparison.until} to compare on"
    return PromotionDecision(version, served, promoted=False, reason=reason, comparison=comparison.to_json())
