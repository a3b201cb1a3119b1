# SPDX-License-Identifier: Apache-2.0
"""Erasure of users or items from the online store; its keys are serialized ids."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from feast_delta.queries import join_keys
from scalr_prod.features.client import capture_feast_output, open_feature_store, translate_feast_errors
from scalr_prod.features.online_deletes import iter_redis_keys, redis_client, sqlite_path
from scalr_prod.features.repository import apply_feature_repo, lock_repository

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feast import FeatureStore, FeatureView

    from scalr_prod.config import Settings


def erase_entities(settings: Settings, join_key: str, ids: Sequence[int | str]) -> int:
    """Delete entities from every view of the project's online store; return how many keys were deleted.

    Args:
        settings: The project's settings.
        join_key: ``user_id`` or ``item_id``.
        ids: Their ids, in the lake's type.

    Raises:
        FeatureStoreError: The store cannot be reached.
    """
    if not (settings.feast_repo / "feature_store.yaml").is_file():
        return 0
    # After a move of the project's home, the repository has the old paths until it is applied.
    apply_feature_repo(settings)
    with translate_feast_errors(settings), lock_repository(settings.feast_repo), capture_feast_output("forget"):
        store = open_feature_store(settings)
        views = [view for view in store.list_feature_views() if join_key in join_keys(view)]
        if store.config.online_store.type == "redis":
            keys = {key for view in views for key in _redis_keys(store, view, join_key, ids)}
            return sum(redis_client(store).delete(key) for key in keys)
        return _forget_in_sqlite(store, views, join_key, ids)


def _redis_keys(store: FeatureStore, view: FeatureView, join_key: str, users: Sequence[int | str]) -> Iterator[bytes]:
    from feast.infra.online_stores.helpers import _redis_key

    if list(join_keys(view)) == [join_key]:
        version = store.config.entity_key_serialization_version
        yield from (
            _redis_key(store.project, key, entity_key_serialization_version=version) for key in _entities(view, join_key, users)
        )
        return
    wanted, tail = set(map(str, users)), len(store.project.encode())
    for key in iter_redis_keys(store, view):
        if _id_of(key[:-tail], join_key, store) in wanted:
            yield key


def _forget_in_sqlite(store: FeatureStore, views: list[FeatureView], join_key: str, users: Sequence[int | str]) -> int:
    from feast.infra.key_encoding_utils import serialize_entity_key

    version, wanted, found = store.config.entity_key_serialization_version, set(map(str, users)), 0
    with closing(sqlite3.connect(sqlite_path(store), timeout=60, isolation_level=None)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for view in views:
            # Feast appends a version suffix for views with several versions.
            own = [
                name
                for name in tables
                if name == f"{store.project}_{view.name}" or name.startswith(f"{store.project}_{view.name}_v")
            ]
            for table in own:
                if list(join_keys(view)) == [join_key]:
                    keys = [
                        serialize_entity_key(key, entity_key_serialization_version=version)
                        for key in _entities(view, join_key, users)
                    ]
                else:
                    every = db.execute(f'SELECT DISTINCT entity_key FROM "{table}"')
                    keys = [key for (key,) in every if _id_of(key, join_key, store) in wanted]
                for key in keys:
                    found += bool(db.execute(f'DELETE FROM "{table}" WHERE entity_key = ?', (key,)).rowcount)
        # Deleted rows stay in free pages and in the write-ahead log until both are rewritten.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found


def _entities(view: FeatureView, join_key: str, users: Sequence[int | str]) -> Iterator[Any]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    kind = next(column.dtype.to_value_type() for column in view.entity_columns if column.name == join_key)
    for value in python_values_to_proto_values(list(users), kind):
        yield EntityKey(join_keys=[join_key], entity_values=[value])


def _id_of(serialised: bytes, join_key: str, store: FeatureStore) -> str | None:
    """Return the id under one join key of a serialized entity."""
    from feast.infra.key_encoding_utils import deserialize_entity_key

    key = deserialize_entity_key(serialised, entity_key_serialization_version=store.config.entity_key_serialization_version)
    for name, value in zip(key.join_keys, key.entity_values, strict=True):
        if name == join_key:
            return str(getattr(value, value.WhichOneof("val")))
    return None
