# SPDX-License-Identifier: Apache-2.0
"""Deletes in the online store of rows that a view's table no longer has. Feast itself can only overwrite rows or drop a view."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from feast_delta.columns import source_columns
from feast_delta.queries import RowFilter, join_keys, known_by_micros, optional_micros, source_path, window_sql
from feast_delta.scan import scan_delta
from scalr_prod.core.delta_log import diff_files
from scalr_prod.workspace import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    import pyarrow as pa
    from feast import FeatureStore, FeatureView


logger = logging.getLogger(__name__)

_BATCH = 10_000


def delete_missing_entities(
    store: FeatureStore,
    view: FeatureView,
    before: tuple[int | None, datetime],
    now: tuple[int | None, datetime],
    *,
    candidates: pa.Table,
) -> Literal["none", "some", "all"]:
    """Delete the entities that had a row in one state of the view's table and have none in the other.

    Args:
        store: Feast's store.
        view: The view; it has entities.
        before: Delta version and end time of what may be in the online store.
        now: Delta version and end time of what should be there.
        candidates: Keys of the candidate entities, see `find_changed_entities`.

    Returns:
        What was deleted. ``all``: nothing yet; the caller has to empty the view. That is so if a previous version cannot be read, or if
        there are entities to delete and the store is SQLite, where Feast cannot delete single rows.
    """
    from deltalake import DeltaTable

    options = store.config.offline_store.storage_options or None
    path = source_path(store.config, view.batch_source)
    if not candidates.num_rows or (before[1] <= now[1] and not _removed(path, options, before[0], now[0])):
        return "none"
    columns = source_columns(view.batch_source)
    keys = [columns.column_name(key) for key in join_keys(view)]
    with store.config.offline_store.open_session() as connection:
        connection.register("among", candidates)
        only = f"SEMI JOIN among USING ({', '.join(quote_identifier(key) for key in keys)})"
        for name, (version, end) in (("before", before), ("now", now)):
            try:
                table = DeltaTable(path, version=version, storage_options=options)
                limit_us = optional_micros(end) if known_by_micros(store.config, view.batch_source) is not None else None
                query = window_sql(
                    scan_delta(connection, table, name, [*keys, *columns.timestamp_columns]),
                    [(key, key) for key in keys],
                    RowFilter(columns.event, columns.created, end_us=optional_micros(end), known_by_micros=limit_us),
                )
                # Run the query here: a vacuumed version opens, and fails only when it is read.
                connection.execute(f"CREATE TEMP TABLE entities_{name} AS SELECT DISTINCT * FROM ({query}) {only}")
            except Exception as error:
                logger.warning(
                    "%s: table version %s cannot be read (%s); materializing the whole view again", view.name, version, error
                )
                return "all"
        missing = connection.sql("FROM entities_before EXCEPT FROM entities_now").to_arrow_table()
    if not missing.num_rows:
        return "none"
    if store.config.online_store.type == "redis":
        _delete_from_redis(store, view, _redis_keys(store, view, missing.to_pylist(), keys))
        return "some"
    return "all"


def _removed(path: str, options: dict[str, str] | None, before: int | None, now: int | None) -> bool:
    from deltalake import DeltaTable

    previous, current = (DeltaTable(path, version=version, storage_options=options) for version in (before, now))
    return bool(diff_files(previous, current).removed)


def delete_view_rows(store: FeatureStore, view: FeatureView, *, drop: bool = False) -> int | None:
    """Delete all rows of a view from the online store; return their number, or None if the store does not report it.

    Args:
        store: Feast's store.
        view: The view.
        drop: Drop the view's table too.
    """
    if store.config.online_store.type == "redis":
        return _delete_from_redis(store, view, iter_redis_keys(store, view))
    provider = store._get_provider()  # noqa: SLF001 - Feast has no public way to empty one view
    for delete, keep in (([view], []), ([], [] if drop else [view])):
        provider.update_infra(
            project=store.project,
            tables_to_delete=delete,
            tables_to_keep=keep,
            entities_to_delete=[],
            entities_to_keep=[],
            partial=True,
        )
    return None


def _redis_keys(store: FeatureStore, view: FeatureView, rows: list[dict[str, Any]], columns: list[str]) -> Iterator[bytes]:
    """Yield the Redis keys of entities, in the project of this store."""
    from feast.infra.online_stores.helpers import _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    names = list(join_keys(view))
    values = [
        python_values_to_proto_values([row[column] for row in rows], types[name])
        for name, column in zip(names, columns, strict=True)
    ]
    for entity in zip(*values, strict=True):
        key = EntityKey(join_keys=names, entity_values=list(entity))
        yield _redis_key(store.project, key, entity_key_serialization_version=store.config.entity_key_serialization_version)


def iter_redis_keys(store: FeatureStore, view: FeatureView) -> Iterator[bytes]:
    """Yield the Redis keys of this project whose entities have the view's join keys.

    A key is the serialized entity followed by the project's name. Feast's own deletion matches the suffix only, so that ``shop``
    also matches the keys of a project ``my_shop``. Here the part before the name must be exactly one entity.
    """
    from feast.infra.key_encoding_utils import serialize_entity_key_prefix

    names = [column.name for column in view.entity_columns]
    prefix, project = serialize_entity_key_prefix(names), store.project.encode()
    pattern = b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in prefix) + b"*"
    for key in redis_client(store).scan_iter(match=pattern, count=_BATCH):
        if key.startswith(prefix) and key.endswith(project) and _is_entity(key[: len(key) - len(project)], len(names)):
            yield key


def _is_entity(serialised: bytes, names: int) -> bool:
    from feast.infra.key_encoding_utils import deserialize_entity_key

    try:
        return len(deserialize_entity_key(serialised).entity_values) == names
    except Exception:
        return False


def _delete_from_redis(store: FeatureStore, view: FeatureView, keys: Iterable[bytes]) -> int:
    """Delete the view's fields of these keys and return how many rows there were; Redis drops keys without fields."""
    from feast.infra.online_stores.helpers import _mmh3

    fields = [_mmh3(f"{view.name}:{feature.name}") for feature in view.features]
    found = 0
    remaining = iter(keys)
    while batch := list(islice(remaining, _BATCH)):
        with redis_client(store).pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.hdel(key, f"_ts:{view.name}")
                pipe.hdel(key, *fields)
            found += sum(pipe.execute()[::2])
    return found


def sqlite_path(store: FeatureStore) -> str:
    """Return the path of a SQLite online store."""
    online = store._get_provider().online_store  # noqa: SLF001 - Feast has no public way to its file
    return str(online._get_db_path(store.config))  # noqa: SLF001


def redis_client(store: FeatureStore) -> Any:
    """Return the client of a Redis online store."""
    online = store._get_provider().online_store  # noqa: SLF001 - Feast has no public way to its connection
    return online._get_client(store.config.online_store)  # noqa: SLF001
