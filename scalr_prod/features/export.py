# SPDX-License-Identifier: Apache-2.0
"""Export of feature definitions: published synthetic events, and source histories if the settings say so, for another feature repository.

The exported definitions do not need this package. Stores that support Delta read the lake's tables in place. Feast's file store reads a
folder's Parquet files without the Delta log, replaced and rolled-back rows included, and its DuckDB store has to download an extension
for Delta: for these two, the current rows are copied to Parquet.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scalr_prod.core.atomic_io import atomic_path, write_text
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import FeatureStoreError
from scalr_prod.lake import open_project_lake
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, SOURCE_COLUMNS, USER_ID, Table
from scalr_prod.workspace import claim_directory

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.config import FeastExportSettings, Settings
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)

ExportFormat = Literal["delta", "parquet"]

_DESCRIPTIONS: Final = {
    Table.SYNTHETIC_TARGET_EVENTS: "Published synthetic target events, translated from source events.",
    Table.SOURCE_USER_HISTORY: "A user's last source events, as of each of them.",
}
#: Names of Feast's file-based stores in feature_store.yaml; None: the default store.
_FILE_STORES: Final = {None, "file", "dask", "duckdb"}


@dataclass(frozen=True)
class FeastExport(Jsonable):
    """Result of an export.

    Attributes:
        path: The Python file.
        format: ``delta``: the sources are the lake's tables, which follow every publication; ``parquet``: copies of their rows.
        views: Names of the feature views.
        rows: Current number of rows of each view.
        versions: Current Delta version of each view's table.
    """

    path: str
    format: ExportFormat
    views: list[str]
    rows: dict[str, int]
    versions: dict[str, int]


def export_definitions(settings: Settings, folder: Path, export_format: ExportFormat | None = None) -> FeastExport:
    """Write ``scalr_<project>.py`` into a folder of a feature repository: one entity, and one view per table.

    Args:
        settings: The project's settings; ``[feast.export]`` has the names.
        folder: A folder of the repository; created if missing.
        export_format: ``delta`` or ``parquet`` (into ``scalr_<project>`` beside the file). Default: ``parquet`` if the repository's store
            is Feast's file or DuckDB store, else ``delta``.

    Raises:
        TableNotFound: Nothing was published yet.
        DomainsMixed: The lake's tables were created for other domains.
        ForeignFiles: The folder has a file or folder of that name that this command did not create.
        FeatureStoreError: No format is given and there is no ``feature_store.yaml`` to derive it from; or the folder is not writable.
    """
    export_format = export_format or _form_of(folder)
    lake = open_project_lake(settings)
    name = f"scalr_{settings.project_name}"
    tables = list(_DESCRIPTIONS) if settings.feast.export.source_history else [Table.SYNTHETIC_TARGET_EVENTS]
    versions = {table: lake.version(table) for table in tables}
    try:
        claim_directory(folder, f"{name}-export", setting=None, names=(f"{name}.py", name))
        rows = {
            table: _copy(lake, table, version, folder / name) if export_format == "parquet" else _count(lake, table, version)
            for table, version in versions.items()
        }
        write_text(
            folder / f"{name}.py", _definitions(settings.feast.export, settings.project_name, lake, export_format, versions)
        )
    except OSError as error:
        raise FeatureStoreError(
            f"cannot be written to: {error.strerror or error}",
            where=str(folder),
            next_step="fix the problem above and run the command again; it overwrites a partial export",
        ) from error
    prefix = _prefix(settings.feast.export, settings.project_name)
    names = {table: f"{prefix}{table.value}" for table in tables}
    logger.info("wrote definitions of %s to %s", ", ".join(names.values()), folder / f"{name}.py")
    return FeastExport(
        str(folder / f"{name}.py"),
        export_format,
        list(names.values()),
        {names[table]: count for table, count in rows.items()},
        {names[table]: version for table, version in versions.items()},
    )


def _form_of(folder: Path) -> ExportFormat:
    """Choose the format that the repository's offline store reads correctly."""
    import yaml

    resolved = folder.resolve()
    path = next(
        (at / "feature_store.yaml" for at in (resolved, *resolved.parents) if (at / "feature_store.yaml").is_file()), None
    )
    if path is None:
        raise FeatureStoreError(
            "there is no feature_store.yaml here or in a parent folder, so the offline store is unknown",
            where=str(folder),
            next_step="name a folder of the feature repository, or give --format parquet (Feast's file and DuckDB stores) or delta",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise FeatureStoreError(
            "cannot be read as YAML", where=str(path), next_step="fix it, or give --format parquet or delta"
        ) from error
    store = content.get("offline_store") if isinstance(content, dict) else None
    kind = store.get("type") if isinstance(store, dict) else store
    return "parquet" if kind in _FILE_STORES else "delta"


def _count(lake: Lake, table: Table, version: int) -> int:
    return int(lake.dataset(table, version=version).count_rows())


def _copy(lake: Lake, table: Table, version: int, folder: Path) -> int:
    """Write the rows of a version as one Parquet file, atomically; return their number."""
    from pyarrow import parquet

    rows = lake.dataset(table, version=version)
    columns = [name for name in rows.schema.names if name not in SOURCE_COLUMNS]
    folder.mkdir(exist_ok=True)
    count = 0
    with (
        atomic_path(folder / f"{table.value}.parquet") as unfinished,
        parquet.ParquetWriter(unfinished, rows.scanner(columns=columns).projected_schema, compression="zstd") as writer,
    ):
        for batch in rows.to_batches(columns=columns):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _prefix(named: FeastExportSettings, project: str) -> str:
    return f"{project}_" if named.prefix is None else named.prefix


def _definitions(named: FeastExportSettings, project: str, lake: Lake, form: ExportFormat, versions: dict[Table, int]) -> str:
    """Render the Python file."""
    prefix = _prefix(named, project)
    schemas = {table: lake.dataset(table, version=version).schema for table, version in versions.items()}
    user = _type(schemas[Table.SYNTHETIC_TARGET_EVENTS].field(USER_ID).type)
    delta = form == "delta"
    where = f'"{{Path(__file__).resolve().parent}}/scalr_{project}/{{table}}.parquet"'
    root = lake.root if "://" in lake.root else os.path.abspath(lake.root)  # noqa: PTH100 - as the lake names it, links and all
    path = f"{root!r} + f'/{{table}}'" if delta else f"f{where}"
    endpoint = lake.storage_options.get("AWS_ENDPOINT_URL") if delta else None
    mapping = {} if named.key == USER_ID else {USER_ID: named.key}
    tags = {"knowledge_time": "created"} | dict(named.tags) | {"scalr_project": project}
    views = "\n".join(
        f"""{table.value} = view(
    {table.value!r},
    {_DESCRIPTIONS[table]!r},
    [
        Field(name={named.key!r}, dtype={user}),
{_fields(schemas[table])}
    ],
)"""
        for table in versions
    )
    return f'''"""Synthetic events of the project {project}: a user's row as of a time.

Written by `scalr feast export`, which overwrites it: do not edit it, and set names in [feast.export] of scalr.toml.
A synthetic event is known from its run's time on, not from its event time. The offline store feast-delta reads that from the tag
knowledge_time. With another store call store.get_historical_features(..., filter_by_created_timestamp=True), or a training set sees events
before they were known.
{_about(delta=delta)}
"""

from datetime import timedelta
{"" if delta else "from pathlib import Path"}
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import {"DeltaFormat" if delta else "ParquetFormat"}
from feast.types import Array, Float32, Int64, String, UnixTimestamp

OWNER = {named.owner!r}
TAGS = {tags!r}

user = Entity(
    name={named.entity!r},
    join_keys=[{named.key!r}],
    value_type=ValueType.{"INT64" if user == "Int64" else "STRING"},
    owner=OWNER,
    tags=TAGS,
)


def view(table, description, schema):
    source = FileSource(
        name={prefix!r} + table,
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
        name={prefix!r} + table,
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
        return """The sources are Delta tables. They exclude rows of runs that were rolled back or replaced, or whose publication is
switched off, though the Parquet files stay in the folders for a while. Feast's file store reads those files without the Delta logs: do
not use this file with it, but the output of `scalr feast export --format parquet`."""
    return """The sources are copies of the tables at the time of the export. Export again after each publication, rollback or switch,
and after each erasure of a user."""


def _fields(schema: pa.Schema) -> str:
    left_out = {USER_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP, *SOURCE_COLUMNS}  # the last of a view that was not migrated yet
    return "\n".join(
        f"        Field(name={column.name!r}, dtype={_type(column.type)})," for column in schema if column.name not in left_out
    )


def _type(kind: pa.DataType) -> str:
    """Return Feast's name of a column type."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"Array({_type(kind.value_type)})"
    if pa.types.is_timestamp(kind):
        return "UnixTimestamp"
    return "Int64" if pa.types.is_int64(kind) else "Float32" if pa.types.is_float32(kind) else "String"
