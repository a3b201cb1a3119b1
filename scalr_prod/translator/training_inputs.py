# SPDX-License-Identifier: Apache-2.0
"""What decides a translator version: the recipe of this package, settings, and the rows of both logs. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.calendar import add_days
from scalr_prod.lake import Lake
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, RECOMMENDED_BY, Table
from scalr_prod.translator.data.domain_events import EventWeighting
from scalr_prod.translator.data.event_log import data_end, target_weighting, training_consent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from scalr_prod.config import Settings


EVENT_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)

#: Version of the recipe. Raise it whenever the same data and settings give other tensors, or other metrics that the quality gate reads.
RECIPE_VERSION: Final = 19


def default_trained_until(settings: Settings) -> datetime:
    """Return the ``trained_until`` that a run with these settings needs.

    In ``backfill`` mode it is ``[generation] as_of``, else ``end``, else the end of the data. In ``causal`` mode it is ``start``, else a
    calendar day before ``end``, else a calendar day before the end of the data.
    """
    generation = settings.generation
    if generation.mode == "causal":
        end = generation.end or data_end(Lake.open(settings))
        return generation.start or add_days(end, -1, settings.project.timezone)
    return generation.as_of or generation.end or data_end(Lake.open(settings))


def table_versions(settings: Settings) -> dict[str, int]:
    """Return the Delta versions of the tables that a training reads."""
    lake = Lake.open(settings)
    opened = lake.open_tables((Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY))
    opened |= lake.find_tables([Table.TARGET_ITEMS])
    return {table.value: delta.version() for table, delta in opened.items()}


def count_events(settings: Settings, until: datetime, versions: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the id of each events table, and the number of its events that had happened and were known by a time.

    Args:
        settings: The project's settings.
        until: Nothing from this instant on is counted.
        versions: See `table_versions`.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    lake = Lake.open(settings)
    limit = pa.scalar(until, pa.timestamp("us", tz="UTC"))
    known = (ds.field(EVENT_TIMESTAMP) < limit) & (ds.field(CREATED_TIMESTAMP) <= limit)
    return {
        table.value: {"id": str(opened.metadata().id), "rows": opened.to_pyarrow_dataset().count_rows(filter=known)}
        for table, opened in lake.open_tables(EVENT_TABLES, versions=versions).items()
    }


def training_inputs(settings: Settings, until: datetime) -> dict[str, Any]:
    """Return everything that decides a version, except the rows of the tables, as plain JSON values."""
    content: dict[str, Any] = {"recipe": RECIPE_VERSION, "until": until.isoformat()}
    content["histories"] = settings.histories.model_dump(mode="json", include={"length", "late_step_s"})
    content["generation"] = settings.generation.model_dump(mode="json", include={"exclude_consumed"})
    content["settings"] = settings.translator.recipe()
    if plugins := [name for name in settings.translator.estimators if name not in {"popularity", *ESTIMATORS.builtin}]:
        from scalr_prod.translator.estimators.bundled_source import bundle_sources

        content["estimators"] = {name: [one.version, one.sha256] for name, one in bundle_sources(plugins).items()}
    weighting = target_weighting(settings)
    content |= {"types": weighting.types} if weighting.types else {}
    content |= {"recommended": "drop"} if weighting.drops_recommended else {}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def compute_fingerprint(
    settings: Settings, inputs: Mapping[str, Any], versions: Mapping[str, int], until: datetime, folder: Path
) -> str:
    """Return a hash of everything that decides a version. Reads all rows of the logs.

    Args:
        settings: The project's settings.
        inputs: See `training_inputs`.
        versions: See `table_versions`.
        until: Nothing from this instant on is read.
        folder: Folder for data that does not fit in memory.
    """
    lake, content = Lake.open(settings), dict(inputs)
    if (consent := training_consent(settings)) is not None:
        content |= consent.to_run_settings()
    for name, version in versions.items():
        if name != Table.SOURCE_USER_HISTORY:  # derived from the events, which training checks
            content[name] = _digest(settings, lake, Table(name), version, until, folder)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(settings: Settings, lake: Lake, table: Table, version: int, until: datetime, folder: Path) -> list[str]:
    """Return the number of rows known by ``until`` and the sum of their hashes, which do not depend on row order or commits."""
    from scalr_prod.core.delta_log import arrow_schema
    from scalr_prod.workspace import create_delta_view, open_duckdb

    is_catalogue = table is Table.TARGET_ITEMS
    row = "item_id, value" if is_catalogue else "user_id, item_id, epoch_us(event_timestamp), epoch_us(created_timestamp)"
    weighting = target_weighting(settings) if table is Table.TARGET_EVENTS else EventWeighting()
    row += ", event_type" if weighting.types else ""
    opened = lake.open_table(table, version=version)
    # The table has the column from the first ingest on that maps it.
    row += (
        f", {RECOMMENDED_BY} IS NOT NULL"
        if weighting.drops_recommended and RECOMMENDED_BY in arrow_schema(opened).names
        else ""
    )
    known = "" if is_catalogue else " WHERE event_timestamp < $1 AND created_timestamp <= $1"
    query = f"SELECT count(*), sum(md5_number_lower(concat_ws('|', {row}))::HUGEINT) FROM events{known}"
    with open_duckdb(settings, folder) as duck:
        create_delta_view(duck, "events", opened)
        totals = duck.execute(query, None if is_catalogue else [until]).fetchall()[0]
    return [str(value) for value in totals]
