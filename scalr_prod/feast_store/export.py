# SPDX-License-Identifier: Apache-2.0
"""Definitions for a feature repository of somebody else's: published synthetic events and source histories, read by Feast's own stores.

Nothing in what is written needs this package. Stores that know Delta's log read the lake's tables as they are. Feast's file store reads
a folder's Parquet files without the log, replaced and rolled-back rows too, and its DuckDB store has to download an extension for Delta:
for these, the rows that the tables hold now are copied.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scalr_prod.binding import open_own
from scalr_prod.contracts import CREATED_TIMESTAMP, EVENT_TIMESTAMP, USER_ID, Table
from scalr_prod.errors import FeatureStoreError
from scalr_prod.jsonable import Jsonable
from scalr_prod.ownership import claim
from scalr_prod.whole import whole

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.lake import Lake
    from scalr_prod.settings import Settings

__all__ = ["ExportFormat", "FeastExport", "export_definitions"]

logger = logging.getLogger(__name__)

ExportFormat = Literal["delta", "parquet"]

_DESCRIPTIONS: Final = {
    Table.SYNTHETIC_TARGET_EVENTS: "Published synthetic target events, translated from source events.",
    Table.SOURCE_USER_HISTORY: "A user's last source events, as of each of them.",
}
#: Feast's file stores, by the names that settings give them; a repository that names none has the first one.
_FILE_STORES: Final = {None, "file", "dask", "duckdb"}


@dataclass(frozen=True)
class FeastExport(Jsonable):
    """What was written.

    Attributes:
        path: The Python file.
        format: ``delta``: the sources are the lake's tables, which follow every publication; ``parquet``: copies of their rows.
        views: Names of the feature views.
        rows: Rows of each view, as of now.
        versions: Delta version of each view's table, as of now.
    """

    path: str
    format: ExportFormat
    views: list[str]
    rows: dict[str, int]
    versions: dict[str, int]


def export_definitions(settings: Settings, folder: Path, form: ExportFormat | None = None) -> FeastExport:
    """Write ``scalr_<project>.py`` into a folder of a feature repository: an entity, and a view of each table.

    Args:
        settings: The project's settings; ``[feast.export]`` has the names.
        folder: A folder of the repository; made where it is not there.
        form: ``delta`` or ``parquet`` (into ``scalr_<project>`` beside the file). Default: ``parquet`` where the repository's offline store
            is Feast's file or DuckDB store, else ``delta``.

    Raises:
        TableNotFound: Nothing was published yet.
        DomainsMixed: The lake's tables were made for other domains.
        ForeignFiles: A file or folder of that name lies there that this command did not make.
        FeatureStoreError: No format is given, and there is no ``feature_store.yaml`` to tell it from; or nothing can be written there.
    """
    form = form or _form_of(folder)
    lake = open_own(settings)
    name = f"scalr_{settings.project_name}"
    versions = {table: lake.version(table) for table in _DESCRIPTIONS}
    try:
        claim(folder, f"{name}-export", setting=None, names=(f"{name}.py", name), former=lambda _: False)
        rows = {
            table: _copy(lake, table, version, folder / name) if form == "parquet" else _count(lake, table, version)
            for table, version in versions.items()
        }
        _write(folder / f"{name}.py", _definitions(settings, lake, form, versions))
    except OSError as error:
        raise FeatureStoreError(
            f"cannot be written to: {error.strerror or error}",
            where=str(folder),
            next_step="mend the cause and repeat the command: what lies there is written anew",
        ) from error
    names = {table: f"{_prefix(settings)}{table.value}" for table in _DESCRIPTIONS}
    logger.info("wrote definitions of %s to %s", ", ".join(names.values()), folder / f"{name}.py")
    return FeastExport(
        str(folder / f"{name}.py"),
        form,
        list(names.values()),
        {names[table]: count for table, count in rows.items()},
        {names[table]: version for table, version in versions.items()},
    )


def _form_of(folder: Path) -> ExportFormat:
    """What the offline store of the repository reads aright."""
    import yaml

    resolved = folder.resolve()
    path = next(
        (at / "feature_store.yaml" for at in (resolved, *resolved.parents) if (at / "feature_store.yaml").is_file()), None
    )
    if path is None:
        raise FeatureStoreError(
            "no feature_store.yaml lies here or above, so that its offline store is not known",
            where=str(folder),
            next_step="name a folder of the feature repository, or give --format parquet (Feast's file and DuckDB stores) or delta",
        )
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise FeatureStoreError(
            "cannot be read as YAML", where=str(path), next_step="mend it, or give --format parquet or delta"
        ) from error
    store = told.get("offline_store") if isinstance(told, dict) else None
    kind = store.get("type") if isinstance(store, dict) else store
    return "parquet" if kind in _FILE_STORES else "delta"


def _count(lake: Lake, table: Table, version: int) -> int:
    return int(lake.dataset(table, version=version).count_rows())


def _copy(lake: Lake, table: Table, version: int, folder: Path) -> int:
    """The rows of a version as one Parquet file, which replaces the former one whole; gives how many there are."""
    from pyarrow import parquet

    rows = lake.dataset(table, version=version)
    folder.mkdir(exist_ok=True)
    count = 0
    with (
        whole(folder / f"{table.value}.parquet") as unfinished,
        parquet.ParquetWriter(unfinished, rows.schema, compression="zstd") as writer,
    ):
        for batch in rows.to_batches():
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _write(path: Path, text: str) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _prefix(settings: Settings) -> str:
    prefix = settings.feast.export.prefix
    return f"{settings.project_name}_" if prefix is None else prefix


def _definitions(settings: Settings, lake: Lake, form: ExportFormat, versions: dict[Table, int]) -> str:
    """The Python file."""
    named = settings.feast.export
    schemas = {table: lake.dataset(table, version=version).schema for table, version in versions.items()}
    user = _type(schemas[Table.SYNTHETIC_TARGET_EVENTS].field(USER_ID).type)
    delta = form == "delta"
    where = f'"{{Path(__file__).resolve().parent}}/scalr_{settings.project_name}/{{table}}.parquet"'
    root = lake.root if "://" in lake.root else os.path.abspath(lake.root)  # noqa: PTH100 - as the lake names it, links and all
    path = f"{root!r} + f'/{{table}}'" if delta else f"f{where}"
    endpoint = settings.project.storage_options.get("AWS_ENDPOINT_URL") if delta else None
    mapping = {} if named.key == USER_ID else {USER_ID: named.key}
    views = "\n".join(
        f"""{table.value} = view(
    {table.value!r},
    {_DESCRIPTIONS[table]!r},
    [
        Field(name={named.key!r}, dtype={user}),
{_fields(schemas[table])}
    ],
)"""
        for table in _DESCRIPTIONS
    )
    return f'''"""Synthetic events and source histories of the project {settings.project_name}: a user's row as of a time.

