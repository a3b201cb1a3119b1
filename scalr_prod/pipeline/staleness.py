# SPDX-License-Identifier: Apache-2.0
"""What was made from events that have been replaced since (`scalr ingest --replace`), and what makes it anew."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import TranslatorNotFound
from scalr_prod.lake import CORRECTION_APP_ID, stale_since
from scalr_prod.pipeline.context import OF_RUN
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import DatasetRecord, Publication, RunSpec

__all__ = ["CorrectedWindow", "is_version_stale", "stale_publications", "stale_stages"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorrectedWindow(Jsonable):
    """A published window whose events were replaced.

    Attributes:
        start: Its first instant (UTC).
        end: The instant after its last.
        published_by: The run that it had been published by.
        run_id: The run that it was published anew by; None: it was not, and its rows were taken out.
        error: Why it stays as it is.
    """

    start: datetime
    end: datetime
    published_by: str
    run_id: str | None = None
    error: str | None = None


def stale_stages(settings: Settings) -> dict[str, str]:
    """Why what a stage has made is out of date, by stage; empty where nothing is."""
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger

    lake = Lake.open(settings)
    found = _retraining_reason(settings)
    if not _has_corrections(lake):
        return found
    with Ledger.open(settings) as ledger:
        runs, sets = ledger.runs(limit=1), ledger.datasets(settings.training_set.name)
    with suppress(TranslatorNotFound):
        if (since := _stale_version_since(settings, lake)) is not None:
            found["translator"] = _reason(since)
    if runs and (since := _stale_run_since(lake, runs[0].spec)) is not None:
        found |= dict.fromkeys(OF_RUN, _reason(since))
    elif others := stale_publications(settings):
        found["late"] = f"{len(others)} published windows were made from events that have been replaced since"
    if sets and (since := _stale_set_since(lake, sets[-1])) is not None:
        found["dataset"] = _reason(since)
    return found


def stale_publications(settings: Settings) -> list[tuple[Publication, RunSpec]]:
    """What stands in the feature view of runs whose events have been replaced, with the runs, the earliest window first."""
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger

    lake = Lake.open(settings)
    if not _has_corrections(lake):
        return []
    with Ledger.open(settings) as ledger:
        found = [(one, ledger.run(one.run_id).spec) for one in ledger.live_publications()]
    there = _runs_in_view(lake)
    stale = [(one, spec) for one, spec in found if one.run_id in there and _stale_run_since(lake, spec) is not None]
    return sorted(stale, key=lambda pair: pair[0].start)


def is_version_stale(settings: Settings, version: int) -> bool:
    """Whether a translator version learned from events that have been replaced since; one that is no longer there counts as such."""
    from scalr_prod.lake import Lake

    try:
        return _stale_version_since(settings, Lake.open(settings), version) is not None
    except TranslatorNotFound:
        return True


def _has_corrections(lake: Lake) -> bool:
    tables = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
    return any(lake.exists(table) and lake.transaction_version(table, CORRECTION_APP_ID) is not None for table in tables)


def _stale_version_since(settings: Settings, lake: Lake, version: int | None = None) -> datetime | None:
    from scalr_prod.translator import load_version

    found = load_version(settings, version)
    return stale_since(lake, found.manifest.get("data_versions", {}), found.trained_until)


def _retraining_reason(settings: Settings) -> dict[str, str]:
    """That the latest translator learned from users who were forgotten since, where it did."""
    from scalr_prod.translator import load_version
    from scalr_prod.workspace import SuppressionList

    stones = SuppressionList.open(settings)
    try:
        retrain = stones.retraining_deadline(settings, load_version(settings).version) if stones.users else None
    except TranslatorNotFound:
        return {}
    if retrain is None:
        return {}
    users, until = retrain
    return {"translator": f"it learned from {users} forgotten users; runs use it until {until.isoformat(timespec='seconds')}"}


def _stale_run_since(lake: Lake, spec: RunSpec) -> datetime | None:
    return stale_since(lake, spec.table_versions, spec.as_of)


def _stale_set_since(lake: Lake, record: DatasetRecord) -> datetime | None:
    """Target events are read as they are, source events by way of the histories made from them."""
    versions: Mapping[str, int] = record.manifest.get("versions", {})
    made_from = {Table.TARGET_EVENTS.value: versions.get(Table.TARGET_EVENTS.value, 0)}
    history = versions.get(Table.SOURCE_USER_HISTORY.value)
    if history is not None:
        made_from[Table.SOURCE_EVENTS.value] = _events_of_history(lake, history)
    return stale_since(lake, made_from, record.cutoff or datetime.max.replace(tzinfo=UTC))


def _events_of_history(lake: Lake, version: int) -> int:
    """The version of the source events that a version of the histories was built from; 0 where nothing says so."""
    from scalr_prod.histories import BuildRecord

    told = dict(lake.commit_records(Table.SOURCE_USER_HISTORY)).get(version)
    built = BuildRecord.from_record(told)
    return 0 if built is None else built.version


def _runs_in_view(lake: Lake) -> set[str]:
    import pyarrow.compute as pc

    view = Table.SYNTHETIC_TARGET_EVENTS
    found: set[str] = set()
    for batch in lake.dataset(view).to_batches(columns=["run_id"]):
        found.update(pc.unique(batch.column(0)).to_pylist())
    return found


def _reason(since: datetime) -> str:
    return f"events from {since.isoformat()} on were replaced since it was made; make it anew: scalr run"
