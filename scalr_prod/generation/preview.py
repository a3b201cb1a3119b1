# SPDX-License-Identifier: Apache-2.0
"""Preview of a run without planning it: its window, contexts and users. Writes nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.generation.encoding import count_contexts
from scalr_prod.generation.plan import TABLES_READ, max_events_per_context, register_events, resolve_window, run_settings
from scalr_prod.lake import Lake

if TYPE_CHECKING:
    from datetime import datetime

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec


@dataclass(frozen=True)
class RunPreview(Jsonable):
    """The run that would be planned.

    Attributes:
        start: The window's first instant (UTC).
        end: The instant after the window (UTC).
        as_of: Rows that became known later would be ignored (UTC).
        contexts: Number of contexts to translate.
        users: Number of their users.
        partitions: Number of parts.
        max_events_per_context: How many events a context may get.
        max_events_by_ratio: How many ``[generation] max_synthetic_ratio`` alone would allow.
    """

    start: datetime
    end: datetime
    as_of: datetime
    contexts: int
    users: int
    partitions: int
    max_events_per_context: int
    max_events_by_ratio: int

    def differences(self, settings: Settings, spec: RunSpec) -> list[str]:
        """Return what differs from a ledger run, except its translator; empty if it would be the same run."""
        lake, chosen, found = Lake.open(settings), settings.generation, []
        if (self.start, self.end, self.as_of) != (spec.start, spec.end, spec.as_of):
            found.append("its window")
        now, former = run_settings(settings, self.max_events_per_context), spec.settings
        found += [f"[generation] {name}" for name in ("mode", "seed") if getattr(chosen, name) != getattr(spec, name)]
        found += [
            f"[{section}] {key}"
            for section in ("generation", "histories")
            for key in sorted({**now[section], **former.get(section, {})})
            if now[section].get(key) != former.get(section, {}).get(key)
        ]
        others = (now.keys() | former.keys()) - {"generation", "histories"}
        found += sorted(name for name in others if now.get(name) != former.get(name))
        current = lake.versions(TABLES_READ)
        return found + [name for name, version in current.items() if version != spec.table_versions.get(name)]


def preview_run(settings: Settings) -> RunPreview:
    """Preview the run of the settings' window on the lake's current events.

    Raises:
        EmptyWindow: No source event of the window was known by ``as_of``.
        TableNotFound: Nothing has been ingested yet.
    """
    from scalr_prod.workspace import open_duckdb

    lake = Lake.open(settings)
    # DuckDB must not spill into the project: a preview writes nothing there.
    with tempfile.TemporaryDirectory(prefix="scalr-") as folder, open_duckdb(settings, Path(folder)) as connection:
        opened = register_events(connection, lake)
        window = resolve_window(settings.generation, connection, lake, opened, timezone=settings.project.timezone)
        chosen = run_settings(settings)
        contexts, users = count_contexts(connection, chosen, window, settings.home)
        limit = max_events_per_context(settings, connection, window, contexts)
    options = settings.generation
    allowed = min(options.events_per_source_event, limit)
    return RunPreview(window.start, window.end, window.as_of, contexts, users, options.partitions, allowed, limit)