Written by `scalr feast export`, which writes it anew: do not edit it, and set names in [feast.export] of scalr.toml.
A synthetic event is known from its run's time on, not from its event time. So ask with
store.get_historical_features(..., filter_by_created_timestamp=True), or a training set knows too early what was made later.
{_about(delta=delta)}
"""

from datetime import timedelta
{"" if delta else "from pathlib import Path"}
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import {"DeltaFormat" if delta else "ParquetFormat"}
from feast.types import Array, Float32, Int64, String, UnixTimestamp

OWNER = {named.owner!r}
TAGS = {dict(named.tags) | {"scalr_project": settings.project_name}!r}

user = Entity(
    name={named.entity!r},
    join_keys=[{named.key!r}],
    value_type=ValueType.{"INT64" if user == "Int64" else "STRING"},
    owner=OWNER,
    tags=TAGS,
)


def view(table, description, schema):
    source = FileSource(
        name={_prefix(settings)!r} + table,
        path={path},
        file_format={"DeltaFormat" if delta else "ParquetFormat"}(),
        timestamp_field={EVENT_TIMESTAMP!r},
        created_timestamp_column={CREATED_TIMESTAMP!r},
        field_mapping={mapping!r},
        s3_endpoint_override={endpoint!r},
        owner=OWNER,
        tags=TAGS,
    )
    return FeatureView(
        name={_prefix(settings)!r} + table,
        entities=[user],
        ttl=timedelta(0),
        schema=schema,
        source=source,
        description=description,
        owner=OWNER,
        tags=TAGS,
    )


{views}
'''


def _about(*, delta: bool) -> str:
    if delta:
        return """The sources are Delta tables. Rows of runs that were rolled back or replaced, or of a publication that is switched
off, are not in them, though their Parquet files may lie in the folders for a while. Feast's file store reads those files without
the tables' logs: do not use this file with it, but what `scalr feast export --format parquet` writes."""
    return """The sources are copies of what the tables held when this file was written. Write it anew after each publication, rollback
or switch, and after somebody was forgotten."""


def _fields(schema: pa.Schema) -> str:
    left_out = {USER_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP}
    return "\n".join(
        f"        Field(name={column.name!r}, dtype={_type(column.type)})," for column in schema if column.name not in left_out
    )


def _type(kind: pa.DataType) -> str:
    """The name of a column's type in Feast."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"Array({_type(kind.value_type)})"
    if pa.types.is_timestamp(kind):
        return "UnixTimestamp"
    return "Int64" if pa.types.is_int64(kind) else "Float32" if pa.types.is_float32(kind) else "String"
