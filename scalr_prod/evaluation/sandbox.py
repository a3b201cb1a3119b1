# SPDX-License-Identifier: Apache-2.0
"""Isolated evaluation home: a lake with only the data known by the cutoff, without the hidden users' target events.

This prevents leakage by construction: translator, filters, gate and downstream models read this home and no other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.config import ExperimentSettings, FeastSettings, LedgerSettings, LineageSettings, MetricsSettings
from scalr_prod.core.hashing import stable_hash
from scalr_prod.lake import Lake, check_domains
from scalr_prod.schemas import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    id_type_of,
    item_id_prefix,
    table_schema,
)
from scalr_prod.workspace import ConsentState, claim_home, copy_consent

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa
    import pyarrow.dataset as ds
    from numpy.typing import NDArray

    from scalr_prod.config import Settings


_COPIED_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS)
_HASH_BUCKETS: Final = 10_000


@dataclass(frozen=True)
class Sandbox:
    """An isolated home and its cutoff.

    Attributes:
        settings: Settings with a lake, ledger, feature store and models of its own; runs are backfills up to the cutoff, scored in process.
        cutoff: The home holds no events from this time on, and none that became known after it (UTC).
    """

    settings: Settings
    cutoff: datetime


def choose_hidden_users(users: pa.Array, fraction: float, *, salt: str) -> NDArray[np.bool_]:
    """Choose by salted hash the users whose target history is hidden: bool [U]."""
    salted = [f"{salt}|{user}" for user in users.to_pylist()]
    chosen: NDArray[np.bool_] = stable_hash(salted) % np.uint64(_HASH_BUCKETS) < np.uint64(round(fraction * _HASH_BUCKETS))
    return chosen


def create_sandbox(
    settings: Settings, cutoff: datetime, hidden: pa.Array, *, name: str, excluded_source: str | None = None
) -> Sandbox:
    """Create the isolated home, or reuse the one that was made from the same tables, cutoff, users and source domains.

    Args:
        settings: The project's settings; its lake is only read.
        cutoff: Events from this time on, or known only after it, are excluded (UTC).
        hidden: Users whose target events are excluded.
        name: Prefix of the folder's name under ``<home>/evaluations``.
        excluded_source: Source domain to exclude, if there are several.

    Raises:
        TableNotFound: Nothing was ingested yet.
        InputError: No ingest has recorded the consent of a domain that requires it.
        DomainsMixed: The lake's tables belong to other domains.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    source = Lake.open(settings)
    check_domains(settings, source)
    opened = {table.value: source.open_table(table) for table in _COPIED_TABLES}
    versions = {name: table.version() for name, table in opened.items()}
    ids = [table.metadata().id for table in opened.values()]  # versions of a recreated lake start at 0 again
    digest = hashlib.sha256(repr(hidden.to_pylist()).encode()).hexdigest()
    consent = ConsentState.from_settings(settings)
    others = [*([excluded_source] if excluded_source else []), *([consent.to_run_settings()] if consent else [])]
    inputs = json.dumps([versions, ids, cutoff.isoformat(), digest, *others])
    home = settings.home / "evaluations" / f"{name}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    isolated = _sandbox_settings(settings, home, cutoff)
    claim_home(isolated)
    if consent is not None:
        copy_consent(settings.home, isolated.home, consent)
    lake = Lake.open(isolated)
    known = (ds.field(EVENT_TIMESTAMP) < cutoff) & (ds.field(CREATED_TIMESTAMP) <= cutoff)
    for table in _COPIED_TABLES:
        rows = source.dataset(table, version=versions[table.value])
        where = known if table in {Table.SOURCE_EVENTS, Table.TARGET_EVENTS} else None
        if table == Table.TARGET_EVENTS:
            where &= ~ds.field(USER_ID).isin(hidden)
        if excluded_source is not None and table in {Table.SOURCE_EVENTS, Table.SOURCE_ITEMS}:
            others = ~pc.starts_with(ds.field(ITEM_ID), pattern=item_id_prefix(excluded_source))
            where = others if where is None else where & others
        lake.create(table, rows.schema, description=source.description(table) or None)
        lake.append(table, _scan(rows, where), key=f"copy of {inputs}")
    _create_derived_tables(lake, source)
    return Sandbox(isolated, cutoff)


def _scan(rows: ds.Dataset, where: Any) -> pa.RecordBatchReader:
    return rows.scanner(filter=where).to_reader()


def _create_derived_tables(lake: Lake, source: Lake) -> None:
    """Create the empty tables that are derived from the copied ones."""
    user = id_type_of(lake.schema(Table.TARGET_EVENTS), USER_ID)
    items = {domain: id_type_of(lake.schema(Table.events(domain)), ITEM_ID) for domain in ("source", "target")}
    source_item = id_type_of(source.schema(Table.SYNTHETIC_QUARANTINE), "source_item_id")
    for domain, item in items.items():
        lake.create(Table.history(domain), table_schema(Table.history(domain), user=user, item=item))  # type: ignore[arg-type]
    lake.create(Table.TARGET_ITEM_STATS, table_schema(Table.TARGET_ITEM_STATS, user=user, item=items["target"]))
    for table in (Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE, Table.SYNTHETIC_QUARANTINE):
        schema = table_schema(table, user=user, item=items["target"], source_item=source_item)
        lake.create(table, schema)
        lake.add_missing_columns(table, schema)  # add columns that a home made by an older version lacks


def _sandbox_settings(settings: Settings, home: Any, cutoff: datetime) -> Settings:
    project = settings.project.model_copy(update={"home": str(home), "lake": None, "storage_options": {}})
    generation = settings.generation.model_copy(
        update={"mode": "backfill", "start": None, "end": cutoff, "as_of": cutoff, "lookback": 0.0}
    )
    return settings.model_copy(
        update={
            "project": project,
            "generation": generation,
            "training_set": settings.training_set.model_copy(update={"start": None, "cutoff": cutoff, "splits": {}}),
            "serving": settings.serving.model_copy(update={"scorer": "local", "url": None, "repository": None}),
            "feast": FeastSettings(),
            "ledger": LedgerSettings(),
            "experiment": ExperimentSettings(),  # no holdout in an offline evaluation
            "metrics": MetricsSettings(),
            "lineage": LineageSettings(),
        }
    )
