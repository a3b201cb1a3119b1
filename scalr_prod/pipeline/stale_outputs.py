# SPDX-License-Identifier: Apache-2.0
"""Stale outputs: of stages that used replaced events or a rolled-back run, or that this version of the package computes differently."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ScalrError, TranslatorNotFound
from scalr_prod.lake import CORRECTION_APP_ID, stale_since
from scalr_prod.ledger import PublicationStatus
from scalr_prod.pipeline.context import SKIPPED_WITHOUT_EVENTS
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import DatasetRecord, Ledger, Publication, RunSpec


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorrectedWindow(Jsonable):
    """A published window whose events were replaced.

    Attributes:
        start: Its first instant (UTC).
        end: The instant after its last.
        published_by: The run that had published it.
        run_id: The run that republished it; None: none did, and its rows were removed.
        error: Why it could not be republished.
    """

    start: datetime
    end: datetime
    published_by: str
    run_id: str | None = None
    error: str | None = None


def stale_stages(settings: Settings) -> dict[str, str]:
    """Return why each stale stage is out of date, by stage; empty if none is."""
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger

    lake = Lake.open(settings)
    reasons = _retraining_reason(settings)
    with Ledger.open(settings) as ledger:
        runs, sets = ledger.runs.find(limit=1), ledger.datasets.find(settings.training_set.name)
        rolled_back = rolled_back_runs(ledger, sets[-1].manifest) if sets else []
        lacking = _runs_published_since(settings, ledger, sets[-1].manifest) if sets else []
    reasons = _upgrade_reasons(settings, sets) | reasons
    if lacking:
        verb = "was" if len(lacking) == 1 else "were"
        reasons["dataset"] = (
            f"it lacks rows of {', '.join(lacking)}, which {verb} published since; build it again: scalr dataset build"
        )
    if rolled_back:
        reasons["dataset"] = describe_rolled_back(rolled_back)
    if not _has_corrections(lake):
        return reasons
    with suppress(TranslatorNotFound):
        if (since := _stale_version_since(settings, lake)) is not None:
            reasons["translator"] = _reason(since)
    if runs and (since := _stale_run_since(lake, runs[0].spec)) is not None:
        reasons |= dict.fromkeys(SKIPPED_WITHOUT_EVENTS, _reason(since))
    elif others := stale_publications(settings):
        reasons["late"] = f"{len(others)} published windows were made from events that have been replaced since"
    if sets and (since := _stale_set_since(lake, sets[-1])) is not None:
        reasons["dataset"] = _reason(since)
    return reasons


def describe_kept_translator(settings: Settings) -> str | None:
    """Return which version `scalr run` keeps, why, and when the next training is due, or None if it trains, or the inputs are the same."""
    from scalr_prod.translator import find_kept_version

    with suppress(ScalrError):  # the stage itself says what is wrong
        if kept := find_kept_version(settings):
            return f"version {kept.version.version}: {kept.reason}"
    return None


def _upgrade_reasons(settings: Settings, sets: Sequence[DatasetRecord]) -> dict[str, str]:
    """Return by stage why this version of the package would compute its output again from the same events."""
    from scalr_prod.histories import rebuild_reason
    from scalr_prod.training_set import layout_reason
    from scalr_prod.translator import load_version, retraining_reason

    reasons: dict[str, str] = {}
    with suppress(ScalrError):  # the stage itself says what is wrong
        if reason := rebuild_reason(settings):
            reasons["histories"] = f"{reason}: scalr run builds them again"
    with suppress(ScalrError):
        if retraining := retraining_reason(settings, upgrades_only=True):
            kept = f"[translator] pin = true keeps version {load_version(settings).version}"
            reasons["translator"] = f"{retraining.text}: scalr run trains a version and publishes its run again; {kept}"
    if sets and (reason := layout_reason(sets[-1].manifest)):
        reasons["dataset"] = f"{reason}: scalr run builds a version"
    return reasons


def rolled_back_runs(ledger: Ledger, manifest: Mapping[str, Any]) -> list[str]:
    """Return the runs whose rows a training set holds and that were rolled back since.

    Args:
        ledger: The project's ledger.
        manifest: The training set's manifest.
    """
    version = manifest.get("versions", {}).get(Table.SYNTHETIC_TARGET_EVENTS.value)
    if version is None or not manifest.get("synthetic"):
        return []
    found, live = ledger.publications.find(), {one.run_id for one in ledger.publications.live()}
    read = [one for one in found if one.is_live_at(version)]
    return sorted(
        {
            one.run_id
            for one in read
            if one.status is PublicationStatus.ROLLED_BACK
            and one.run_id not in live
            and _has_labels(one, manifest)
            and not any(_replaces(later, one) for later in read)
        }
    )


def _runs_published_since(settings: Settings, ledger: Ledger, manifest: Mapping[str, Any]) -> list[str]:
    """Return the runs in the feature view that were published after a training set was built; none if it would be the same."""
    from scalr_prod.training_set import rebuild_reason

    version = manifest.get("versions", {}).get(Table.SYNTHETIC_TARGET_EVENTS.value)
    later = [] if version is None else [one for one in ledger.publications.live() if (one.delta_version or 0) > version]
    with suppress(ScalrError):  # the stage itself says what is wrong
        if (found := sorted(one.run_id for one in later if _has_labels(one, manifest))) and rebuild_reason(settings):
            return found
    return []


def _has_labels(publication: Publication, manifest: Mapping[str, Any]) -> bool:
    """Return whether rows of a publication may be labels of a training set."""
    start, cutoff = (manifest.get(name) for name in ("start", "cutoff"))
    return bool(
        publication.rows
        and (cutoff is None or publication.start < datetime.fromisoformat(cutoff))
        and (start is None or publication.end > datetime.fromisoformat(start))
    )


def describe_rolled_back(runs: Sequence[str]) -> str:
    """Say that a training set holds rows of runs that were rolled back."""
    verb = "was" if len(runs) == 1 else "were"
    return f"it contains rows of {', '.join(runs)}, which {verb} rolled back since; build it again: scalr dataset build"


def _replaces(later: Publication, former: Publication) -> bool:
    """Return whether a publication has replaced all rows of an earlier one."""
    newer = (later.delta_version or 0) > (former.delta_version or 0)
    return newer and later.canary is None and later.start <= former.start and later.end >= former.end


def stale_publications(settings: Settings) -> list[tuple[Publication, RunSpec]]:
    """Return the publications in the feature view whose events have been replaced, with their runs, by start of the window."""
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger
    from scalr_prod.publication import runs_in_view

    lake = Lake.open(settings)
    if not _has_corrections(lake):
        return []
    with Ledger.open(settings) as ledger:
        live = [(publication, ledger.runs.get(publication.run_id).spec) for publication in ledger.publications.live()]
    in_view = runs_in_view(lake)
    stale = [
        (publication, spec)
        for publication, spec in live
        if publication.run_id in in_view and _stale_run_since(lake, spec) is not None
    ]
    return sorted(stale, key=lambda pair: pair[0].start)


def is_version_stale(settings: Settings, version: int) -> bool:
    """Return whether a translator version was trained on events that have been replaced since; a missing version is stale."""
    from scalr_prod.lake import Lake

    try:
        return _stale_version_since(settings, Lake.open(settings), version) is not None
    except TranslatorNotFound:
        return True


def _has_corrections(lake: Lake) -> bool:
    opened = lake.find_tables((Table.SOURCE_EVENTS, Table.TARGET_EVENTS))
    return any(table.transaction_version(CORRECTION_APP_ID) is not None for table in opened.values())


def _stale_version_since(settings: Settings, lake: Lake, version: int | None = None) -> datetime | None:
    from scalr_prod.translator import load_version

    trained = load_version(settings, version)
    return stale_since(lake, trained.manifest.get("data_versions", {}), trained.trained_until)


def _retraining_reason(settings: Settings) -> dict[str, str]:
    """Return why the latest translator must be retrained: it was trained on users who were erased since."""
    from scalr_prod.translator import load_version
    from scalr_prod.workspace import SuppressionList

    suppressed = SuppressionList.open(settings)
    try:
        deadline = None
        if suppressed.users:
            version, grace_days = load_version(settings).version, settings.forgetting.grace_days
            deadline = suppressed.retraining_deadline(version, grace_days=grace_days)
    except TranslatorNotFound:
        return {}
    if deadline is None:
        return {}
    until = deadline.at.isoformat(timespec="seconds")
    return {"translator": f"it learned from {deadline.users} erased users; runs use it until {until}"}


def _stale_run_since(lake: Lake, spec: RunSpec) -> datetime | None:
    return stale_since(lake, spec.table_versions, spec.as_of)


def _stale_set_since(lake: Lake, record: DatasetRecord) -> datetime | None:
    """A training set reads target events directly, and source events through the histories built from them."""
    versions: Mapping[str, int] = record.manifest.get("versions", {})
    read_versions = {Table.TARGET_EVENTS.value: versions.get(Table.TARGET_EVENTS.value, 0)}
    history = versions.get(Table.SOURCE_USER_HISTORY.value)
    if history is not None:
        read_versions[Table.SOURCE_EVENTS.value] = _events_of_history(lake, history)
    return stale_since(lake, read_versions, record.cutoff or datetime.max.replace(tzinfo=UTC))


def _events_of_history(lake: Lake, version: int) -> int:
    """Return the version of the source events that a version of the histories was built from; 0 if unknown."""
    from scalr_prod.histories import BuildRecord

    record = BuildRecord.from_record(dict(lake.commit_records(Table.SOURCE_USER_HISTORY, after=version - 1)).get(version))
    return 0 if record is None else record.version


def _reason(since: datetime) -> str:
    return f"events from {since.isoformat()} on were replaced since it was made; rebuild it: scalr run"
