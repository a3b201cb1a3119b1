# SPDX-License-Identifier: Apache-2.0
"""Changes of a training set's inputs since a previous version: labels whose rows or features may differ, by the Delta logs.

No table rows are read. A label at T sees what happened and was known before T, so rows known from F on do not change the features of
labels at or before F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalr_prod.core.delta_log import UNBOUNDED, diff_files, file_time_bounds, reopen_version, version_fingerprint
from scalr_prod.core.timestamps import iso_to_micros
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deltalake import DeltaTable

    from scalr_prod.config import TrainingSetSettings
    from scalr_prod.features import ExternalFeatures, FeatureSource, ServiceSources
    from scalr_prod.training_set.periods import Period


#: Tables that the spine is read from.
EVENT_TABLES = (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS)


@dataclass(frozen=True)
class InputTables:
    """Input tables of a build, pinned at its start.

    Attributes:
        events: The tables of real and synthetic events.
        features: Tables of the features, external ones included.
        external: External features.
    """

    events: Mapping[Table, DeltaTable]
    features: ServiceSources
    external: ExternalFeatures | None = None

    def states(self) -> dict[str, Any]:
        """Return the tables' states, as stored in the manifest."""
        return {
            "events": {table.value: version_fingerprint(delta) for table, delta in self.events.items()},
            "features": {source.view: version_fingerprint(source.table) for source in self.features.sources},
        }

    def changed_tables(self, options: dict[str, str], reopened: Iterable[DeltaTable]) -> list[str]:
        """Return the names of views whose tables have a new version.

        Args:
            options: Storage options of the tables.
            reopened: Tables that were just reopened; the others are opened here.
        """
        from deltalake import DeltaTable

        versions = {delta.table_uri: delta.version() for delta in reopened}
        opened = [(table.value, delta) for table, delta in self.events.items()]
        opened += [(source.view, source.table) for source in self.features.sources]
        for uri in {delta.table_uri for _, delta in opened} - versions.keys():
            versions[uri] = DeltaTable(uri, storage_options=options or None).version()
        return [name for name, delta in opened if versions[delta.table_uri] != delta.version()]


@dataclass(frozen=True)
class InputChanges:
    """Changes of the inputs since a previous version.

    Attributes:
        spine_ranges: ``[low, high]`` ranges of label times, µs, in which the spine may have changed.
        features_unchanged_until: Features of labels up to this instant, µs, are unchanged.
        reason: Main reason of an unusual change, for the log; else empty.
    """

    spine_ranges: tuple[tuple[int, int], ...]
    features_unchanged_until: int
    reason: str = ""

    def leaves_unchanged(self, period: Period, last: int) -> bool:
        """Whether rows and features of a period are unchanged; ``last`` is its last label, µs."""
        return last <= self.features_unchanged_until and not any(period.overlaps(low, high) for low, high in self.spine_ranges)


def detect_changes(
    options: TrainingSetSettings,
    tables: InputTables,
    inputs: Mapping[str, Any],
    previous: Mapping[str, Any],
    *,
    storage_options: dict[str, str],
) -> InputChanges:
    """Compare the tables and settings with those of a previous version.

    Args:
        options: ``[training_set]``.
        tables: The current tables.
        inputs: The current inputs: ``cutoff``, ``start``, ``settings``.
        previous: The previous version's manifest.
        storage_options: Storage options of the tables.
    """
    because, features_from = "", UNBOUNDED[1]
    for source in tables.features.sources:
        since, is_rewritten = _features_from(source, previous["tables"]["features"], storage_options)
        features_from = min(features_from, since)
        if is_rewritten:
            because = because or f"{source.view} was rewritten"
    if previous["settings"] != inputs["settings"]:
        return InputChanges((UNBOUNDED,), features_from, because or "[training_set] has changed")
    ends = sorted(iso_to_micros(version["cutoff"]) for version in (inputs, previous))
    spine = [(ends[0], ends[1])] if ends[0] < ends[1] else []
    starts = sorted(iso_to_micros(start) if start else UNBOUNDED[0] for start in (inputs["start"], previous["start"]))
    spine += [(starts[0], starts[1])] if starts[0] < starts[1] else []
    for table, delta in tables.events.items():
        found = list(_events(delta, previous["tables"]["events"][table.value], storage_options, ends))
        if table is Table.TARGET_EVENTS and found and options.is_weighted_by_segment:
            return InputChanges((UNBOUNDED,), features_from, because or "λ depends on each user's number of real events")
        if table is Table.TARGET_EVENTS and options.negatives_per_event:
            # Consumed and eligible items depend on all real events before the label.
            found = [(low, UNBOUNDED[1]) for low, _ in found]
        spine += found
    return InputChanges(tuple(spine), features_from, because)


def _events(now: DeltaTable, state: Mapping[str, Any], options: dict[str, str], ends: list[int]) -> Iterator[tuple[int, int]]:
    """Yield time ranges in which the known events may differ: those of added, removed, or only partly known files."""
    if version_fingerprint(now) == state and ends[0] == ends[1]:
        return
    before = reopen_version(now, state, options)
    if before is None:
        yield UNBOUNDED
        return
    grown = diff_files(before, now)
    for table, names in ((now, grown.added), (before, grown.removed)):
        times = file_time_bounds(table, EVENT_TIMESTAMP) if names else {}
        yield from sorted(times[name] for name in names)
    if ends[0] < ends[1]:
        times, known = file_time_bounds(now, EVENT_TIMESTAMP), file_time_bounds(now, CREATED_TIMESTAMP)
        yield from sorted(times[name] for name in times.keys() - grown.added if known[name][1] > ends[0])


def _features_from(source: FeatureSource, states: Mapping[str, Any], options: dict[str, str]) -> tuple[int, bool]:
    """Return the earliest time at which a changed row can become visible to a label, and whether rows were removed.

    The time is in microseconds. Where the earlier version cannot be opened, rows count as removed.
    """
    state = states.get(source.view)
    if state == version_fingerprint(source.table):
        return UNBOUNDED[1], False
    before = reopen_version(source.table, state, options) if state else None
    if before is None:
        return UNBOUNDED[0], True
    grown, seen = diff_files(before, source.table), [UNBOUNDED[1]]
    for table, names in ((source.table, grown.added), (before, grown.removed)):
        if names:
            happened = file_time_bounds(table, source.event)
            known = file_time_bounds(table, source.created) if source.created else happened
            seen += [max(happened[name][0], known[name][0]) for name in names]
    return min(seen), bool(grown.removed)
