# SPDX-License-Identifier: Apache-2.0
"""Staleness of a previous version: labels whose rows or features may have changed, determined from Delta logs.

No table rows are read. A label at T sees what happened and was known before T, so rows known from F on do not change the features of
labels at or before F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table
from scalr_prod.growth import ALWAYS, bounds_of, former_version, growth, state_of
from scalr_prod.instants import micros_of_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deltalake import DeltaTable

    from scalr_prod.feast_store import FeatureSource, OwnFeatures, ServiceSources
    from scalr_prod.settings import Settings
    from scalr_prod.training_set.periods import Period

__all__ = ["EVENTS", "Changes", "Tables", "changes_since", "weighted_by_segment"]

#: Tables that the spine is read from.
EVENTS = (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)


@dataclass(frozen=True)
class Tables:
    """Input tables of a build, pinned at its start.

    Attributes:
        events: The tables of real and synthetic events.
        features: Tables of the features, external ones included.
        own: External features.
    """

    events: Mapping[Table, DeltaTable]
    features: ServiceSources
    own: OwnFeatures | None = None

    def states(self) -> dict[str, Any]:
        """Return the tables' states, as stored in the manifest."""
        return {
            "events": {table.value: state_of(delta) for table, delta in self.events.items()},
            "features": {source.view: state_of(source.table) for source in self.features.sources},
        }

    def moved(self, options: dict[str, str], now: Iterable[DeltaTable]) -> list[str]:
        """Return the names of views whose tables have a new version.

        Args:
            options: Storage options of the tables.
            now: Tables that were just reopened; the others are opened here.
        """
        from deltalake import DeltaTable

        versions = {delta.table_uri: delta.version() for delta in now}
        opened = [(table.value, delta) for table, delta in self.events.items()]
        opened += [(source.view, source.table) for source in self.features.sources]
        for uri in {delta.table_uri for _, delta in opened} - versions.keys():
            versions[uri] = DeltaTable(uri, storage_options=options or None).version()
        return [name for name, delta in opened if versions[delta.table_uri] != delta.version()]


@dataclass(frozen=True)
class Changes:
    """Changes of the inputs since a previous version.

    Attributes:
        spine: ``[low, high]`` ranges of label times, µs, in which the spine may have changed.
        features_from: Features of labels up to this instant, µs, are unchanged.
        because: Main reason of an unusual change, for the log; else empty.
    """

    spine: tuple[tuple[int, int], ...]
    features_from: int
    because: str = ""

    def spare(self, period: Period, last: int) -> bool:
        """Whether rows and features of a period are unchanged; ``last`` is its last label, µs."""
        return last <= self.features_from and not any(period.meets(low, high) for low, high in self.spine)


def changes_since(settings: Settings, tables: Tables, inputs: Mapping[str, Any], former: Mapping[str, Any]) -> Changes:
    """Compare the tables and settings with those of a previous version.

    Args:
        settings: The project's settings.
        tables: The current tables.
        inputs: The current inputs: ``cutoff``, ``start``, ``settings``.
        former: The previous version's manifest.
    """
    options, because = settings.project.storage_options, ""
    features_from = ALWAYS[1]
    for source in tables.features.sources:
        since, is_rewritten = _features_from(source, former["tables"]["features"], options)
        features_from = min(features_from, since)
        if is_rewritten:
            because = because or f"{source.view} was rewritten"
    if former["settings"] != inputs["settings"]:
        return Changes((ALWAYS,), features_from, because or "[training_set] has changed")
    ends = sorted(micros_of_text(version["cutoff"]) for version in (inputs, former))
    spine = [(ends[0], ends[1])] if ends[0] < ends[1] else []
    starts = sorted(micros_of_text(start) if start else ALWAYS[0] for start in (inputs["start"], former["start"]))
    spine += [(starts[0], starts[1])] if starts[0] < starts[1] else []
    for table, delta in tables.events.items():
        found = list(_events(delta, former["tables"]["events"][table.value], options, ends))
        if table is Table.TARGET_EVENTS and found and weighted_by_segment(settings):
            return Changes((ALWAYS,), features_from, because or "λ depends on each user's number of real events")
        if table is Table.TARGET_EVENTS and settings.training_set.negatives_per_event:
            # Consumed and eligible items depend on all real events before the label.
            found = [(low, ALWAYS[1]) for low, _ in found]
        spine += found
    return Changes(tuple(spine), features_from, because)


def weighted_by_segment(settings: Settings) -> bool:
    """Whether a synthetic row's weight depends on the number of its user's real events."""
    return len(set(settings.training_set.lambdas)) > 1


def _events(now: DeltaTable, state: Mapping[str, Any], options: dict[str, str], ends: list[int]) -> Iterator[tuple[int, int]]:
    """Yield time ranges in which the known events may differ: those of added, removed, or only partly known files."""
    if state_of(now) == state and ends[0] == ends[1]:
        return
    before = former_version(now, state, options)
    if before is None:
        yield ALWAYS
        return
    grown = growth(before, now)
    for table, names in ((now, grown.added), (before, grown.removed)):
        times = bounds_of(table, EVENT_TIMESTAMP) if names else {}
        yield from sorted(times[name] for name in names)
    if ends[0] < ends[1]:
        times, known = bounds_of(now, EVENT_TIMESTAMP), bounds_of(now, CREATED_TIMESTAMP)
        yield from sorted(times[name] for name in times.keys() - grown.added if known[name][1] > ends[0])


def _features_from(source: FeatureSource, states: Mapping[str, Any], options: dict[str, str]) -> tuple[int, bool]:
    """Return from when labels may see other rows, and whether rows were removed or changes are unknown.

    It is the earliest instant at which a row of an added or removed file may become visible.
    """
    state = states.get(source.view)
    if state == state_of(source.table):
        return ALWAYS[1], False
    before = former_version(source.table, state, options) if state else None
    if before is None:
        return ALWAYS[0], True
    grown, seen = growth(before, source.table), [ALWAYS[1]]
    for table, names in ((source.table, grown.added), (before, grown.removed)):
        if names:
            happened = bounds_of(table, source.event)
            known = bounds_of(table, source.created) if source.created else happened
            seen += [max(happened[name][0], known[name][0]) for name in names]
    return min(seen), bool(grown.removed)
