# SPDX-License-Identifier: Apache-2.0
"""Source events that arrived after their window was published, and the windows to republish for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import LakeError
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, PublicationStatus
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table
from scalr_prod.translator import models_dir
from scalr_prod.workspace import Canary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


@dataclass(frozen=True)
class LateWindow:
    """A published window with source events that its run did not know.

    Attributes:
        start: The window's first instant (UTC).
        end: The instant after its last (UTC).
        as_of: Knowledge time when it is republished.
        published_by: The run that published it.
        events: Late source events that are known by ``as_of``.
        unknown: Late source events not known by ``as_of``; they stay untranslated.
        run_id: The run that republished it; None if it was not republished.
        error: Why it was not republished.
    """

    start: datetime
    end: datetime
    as_of: datetime
    published_by: str
    events: int
    unknown: int
    run_id: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class LateReport(Jsonable):
    """What was done about late source events.

    Attributes:
        windows: Windows within the look-back that have late events, earliest first.
        too_late: Source events that arrived since the previous run and lie before the look-back: they stay untranslated.
        corrected: Outcome of windows whose events were replaced; see `scalr_prod.pipeline.stale_outputs`.
    """

    windows: list[LateWindow] = field(default_factory=list)
    too_late: int = 0
    corrected: Sequence[Jsonable] = ()

    @property
    def published(self) -> list[LateWindow]:
        """Return the windows that were republished."""
        return [window for window in self.windows if window.run_id is not None]


def late_windows(settings: Settings, start: datetime, end: datetime, as_of: datetime) -> LateReport:
    """Return the published windows before a run's window that have late source events.

    Args:
        settings: ``[generation] lookback`` and ``late_as_of``.
        start: Start of the run's window; windows that end later are skipped.
        end: The look-back counts back from here.
        as_of: Knowledge time of the run.
    """
    generation, lake = settings.generation, Lake.open(settings)
    reach = end - timedelta(days=generation.lookback)
    with Ledger.open(settings) as ledger:
        live = _live_runs(ledger, before=start)
    within = sorted((spec for spec in live if spec.end >= reach), key=lambda spec: spec.start)
    windows = []
    for spec in within:
        knows = max(as_of, spec.as_of) if generation.late_as_of == "latest" else spec.as_of
        translated = _count_events(lake, spec.start, spec.end, version=_source_events_version(spec), known_by=spec.as_of)
        if translated is None:  # the run's version of the log no longer exists, so late events cannot be identified
            continue
        known = _count_events(lake, spec.start, spec.end, known_by=knows) or 0
        everything = _count_events(lake, spec.start, spec.end) or 0
        late, unknown = max(known - translated, 0), everything - max(known, translated)
        if late or unknown:
            windows.append(LateWindow(spec.start, spec.end, knows, spec.run_id, late, unknown))
    return LateReport(windows, _count_too_late(lake, live, edge=min([reach, *(spec.start for spec in within)])))


def replay_settings(settings: Settings, window: LateWindow) -> tuple[Settings, int | None]:
    """Return the settings and translator version to republish a window with: those of its run, for the same users.

    Returns:
        The settings; and the version, None if it no longer exists and the latest suitable one is used.
    """
    with Ledger.open(settings) as ledger:
        spec = ledger.runs.get(window.published_by).spec
        live = {one.run_id: one for one in ledger.publications.live()}
    canary = Canary.from_publication(live[spec.run_id].canary if spec.run_id in live else None)
    users = settings.experiment.model_copy(update={"canary": canary.share if canary else 0.0})
    # The run's volume and temperature are limited already.
    original = {"mode": spec.mode, "seed": spec.seed, "contexts": "events", "shortlist": None, "max_synthetic_ratio": 0.0}
    original |= spec.settings["generation"]
    times = {"start": window.start, "end": window.end, "as_of": window.as_of}
    generation = settings.generation.model_copy(update=original | times)
    replay = settings.model_copy(update={"generation": generation, "experiment": users})
    is_on_disk = (models_dir(settings.home) / str(spec.translator_version)).is_dir()
    return replay, spec.translator_version if is_on_disk else None


def _live_runs(ledger: Ledger, *, before: datetime) -> list[RunSpec]:
    """Return the runs whose rows are all in the feature view, in order of publication."""
    published = [one for one in ledger.publications.live() if one.end <= before]
    gone = PublicationStatus.ROLLED_BACK  # its rollback restored what it had replaced
    live = (one for one in published if all(later.status is gone for later in ledger.publications.superseding(one)))
    return [ledger.runs.get(one.run_id).spec for one in live]


def _count_too_late(lake: Lake, live: list[RunSpec], *, edge: datetime) -> int:
    """Count source events before ``edge`` that arrived since the latest published run."""
    if not live:
        return 0
    before = _count_events(lake, None, edge, version=_source_events_version(live[-1]))
    return 0 if before is None else (_count_events(lake, None, edge) or 0) - before


def _source_events_version(spec: RunSpec) -> int:
    return spec.table_versions[Table.SOURCE_EVENTS.value]


def _count_events(
    lake: Lake, start: datetime | None, end: datetime, *, version: int | None = None, known_by: datetime | None = None
) -> int | None:
    """Count a window's source events at a version of the log; None if that version no longer exists."""
    import pyarrow.dataset as ds

    where = ds.field(EVENT_TIMESTAMP) < end
    if start is not None:
        where &= ds.field(EVENT_TIMESTAMP) >= start
    if known_by is not None:
        where &= ds.field(CREATED_TIMESTAMP) <= known_by
    try:
        return int(lake.dataset(Table.SOURCE_EVENTS, version=version).count_rows(filter=where))
    except (LakeError, FileNotFoundError):
        if version is None:
            raise
        return None
