# SPDX-License-Identifier: Apache-2.0
"""Resolve a run: its window, its ``as_of``, its translator version, and every default."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.calendar import add_days
from scalr_prod.core.delta_log import files_dataset
from scalr_prod.core.timestamps import micros_to_datetime
from scalr_prod.errors import EmptyWindow, TrainedPastWindow, TranslatorError
from scalr_prod.generation.encoding import count_contexts
from scalr_prod.ledger import Ledger, RunSpec, RunWindow, TranslatorPin
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table
from scalr_prod.workspace import ConsentState, Holdout, ensure_retrained_in_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

    from scalr_prod.config import GenerationSettings, Settings
    from scalr_prod.lake import Lake
    from scalr_prod.translator import TranslatorVersion


logger = logging.getLogger(__name__)

#: Every table that generation reads; their versions are part of the run.
TABLES_READ: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)

#: Smallest factor of the temperature where `max_events_per_context` leaves a context few events.
_MIN_TEMPERATURE_FACTOR: Final = 0.5
#: The largest value of ``[generation] events_per_source_event``.
_MAX_EVENTS_PER_CONTEXT: Final = 100

_TRAIN_HINT = "train one that has not: scalr translator train --trained-until {limit}"


@dataclass(frozen=True)
class _KnownEvents:
    """Source events known by ``as_of``: first and last time, and their number in the window; and the first time of all events."""

    first: datetime | None
    last: datetime | None
    in_window: int
    first_ever: datetime | None


def plan_run(settings: Settings, *, version: int | None = None, cause: str = "planned") -> RunSpec:
    """Resolve the run of the settings' window (`resolve_run_spec`) and write it down in the ledger; the same plan again is the same run.

    Args:
        settings: The project's settings.
        version: Translator version.
        cause: Why there is this run, for the ledger's history.

    Raises:
        ScalrError: As `resolve_run_spec`.
    """
    spec = resolve_run_spec(settings, version=version)
    with Ledger.open(settings) as ledger:
        ledger.runs.begin(spec, cause=cause)
    return spec


def resolve_run_spec(settings: Settings, *, version: int | None = None) -> RunSpec:
    """Return the run of the configured window with every default resolved, without recording it.

    Defaults: the window ends with the data; it starts at the first source event (``backfill``) or a calendar day before its
    end (``causal``); ``as_of`` is the window's end; the translator is the latest version trained on nothing past the limit of the mode.

    Args:
        settings: The project's settings.
        version: Translator version.

    Raises:
        EmptyWindow: No source event of the window was known by ``as_of``.
        TrainedPastWindow: The translator has learned from what came after the window's start (``causal``) or ``as_of``
            (``backfill``).
        TranslatorNotFound: No such version, or none at all.
        TranslatorError: It learned from users who were erased, and ``[forgetting] grace_days`` are over; or its histories were of
            another length.
        TableNotFound: A stage was skipped.
    """
    from scalr_prod.lake import Lake
    from scalr_prod.workspace import open_duckdb, staging_folder

    options = settings.generation
    lake = Lake.open(settings)
    versions = lake.versions(TABLES_READ)
    with staging_folder(settings, "plan") as folder, open_duckdb(settings, folder) as connection:
        opened = register_events(connection, lake, versions)
        window = resolve_window(options, connection, lake, opened, timezone=settings.project.timezone)
        chosen = run_settings(settings)
        contexts, _ = count_contexts(connection, chosen, window, settings.home)
        limit = max_events_per_context(settings, connection, window, contexts)
        chosen = run_settings(settings, limit)
    if limit < options.events_per_source_event:
        logger.info(
            "[generation] max_synthetic_ratio = %g limits each of %d contexts to %d events instead of %d; the temperature is %g",
            options.max_synthetic_ratio,
            contexts,
            limit,
            options.events_per_source_event,
            chosen["generation"]["temperature"],
        )
    translator = _choose_version(settings, version, window.start if options.mode == "causal" else window.as_of)
    return RunSpec.create(
        mode=options.mode,
        window=window,
        seed=options.seed,
        translator=TranslatorPin(translator.version, translator.sha256, translator.trained_until),
        table_versions=versions,
        settings=chosen,
    )


def resolve_window(
    options: GenerationSettings,
    connection: DuckDBPyConnection,
    lake: Lake,
    opened: Mapping[Table, DeltaTable],
    *,
    timezone: str,
) -> RunWindow:
    """Return the window of the settings with every default resolved; see `resolve_run_spec` for the defaults.

    Args:
        options: ``[generation]`` mode, start, end and as_of.
        connection: A DuckDB connection in which ``events`` are the source events.
        lake: The project's lake.
        opened: Its events tables, see `register_events`.
        timezone: Time zone of calendar days.

    Raises:
        EmptyWindow: No source event of the window was known by ``as_of``.
    """
    from scalr_prod.translator import data_end

    end = options.end or data_end(lake, opened=opened)
    as_of = options.as_of or end
    # A causal run without a start covers the last day: it is the daily one.
    start = options.start or (add_days(end, -1, timezone) if options.mode == "causal" else None)
    found = _known_events(connection, start, end, as_of)
    if found.first is None or found.last is None or not found.in_window:
        raise _empty_window_error(start, end, as_of, found)
    return RunWindow(start or found.first, end, as_of)


def register_events(
    connection: DuckDBPyConnection, lake: Lake, versions: Mapping[str, int] | None = None
) -> dict[Table, DeltaTable]:
    """Make the lake's source events the view ``events``, and its target events ``target_events``.

    Args:
        connection: A DuckDB connection.
        lake: The lake.
        versions: Version of each table, by name; default: the latest.

    Returns:
        The two tables, opened.
    """
    opened = lake.open_tables((Table.SOURCE_EVENTS, Table.TARGET_EVENTS), versions=versions)
    connection.register("events", files_dataset(opened[Table.SOURCE_EVENTS]))
    connection.register("target_events", files_dataset(opened[Table.TARGET_EVENTS]))
    return opened


def max_events_per_context(settings: Settings, connection: DuckDBPyConnection, window: RunWindow, contexts: int) -> int:
    """Return how many events a context may get by ``[generation] max_synthetic_ratio``; at least one.

    Args:
        settings: The project's settings.
        connection: A DuckDB connection with the views of `register_events`.
        window: The run's window.
        contexts: Number of the run's contexts.
    """
    ratio = settings.generation.max_synthetic_ratio
    if not ratio or not contexts:
        return _MAX_EVENTS_PER_CONTEXT
    row = connection.execute(
        f"SELECT count(*) FROM target_events WHERE {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of",
        {"end": window.end, "as_of": window.as_of},
    ).fetchall()[0]
    return min(max(int(ratio * row[0] / contexts), 1), _MAX_EVENTS_PER_CONTEXT)


def run_settings(settings: Settings, events_per_context: int = _MAX_EVENTS_PER_CONTEXT) -> dict[str, Any]:
    """Return the settings that affect a run's rows, as stored in its specification.

    Args:
        settings: The project's settings.
        events_per_context: How many events a context may get, see `max_events_per_context`; fewer if the settings say so.

    Raises:
        InputError: No ingest has recorded the consent of a domain that requires it.
    """
    held, consent = Holdout.from_settings(settings), ConsentState.from_settings(settings)
    return {
        "generation": _row_settings(settings, events_per_context),
        "histories": {"length": settings.histories.length},
        "sources": list(settings.domains.source_names),
        **(held.to_run_settings() if held else {}),
        **(consent.to_run_settings() if consent else {}),
    }


def _row_settings(settings: Settings, events_per_context: int) -> dict[str, Any]:
    """Return the settings of generation that affect rows; how the work is divided (partitions, batches) does not."""
    options = settings.generation
    limited = min(events_per_context / options.events_per_source_event, 1.0)
    is_named = "generation.temperature" in settings.explicit_keys
    return {
        "contexts": options.contexts,
        "events_per_source_event": min(options.events_per_source_event, events_per_context),
        # Fewer events are drawn at a lower temperature, so that they are the likelier ones: half the temperature made up for drawing a
        # quarter of the events (docs/adr/0090).
        "temperature": options.temperature * (1.0 if is_named else max(limited, _MIN_TEMPERATURE_FACTOR)),
        "min_lift": options.min_lift,
        "exclude_consumed": options.exclude_consumed,
        "align": options.align,
        "align_buckets": options.align_buckets,
        # Omitted when unset, so that ids of runs from before this setting stay the same.
        **({} if options.shortlist is None else {"shortlist": options.shortlist}),
    }


def _known_events(connection: DuckDBPyConnection, start: datetime | None, end: datetime, as_of: datetime) -> _KnownEvents:
    row = connection.execute(
        f"""SELECT epoch_us(min({EVENT_TIMESTAMP}) FILTER (known)), epoch_us(max({EVENT_TIMESTAMP}) FILTER (known)),
                   count(*) FILTER (known AND {EVENT_TIMESTAMP} < $end AND ($start IS NULL OR {EVENT_TIMESTAMP} >= $start)),
                   epoch_us(min({EVENT_TIMESTAMP}))
            FROM (SELECT {EVENT_TIMESTAMP}, {CREATED_TIMESTAMP} <= $as_of AS known FROM events)""",
        {"start": start, "end": end, "as_of": as_of},
    ).fetchall()[0]
    return _KnownEvents(_to_datetime(row[0]), _to_datetime(row[1]), int(row[2]), _to_datetime(row[3]))


def _to_datetime(found: int | None) -> datetime | None:
    return None if found is None else micros_to_datetime(found)


def _empty_window_error(start: datetime | None, end: datetime, as_of: datetime, found: _KnownEvents) -> EmptyWindow:
    if found.first is None:
        known = f"no source event was known by {as_of.isoformat()}; the first one is of {found.first_ever}"
    else:
        known = f"those known by {as_of.isoformat()} range from {found.first} to {found.last}"
    window = f"[{start.isoformat() if start else 'first event'}, {end.isoformat()})"
    return EmptyWindow(
        f"no source event is in the window {window}; {known}",
        where="[generation] start, end, as_of",
        next_step="choose a window inside the data, or leave start, end and as_of out",
    )


def _choose_version(settings: Settings, version: int | None, limit: datetime) -> TranslatorVersion:
    """Return the requested version, or the latest one trained on nothing after the limit."""
    from scalr_prod.translator import models_dir, resolve_version

    options = settings.generation
    if version is None:
        with Ledger.open(settings) as ledger:
            usable = [record.version for record in ledger.models.find() if record.trained_until <= limit]
        # Retention removes old ones.
        on_disk = [number for number in usable if (models_dir(settings.home) / str(number)).is_dir()]
        version = max(on_disk, default=max(usable, default=None))
    translator = resolve_version(settings, version)
    if translator.trained_until > limit:
        edge = "the window's start" if options.mode == "causal" else "as_of"
        raise TrainedPastWindow(
            f"translator version {translator.version} has learned from events up to {translator.trained_until.isoformat()}, "
            f"past {edge} {limit.isoformat()} (mode = {options.mode})",
            where="[generation] mode, start, as_of",
            next_step=_TRAIN_HINT.format(limit=limit.isoformat()),
        )
    ensure_retrained_in_time(settings, translator.version)
    trained_length = translator.manifest.get("history_length", settings.histories.length)
    if trained_length != settings.histories.length:
        raise TranslatorError(
            f"translator version {translator.version} was trained on histories of {trained_length} events, not "
            f"{settings.histories.length}",
            where="[histories] length",
            next_step=f"train a new version: scalr translator train; or set [histories] length = {trained_length}",
        )
    return translator
