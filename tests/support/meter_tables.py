"""A table of meters that is none of the package's, and Feast over it, for tests of the offline store.

Like the tests of `feast_delta`, it imports nothing of the package above: `make feast-matrix` runs them without it.
"""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.repo_config import RepoConfig
from feast.types import Float64, String

from feast_delta import DeltaOfflineStoreConfig

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def hours(*numbers: float) -> list[datetime]:
    return [T0 + timedelta(hours=number) for number in numbers]


#: Two meters, read every hour; the second reading of the first one was corrected two days later.
READINGS = {
    "meter_no": ["m1", "m1", "m1", "m2"],
    "read_at": hours(1, 2, 2, 3),
    "stored_at": hours(1, 2, 50, 3),
    "kwh_total": [10.0, 20.0, 25.0, 30.0],
    "phase": ["x", "y", "z", "x"],
}
RENAMED = {"meter_no": "meter", "read_at": "at", "stored_at": "known", "kwh_total": "kwh"}
METER = Entity(name="meter", join_keys=["meter"], value_type=ValueType.STRING)
SCHEMA = [Field(name="meter", dtype=String), Field(name="kwh", dtype=Float64), Field(name="phase", dtype=String)]


def store_in(folder: Path, kind: type[DeltaOfflineStoreConfig] = DeltaOfflineStoreConfig, **options) -> FeatureStore:
    """Feast with the Delta offline store, by default with the strict clock; ``readings`` may be written to."""
    options = {"knowledge_time": "created", "writable": [str(folder / "readings")]} | options
    config = RepoConfig(
        project="meters",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store=kind(threads=1, memory_mb=128, **options),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
    )
    config.repo_path = folder
    return FeatureStore(config=config, repo_path=str(folder))


def skip_unless_feast_has(*arguments: str) -> None:
    """Skip the rest of a test whose arguments `get_historical_features` of an earlier Feast does not have."""
    if missing := set(arguments) - set(inspect.signature(FeatureStore.get_historical_features).parameters):
        pytest.skip(f"Feast {version('feast')} has no {', '.join(missing)}")


def readings(folder: Path, **tags: str) -> FileSource:
    """A table whose every column but one has another name in Feast."""
    write_deltalake(str(folder / "readings"), pa.table(READINGS))
    return source_of(folder / "readings", **tags)


def source_of(path: Path, **tags: str) -> FileSource:
    return FileSource(
        name=path.name,
        path=str(path),
        file_format=DeltaFormat(),
        timestamp_field="at",
        created_timestamp_column="known",
        field_mapping=RENAMED,
        tags=tags,
    )


def view_of(source, ttl: timedelta = timedelta(0), name: str = "power", **more) -> FeatureView:
    return FeatureView(name=name, entities=[METER], schema=SCHEMA, source=source, ttl=ttl, **more)
