# SPDX-License-Identifier: Apache-2.0
"""Canary publications: runs published for a share of users, and how to widen or withdraw them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import PublicationError
from scalr_prod.ledger import Ledger
from scalr_prod.publication.commit import publish_for
from scalr_prod.publication.regions import published_region, subtract
from scalr_prod.publication.rollback import rollback_run
from scalr_prod.workspace import Canary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Publication
    from scalr_prod.publication.commit import PublicationReport
    from scalr_prod.publication.regions import ViewRegion


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CanaryReport(Jsonable):
    """Report what was done to canary publications.

    Attributes:
        runs: What was done, by run.
        canary: Canary publications now, see `list_canaries`.
    """

    runs: list[PublicationReport] = field(default_factory=list)
    canary: list[dict[str, Any]] = field(default_factory=list)


def list_canaries(settings: Settings) -> list[dict[str, Any]]:
    """Return ``run_id``, ``share``, ``rows``, ``start`` and ``end`` of each canary publication, in order of publication."""
    with Ledger.open(settings) as ledger:
        live = _live_canaries(ledger)
    return [
        {
            "run_id": publication.run_id,
            "share": (publication.canary or {})["share"],
            "rows": publication.rows,
            "start": publication.start.isoformat(),
            "end": publication.end.isoformat(),
        }
        for publication in live
    ]


def widen_canaries(settings: Settings, runs: Sequence[str] = (), *, share: float | None = None) -> CanaryReport:
    """Publish canary runs for all users, as if there had been no canary. One commit per run.

    Runs that were published after one of them, and have a part of its window, are published again: they keep that part.

    Args:
        settings: The project's settings.
        runs: Only these runs; default: all, in order of publication.
        share: Publish for this share of users instead of all.

    Raises:
        PublicationError: A given run is not a canary publication, or is one for a larger share; or as `publish`.
    """
    # An earlier call may have ended before it published the later runs again: a run that it widened is no error.
    with Ledger.open(settings) as ledger:
        widened = {last.run_id for last in ledger.publications.live() if last.widens is not None and last.canary is None}
    left = [run_id for run_id in runs if run_id not in widened]
    chosen = _select_canaries(settings, left) if left or not runs else []
    canary = Canary.from_settings(settings, share) if share is not None and share < 1 else None
    for publication in chosen:
        if share is not None and share < (publication.canary or {})["share"]:
            raise PublicationError(
                f"the run is published for {100 * (publication.canary or {})['share']:.3g} % of users, and cannot be narrowed",
                where="share",
                next_step="withdraw it, then publish it for fewer: scalr publication withdraw",
            ).add_context(run_id=publication.run_id)
    reports = [publish_for(settings, publication.run_id, canary, is_widening=True) for publication in chosen]
    return CanaryReport([*reports, *_publish_later_runs(settings)], list_canaries(settings))


def _publish_later_runs(settings: Settings) -> Iterator[PublicationReport]:
    """Publish again each run that the widening of an earlier one overwrote in part; yield those that changed the view."""
    with Ledger.open(settings) as ledger:
        live = _in_order(ledger)
    versions = {publication.run_id: publication.delta_version or 0 for publication in live}
    for number, publication in enumerate(live):
        version = versions[publication.run_id]
        widened = [published_region(earlier) for earlier in live[:number] if versions[earlier.run_id] > version]
        regions = _owned_regions(publication, live[number + 1 :]) if widened else []
        if any(region.intersection(other) for region in regions for other in widened):
            report = publish_for(settings, publication.run_id, Canary.from_publication(publication.canary))
            if report.outcome != "already_published":
                versions[publication.run_id] = report.delta_version or 0
                yield report


def withdraw_canaries(settings: Settings, runs: Sequence[str] = ()) -> CanaryReport:
    """Remove canary publications and restore what they had replaced. One commit per run.

    Args:
        settings: The project's settings.
        runs: Only these runs; default: all, in order of publication.

    Raises:
        PublicationError: A given run is not a canary publication.
    """
    chosen = _select_canaries(settings, runs)
    return CanaryReport([rollback_run(settings, publication.run_id) for publication in chosen], list_canaries(settings))


def _select_canaries(settings: Settings, runs: Sequence[str]) -> list[Publication]:
    with Ledger.open(settings) as ledger:
        live = _live_canaries(ledger)
        for run_id in runs:
            ledger.runs.get(run_id)  # raises if there is no such run
    others = set(runs) - {publication.run_id for publication in live}
    if others:
        raise PublicationError(
            "the run is not published for a share of users",
            where="ledger",
            next_step="see which are: scalr status",
        ).add_context(run_id=min(others))
    return [publication for publication in live if not runs or publication.run_id in set(runs)]


def _live_canaries(ledger: Ledger) -> list[Publication]:
    """Return the canary publications that later ones have not replaced entirely, in order of publication."""
    live = _in_order(ledger)
    return [
        publication
        for number, publication in enumerate(live)
        if publication.canary and _owned_regions(publication, live[number + 1 :])
    ]


def _in_order(ledger: Ledger) -> list[Publication]:
    """Return the live publications by when their runs were first published; a widening does not count."""
    return sorted(ledger.publications.live(), key=lambda publication: _original_version(ledger, publication))


def _owned_regions(publication: Publication, later: Sequence[Publication]) -> list[ViewRegion]:
    """Return the regions of a publication without those of later ones."""
    remaining = [published_region(publication)]
    for other in later:
        if other.start < publication.end and other.end > publication.start:
            remaining = subtract(remaining, published_region(other))
    return remaining


def _original_version(ledger: Ledger, publication: Publication) -> int:
    """Return the version that a publication made, or the first one that it only widens."""
    attempts = (
        {attempt.attempt: attempt for attempt in ledger.publications.find(publication.run_id)} if publication.widens else {}
    )
    while publication.widens is not None:
        publication = attempts[publication.widens]
    return publication.delta_version or 0
