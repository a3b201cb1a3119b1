# SPDX-License-Identifier: Apache-2.0
"""Promotion and rollback of served versions: install, load, probe, and only then switch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ServingError
from scalr_prod.ledger import Ledger
from scalr_prod.serving.local_server.session import ensure_serving
from scalr_prod.serving.model_control import loaded_versions
from scalr_prod.serving.promotion_stack import PROMOTE_CAUSE, ROLLBACK_CAUSE, promoted_versions, served_version, versions_in_use
from scalr_prod.translator import resolve_version

if TYPE_CHECKING:
    from scalr_prod.config import Settings


@dataclass(frozen=True)
class PromotionReport(Jsonable):
    """Describe which version is served.

    Attributes:
        version: The served version.
        former: The version served before; None if there was none, or it was the same.
        loaded: The versions that the server holds now; empty with the local scorer.
        seconds: Duration of the call.
    """

    version: int
    former: int | None
    loaded: list[int]
    seconds: float


def promote(settings: Settings, version: int | None = None) -> PromotionReport:
    """Promote a version: load it, probe it, then switch in the ledger. A version that does not answer changes nothing.

    The version served before stays loaded for a rollback, and so do versions that active runs are pinned to.

    Args:
        settings: The project's settings. Where no server runs, one is started for the check.
        version: Default: the latest trained.

    Raises:
        TranslatorNotFound: It was never trained.
        ServingError: It could not be loaded.
        ScoringError: It was loaded, but does not answer as expected.
    """
    return _switch_version(settings, resolve_version(settings, version).version, cause=PROMOTE_CAUSE)


def rollback(settings: Settings) -> PromotionReport:
    """Return to the version served before; a repeated call goes back one more.

    Raises:
        ServingError: There was no previous version, or it could not be loaded.
        ScoringError: It was loaded, but does not answer as expected.
    """
    chain = promoted_versions(settings)
    if len(chain) < 2:  # noqa: PLR2004 - the current one and the one before
        raise ServingError(
            "no version was served before this one" if chain else "no version was promoted yet",
            where="translator versions",
            next_step="promote one: scalr translator promote --version N; list them: scalr translator list",
        )
    return _switch_version(settings, chain[-2], cause=ROLLBACK_CAUSE)


def _switch_version(settings: Settings, version: int, *, cause: str) -> PromotionReport:
    started = time.perf_counter()
    former = served_version(settings)
    with ensure_serving(settings, version, also_loaded=versions_in_use(settings)):
        loaded = loaded_versions(settings) if settings.serving.scorer == "triton" else []
        with Ledger.open(settings) as ledger:
            ledger.models.promote(version, cause=cause)
    return PromotionReport(version, former if former != version else None, loaded, round(time.perf_counter() - started, 2))


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
