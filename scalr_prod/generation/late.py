"""Source events that arrived after their window was published, and the windows that are to be published again for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table
from scalr_prod.errors import LakeError
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, PublicationStatus

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings

__all__ = ["LateReport", "LateWindow", "late_windows"]


@dataclass(frozen=True)
class LateWindow:
    """A published window with source events that its run did not know.

    Attributes:
        start: Its first instant (UTC).
        end: The instant after its last.
        as_of: What it may know when it is published again.
        published_by: The run that it was published by.
        events: Late source events that are known by ``as_of``.
        too_late: Those that are not, and so stay untranslated.
        run_id: The run that it was published again by; None: it was not.
    """

    start: datetime
    end: datetime
    as_of: datetime
    published_by: str
    events: int
    too_late: int
    run_id: str | None = None


@dataclass(frozen=True)
class LateReport:
    """What became of late source events.

    Attributes:
        windows: Those that were published again.
        too_late: Source events of published windows that no run has translated: their window ended before the look-back, or
            they became known after its ``as_of``.
    """

    windows: list[LateWindow] = field(default_factory=list)
    too_late: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; times as ISO 8601 in UTC."""
        windows = [
            {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in asdict(window).items()}
            for window in self.windows
        ]
        return {"windows": windows, "too_late": self.too_late}


def late_windows(settings: Settings, current: RunSpec) -> tuple[list[LateWindow], int]:
    """The published windows before a run's that late source events lie in.

    Args:
        settings: ``[generation] lookback`` and ``late_as_of``.
        current: The run; windows that end after its start are left alone.

    Returns:
        Those within the look-back that have something to translate, the earliest first; and the number of late source events,
        of all published windows, that stay untranslated.
    """
    generation = settings.generation
    reach = current.end - timedelta(days=generation.lookback)
    found, too_late = [], 0
    for spec in _published(settings, before=current.start):
        as_of = max(current.as_of, spec.as_of) if generation.late_as_of == "latest" else spec.as_of
        known, unknown = _arrived_since(settings, spec, as_of)
        if spec.end < reach:
            too_late += known + unknown
            continue
        too_late += unknown
        if known:
            found.append(LateWindow(spec.start, spec.end, as_of, spec.run_id, known, unknown))
    return sorted(found, key=lambda window: window.start), too_late


def _published(settings: Settings, *, before: datetime) -> list[RunSpec]:
    """The run of each window whose rows stand in the feature view, as it was published last."""
    last: dict[tuple[datetime, datetime], RunSpec] = {}
    with Ledger.open(settings) as ledger:
        attempts = [one for one in ledger.publications() if one.status is PublicationStatus.PUBLISHED and one.end <= before]
        for attempt in sorted(attempts, key=lambda one: one.delta_version or 0):
            last[attempt.start, attempt.end] = ledger.run(attempt.run_id).spec
    return list(last.values())


def _arrived_since(settings: Settings, spec: RunSpec, as_of: datetime) -> tuple[int, int]:
    """Source events of a run's window that its version of the log lacked: those known by ``as_of``, and those that are not."""
    lake = Lake.open(settings)
    then = spec.table_versions[Table.SOURCE_EVENTS.value]
    now = lake.version(Table.SOURCE_EVENTS)
    if then == now:
        return 0, 0
    # Below, the run's own as_of: what it left out since it was not yet known is late as well.
    translated = _events(lake, spec, then, known_by=spec.as_of)
    known, all_of_them = _events(lake, spec, now, known_by=as_of), _events(lake, spec, now, known_by=None)
    return max(known - translated, 0), all_of_them - max(known, translated)


def _events(lake: Lake, spec: RunSpec, version: int, *, known_by: datetime | None) -> int:
    import pyarrow.dataset as ds

    where = (ds.field(EVENT_TIMESTAMP) >= spec.start) & (ds.field(EVENT_TIMESTAMP) < spec.end)
    if known_by is not None:
        where &= ds.field(CREATED_TIMESTAMP) <= known_by
    try:
        return int(lake.dataset(Table.SOURCE_EVENTS, version=version).count_rows(filter=where))
    except (LakeError, FileNotFoundError):
        if version == lake.version(Table.SOURCE_EVENTS):
            raise
        return 0  # that version was cleaned away: publish the window again, which changes nothing where nothing was late
