# SPDX-License-Identifier: Apache-2.0
"""Of which labels the row or the features may be others than in a former version, as the tables' logs tell.

No row of a table is read. A label at T sees what happened and was known before T, so that rows which were known from F on change
the features of no label at F or before it.
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

#: What the spine is read from.
EVENTS = (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)


@dataclass(frozen=True)
class Tables:
    """The tables that a version is made from, at the versions that they had when the build began.

    Attributes:
        events: The log of real events, and the synthetic ones.
        features: What the features are read from, the user's own among them.
        own: The user's own features.
    """

    events: Mapping[Table, DeltaTable]
    features: ServiceSources
    own: OwnFeatures | None = None

    def states(self) -> dict[str, Any]:
        """As the manifest keeps them."""
        return {
            "events": {table.value: state_of(delta) for table, delta in self.events.items()},
            "features": {source.view: state_of(source.table) for source in self.features.sources},
        }

    def moved(self, options: dict[str, str], now: Iterable[DeltaTable]) -> list[str]:
        """Names of the views whose tables have another version by now.

        Args:
            options: Access to the tables.
            now: Tables that were just opened; the others are opened here.
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
    """From a former version to the one that is built.

    Attributes:
        spine: ``[low, high]`` label times, µs: only between them may the spine have other rows.
        features_from: Labels up to this instant, µs, have the features that they had.
        because: What is meant by most of it, for the log; empty where nothing is out of the ordinary.
    """

    spine: tuple[tuple[int, int], ...]
    features_from: int
    because: str = ""

    def spare(self, period: Period, last: int) -> bool:
        """Whether rows and features of a period are what they were; ``last`` is its last label, µs."""
        return last <= self.features_from and not any(period.meets(low, high) for low, high in self.spine)


def changes_since(settings: Settings, tables: Tables, inputs: Mapping[str, Any], former: Mapping[str, Any]) -> Changes:
    """Compare the state of the tables and the settings with those of a former version.

    Args:
        settings: The project's settings.
        tables: What is there now.
        inputs: What decides the rows now: ``cutoff``, ``start``, ``settings``.
        former: The former version's manifest.
    """
    options, because = settings.project.storage_options, ""
    features_from = ALWAYS[1]
    for source in tables.features.sources:
        since, anew = _features_from(source, former["tables"]["features"], options)
        features_from = min(features_from, since)
        if anew:
            because = because or f"{source.view} was written anew"
    if former["settings"] != inputs["settings"]:
        return Changes((ALWAYS,), features_from, because or "[training_set] has changed")
    ends = sorted(micros_of_text(version["cutoff"]) for version in (inputs, former))
    spine = [(ends[0], ends[1])] if ends[0] < ends[1] else []
    starts = sorted(micros_of_text(start) if start else ALWAYS[0] for start in (inputs["start"], former["start"]))
    spine += [(starts[0], starts[1])] if starts[0] < starts[1] else []
    for table, delta in tables.events.items():
        found = list(_events(delta, former["tables"]["events"][table.value], options, ends))
        if table is Table.TARGET_EVENTS and found and weighted_by_segment(settings):
            return Changes((ALWAYS,), features_from, because or "λ follows each user's number of real events")
        if table is Table.TARGET_EVENTS and settings.training_set.negatives_per_event:
            # What a user had, and which items were there to draw, is asked of all real events before the label.
            found = [(low, ALWAYS[1]) for low, _ in found]
        spine += found
    return Changes(tuple(spine), features_from, because)


def weighted_by_segment(settings: Settings) -> bool:
    """Whether a synthetic row's weight depends on how many real events its user has."""
    return len(set(settings.training_set.lambdas)) > 1


def _events(now: DeltaTable, state: Mapping[str, Any], options: dict[str, str], ends: list[int]) -> Iterator[tuple[int, int]]:
    """Between which times there may be other known events: those of files that came or went, or that are not known as a whole."""
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
    """From when on a label may see other rows, and whether rows went away, or cannot be told.

    It is the earliest instant at which a row of a file that came or went may be seen.
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
