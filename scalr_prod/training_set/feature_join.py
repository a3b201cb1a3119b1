# SPDX-License-Identifier: Apache-2.0
"""Point-in-time features of labelled rows, strictly before each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.training_set.spine import KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.features import ExternalJoin


def join_features(
    store: Any,
    rows: pa.Table,
    references: str | Sequence[str],
    *,
    external: ExternalJoin | None = None,
    connection: DuckDBPyConnection | None = None,
) -> pa.Table:
    """Join the features of each row as of the last microsecond before its label, in row order.

    Args:
        store: The project's Feast store.
        rows: ``user_id``, ``item_id`` and ``event_timestamp``, the label's time.
        references: A service, or ``view:feature`` references.
        external: Joins external features; their columns come last.
        connection: An open DuckDB connection whose database runs the join; default: a new one.

    Raises:
        FeatureStoreError: A table cannot be read, or the join returned other rows than requested.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from scalr_prod.features import join_point_in_time

    stamp = rows.schema.field(EVENT_TIMESTAMP).type
    # Strictly before the label in event and creation time: the store shows what happened and was known up to the spine's time.
    before = pc.subtract(rows.column(EVENT_TIMESTAMP).cast(pa.int64()), 1).cast(stamp)
    spine = pa.table([rows.column(USER_ID), rows.column(ITEM_ID), before], names=list(KEYS))
    found = join_point_in_time(store, spine, references, connection=connection)
    features = [(field, found.column(field.name)) for field in found.schema if field.name not in KEYS]
    if external is not None:
        joined = external(spine, connection)
        features += [(field, joined.column(field.name)) for field in joined.schema]
    schema = pa.schema([_plain(field) for field, _ in features])
    columns = [column.cast(field.type) for field, (_, column) in zip(schema, features, strict=True)]
    return pa.table(columns, schema=schema)


def _plain(field: pa.Field) -> pa.Field:
    """Convert a field to types that every Parquet reader supports: no 'large' types, timestamps in UTC microseconds."""
    import pyarrow as pa

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(kind):
            return pa.timestamp("us", tz="UTC")
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        return kind

    return pa.field(field.name, plain(field.type))
