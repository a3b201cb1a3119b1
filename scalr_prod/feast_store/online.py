"""The online store: each entity's latest row, as a point-in-time join would give it, and no row that the lake no longer holds."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import FeatureStoreError
from scalr_prod.feast_store.access import explained, open_feature_store, quiet
from scalr_prod.feast_store.projects import claim_redis
from scalr_prod.feast_store.repository import repository_lock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from feast import FeatureStore, FeatureView

    from scalr_prod.settings import Settings

__all__ = ["MaterializationReport", "materialize"]

logger = logging.getLogger(__name__)

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class MaterializationReport:
    """What was written to the online store.

    Attributes:
        views: The feature views.
        emptied: Those from which rows were deleted first, since the rows had gone from their tables.
        end: Rows up to this time.
        online_store: Its kind.
    """

    views: tuple[str, ...]
    emptied: tuple[str, ...]
    end: datetime
    online_store: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        views = {"views": list(self.views), "emptied": list(self.emptied)}
        return {**views, "end": self.end.isoformat(), "online_store": self.online_store}


@dataclass(frozen=True)
class _State:
    """What a view was filled from: a version of its table (None: it is no Delta table), up to an event time."""

    version: int | None
    end: datetime

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "end": self.end.isoformat()}


def materialize(
    settings: Settings, *, end: datetime | None = None, views: Sequence[str] | None = None
) -> MaterializationReport:
    """Write each entity's latest row to the online store, of every view that has a place there.

    Afterwards the store serves what a point-in-time join gives at ``end``. Feast only ever writes over what is there: an entity
    whose rows have gone (a run was rolled back, a window replaced) would be served for ever. So the entities that a view had
    and has no longer are deleted first.

    Args:
        settings: The project's settings.
        end: Rows that had happened and were created by then; default: now.
        views: Only these views.

    Raises:
        ProjectsMixed: Another project of this name, on another lake, fills the same Redis. Nothing was written.
        FeatureStoreError: No such view, or the online store cannot be reached.
    """
    end = end or datetime.now(UTC)
    from scalr_prod.feast_store.reads import source_path

    with explained(settings), repository_lock(settings), quiet("materialize"):
        store = open_feature_store(settings, known_by=end)
        chosen = [view for view in store.list_feature_views() if (view.online if views is None else view.name in views)]
        unknown = sorted(set(views or ()) - {view.name for view in chosen})
        if unknown:
            raise FeatureStoreError(f"no feature view {', '.join(unknown)}", next_step="name views of the repository")
        if settings.feast.online_store == "redis":
            claim_redis(settings, store)
        record = _Record(settings, store)
        states = {view.name: _State(_version(store, view), end) for view in chosen}
        # The fill reads these versions, whatever is committed meanwhile: the record tells exactly what is there.
        store.config.offline_store.versions = {
            source_path(store.config, view.batch_source): version
            for view in chosen
            if (version := states[view.name].version) is not None
        }
        emptied = [view.name for view in chosen if record.begin(view, states[view.name])]
        store.materialize(start_date=_BEGINNING, end_date=end, feature_views=[view.name for view in chosen])
        for view in chosen:
            record.finish(view)
    return MaterializationReport(tuple(view.name for view in chosen), tuple(emptied), end, settings.feast.online_store)


class _Record:
    """What each view in this online store may have been filled from, in a file beside the repository.

    A fill that was cut off may have written rows: until one has ended, all states since the last one that did are kept.
    """

    def __init__(self, settings: Settings, store: FeatureStore) -> None:
        self.path: Path = settings.feast_repo / ".materialized.json"
        self.store = store
        address = json.dumps([store.project, store.config.online_store.model_dump(mode="json")], sort_keys=True)
        # The address may hold a password.
        self.address = hashlib.sha256(address.encode()).hexdigest()
        self.states = self._read()

    def begin(self, view: FeatureView, now: _State) -> bool:
        """Delete what the view's table no longer gives; gives whether anything was deleted."""
        from scalr_prod.feast_store.departed import empty_view, forget_departed

        before = self.states.get(view.name)
        if before is None:
            # Never filled from here, or the record was lost: whatever is there goes.
            deleted = bool(empty_view(self.store, view))
        else:
            departed = [forget_departed(self.store, view, (then.version, then.end), (now.version, now.end)) for then in before]
            deleted = any(departed)
        self.states[view.name] = [*(before or []), now]
        self._write()
        return deleted

    def finish(self, view: FeatureView) -> None:
        """The view holds what its last state gives, and nothing else."""
        self.states[view.name] = self.states[view.name][-1:]
        self._write()

    def _read(self) -> dict[str, list[_State]]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["store"] != self.address:
                return {}
            return {
                view: [_State(state["version"], datetime.fromisoformat(state["end"])) for state in states]
                for view, states in found["views"].items()
            }
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return {}

    def _write(self) -> None:
        views = {view: [state.to_json() for state in states] for view, states in self.states.items()}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"store": self.address, "views": views}), encoding="utf-8")
        temporary.replace(self.path)


def _version(store: FeatureStore, view: FeatureView) -> int | None:
    """Delta version of a view's table; None for other files."""
    from feast.data_format import DeltaFormat

    from scalr_prod.feast_store.reads import source_path
    from scalr_prod.feast_store.scan import delta_table

    source = view.batch_source
    if not isinstance(getattr(source, "file_format", None), DeltaFormat):
        return None
    return int(delta_table(source_path(store.config, source), store.config.offline_store.storage_options).version())
