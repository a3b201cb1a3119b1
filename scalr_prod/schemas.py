# SPDX-License-Identifier: Apache-2.0
"""Schemas of the lake's tables.

With one source domain, its items keep the ids of their log. With several, ``source_events``, ``source_items`` and ``source_user_history``
identify an item by one text, ``<domain>:<id>``, so that equal ids of two domains stay two items. A generated event has both in separate
columns, ``source_domain`` and ``source_item_id``.

Generated events have their source item and source time (`generated_event_schema`). Published events do not: a row of
``synthetic_event_provenance`` with the same ``run_id`` and ``event_id`` has them.

All timestamps are UTC with microsecond resolution. ``event_timestamp`` is the event time, ``created_timestamp`` the knowledge time: no
reader may use a row before it. Ids keep the type that they came with: int64 or string.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pyarrow as pa


USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
EVENT_TIMESTAMP: Final = "event_timestamp"
CREATED_TIMESTAMP: Final = "created_timestamp"
EVENT_ID: Final = "event_id"
#: The model whose recommendation led to a target event; null: none did.
RECOMMENDED_BY: Final = "recommended_by"
#: Optional columns of events tables: present where a log's settings map them; null in rows of other logs.
OPTIONAL_EVENT_COLUMNS: Final = (EVENT_ID, "event_type", "value", RECOMMENDED_BY)

#: Column of a training set with the split that a row belongs to, if there are several.
SPLIT: Final = "split"
#: The split that a model is trained on, and the only one with synthetic rows.
TRAIN: Final = "train"

#: Columns that tell a synthetic row from a real one: never offered to a model as features.
PROVENANCE_COLUMNS: Final = (
    "event_id",
    "probability",
    "source_domain",
    "source_item_id",
    "source_event_timestamp",
    "translator_version",
    "run_id",
    "is_synthetic",
    "held_out",
    "canary",
)

#: Columns of a generated event that repeat its user's source log; published events have them in ``synthetic_event_provenance``.
SOURCE_COLUMNS: Final = ("source_item_id", "source_event_timestamp")

#: Separates domain and id; no domain's name can contain it.
_APART: Final = ":"

IdType = Literal["int64", "string"]
Domain = Literal["source", "target"]


class Table(StrEnum):
    """Tables of the lake; a Feast feature view has the name of its table."""

    SOURCE_EVENTS = "source_events"
    TARGET_EVENTS = "target_events"
    SOURCE_ITEMS = "source_items"
    TARGET_ITEMS = "target_items"
    SOURCE_USER_HISTORY = "source_user_history"
    TARGET_USER_HISTORY = "target_user_history"
    TARGET_ITEM_STATS = "target_item_stats"
    SYNTHETIC_TARGET_EVENTS = "synthetic_target_events"
    SYNTHETIC_EVENT_PROVENANCE = "synthetic_event_provenance"
    SYNTHETIC_QUARANTINE = "synthetic_quarantine"

    @staticmethod
    def events(domain: Domain) -> Table:
        """Return the events table of a domain."""
        return Table.SOURCE_EVENTS if domain == "source" else Table.TARGET_EVENTS

    @staticmethod
    def items(domain: Domain) -> Table:
        """Return the item catalogue of a domain."""
        return Table.SOURCE_ITEMS if domain == "source" else Table.TARGET_ITEMS

    @staticmethod
    def history(domain: Domain) -> Table:
        """Return the user-history table of a domain."""
        return Table.SOURCE_USER_HISTORY if domain == "source" else Table.TARGET_USER_HISTORY


def table_schema(
    table: Table, *, user: IdType, item: IdType, source_item: IdType | None = None, extras: Collection[str] = ()
) -> pa.Schema:
    """Return the Arrow schema of a table for these id types.

    Args:
        table: Which table.
        user: Type of ``user_id``.
        item: Type of ``item_id`` in the table's own domain.
        source_item: Type of ``source_item_id`` (quarantine and provenance only; default: that of ``item``).
        extras: Which of `OPTIONAL_EVENT_COLUMNS` an events table has.
    """
    import pyarrow as pa

    timestamp = pa.timestamp("us", tz="UTC")
    types = {"int64": pa.int64(), "string": pa.string()}
    user_t, item_t, source_t = types[user], types[item], types[source_item or item]

    def required(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    clocks = [required(EVENT_TIMESTAMP, timestamp)]
    created = [required(CREATED_TIMESTAMP, timestamp)]
    source_columns = [required("source_item_id", source_t), required("source_event_timestamp", timestamp)]
    match table:
        case Table.SOURCE_EVENTS | Table.TARGET_EVENTS:
            fields = [
                required(USER_ID, user_t),
                required(ITEM_ID, item_t),
                *clocks,
                *created,
                required("weight", pa.float32()),
                *(
                    pa.field(name, pa.float64() if name == "value" else pa.string())
                    for name in OPTIONAL_EVENT_COLUMNS
                    if name in extras
                ),
            ]
        case Table.SOURCE_ITEMS | Table.TARGET_ITEMS:
            fields = [
                required(ITEM_ID, item_t),
                pa.field("title", pa.string()),
                pa.field("category", pa.string()),
                pa.field("value", pa.float64()),
            ]
        case Table.SOURCE_USER_HISTORY | Table.TARGET_USER_HISTORY:
            fields = [
                required(USER_ID, user_t),
                *clocks,
                required("item_ids", pa.list_(item_t)),
                required("event_timestamps", pa.list_(timestamp)),
                required("event_count", pa.int64()),
                *created,
            ]
        case Table.TARGET_ITEM_STATS:
            fields = [
                required(ITEM_ID, item_t),
                *clocks,
                required("first_seen", timestamp),
                required("event_count", pa.int64()),
                required("trailing_event_count", pa.int64()),
                *created,
            ]
        case Table.SYNTHETIC_TARGET_EVENTS | Table.SYNTHETIC_QUARANTINE:
            fields = [
                required("event_id", pa.string()),
                required(USER_ID, user_t),
                required(ITEM_ID, item_t),
                *clocks,
                required("probability", pa.float32()),
                required("weight", pa.float32()),
                required("source_domain", pa.string()),
                *(source_columns if table is Table.SYNTHETIC_QUARANTINE else []),
                required("translator_version", pa.int64()),
                required("run_id", pa.string()),
                *created,
            ]
            if table is Table.SYNTHETIC_QUARANTINE:
                fields = [*(f.with_nullable(nullable=True) for f in fields), required("reason", pa.string())]
        case Table.SYNTHETIC_EVENT_PROVENANCE:
            fields = [
                required(EVENT_ID, pa.string()),
                required(USER_ID, user_t),
                *clocks,
                pa.field("source_domain", pa.string()),  # null in rows of the first versions of this package
                *source_columns,
                required("run_id", pa.string()),
                *created,
            ]
    return pa.schema(fields)


def generated_event_schema(*, user: IdType, item: IdType, source_item: IdType) -> pa.Schema:
    """Return the Arrow schema of generated events before publication; arguments as in `table_schema`."""
    import pyarrow as pa

    quarantine = table_schema(Table.SYNTHETIC_QUARANTINE, user=user, item=item, source_item=source_item)
    return pa.schema([column.with_nullable(nullable=False) for column in quarantine if column.name != "reason"])


def id_type_of(schema: pa.Schema, column: str) -> IdType:
    """Return the type of an id column.

    Raises:
        TypeError: Neither int64 nor string; ingest rejects such columns.
    """
    import pyarrow as pa

    kind = schema.field(column).type
    if pa.types.is_int64(kind):
        return "int64"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    raise TypeError(f"{column} contains {kind}, expected int64 or string")


def item_id_prefix(domain: str) -> str:
    """Return the prefix of a domain's item ids in the source tables, if there are several source domains."""
    return f"{domain}{_APART}"


def source_domain_sql(item: str, names: Sequence[str]) -> str:
    """Return a DuckDB expression for the domain of an item of the source tables.

    Args:
        item: An expression of its id there.
        names: Names of all source domains.
    """
    return f"split_part({item}, '{_APART}', 1)" if len(names) > 1 else f"'{names[0]}'"


def source_item_id_sql(item: str, names: Sequence[str], kind: IdType) -> str:
    """Return a DuckDB expression for the id that a source item has in its own log, as ``kind``; arguments as in `source_domain_sql`."""
    if len(names) == 1:
        return item
    return f"CAST(substr({item}, strpos({item}, '{_APART}') + 1) AS {'BIGINT' if kind == 'int64' else 'VARCHAR'})"


def source_item_key_sql(domain: str, item: str, names: Sequence[str]) -> str:
    """Return a DuckDB expression for an item's id in the source tables, from expressions of its domain and of its id in the log."""
    return f"{domain} || '{_APART}' || {item}" if len(names) > 1 else item
