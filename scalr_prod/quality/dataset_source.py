# SPDX-License-Identifier: Apache-2.0
"""Data sets as DuckDB views: Parquet, a Delta table, a Feast saved dataset, or a training set."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EmptyInput, FeatureStoreError, ScalrError, UnreadableInput
from scalr_prod.workspace import escape_glob, quote_literal

if TYPE_CHECKING:
    from scalr_prod.config import Settings


#: Name of the data set in DuckDB and in data docs.
DATASET_VIEW: Final = "dataset"
_NEXT: Final = (
    "name a Parquet or CSV file, a folder of Parquet files, a Delta table's folder, or a data set that is saved in Feast"
)
_CSV_ENDINGS: Final = (".csv", ".csv.gz", ".csv.zst")
#: Columns of a CSV file that `scalr dataset export` wrote: times are seconds since 1970, and marks are 0 or 1.
_EXPORTED_COLUMNS: Final = ("user_id", "item_id", "timestamp", "is_synthetic")


@dataclass(frozen=True)
class DatasetSource:
    """Location of a data set's rows.

    Attributes:
        kind: ``parquet``, ``csv``, ``delta``, ``feast`` or ``training set``.
        location: Absolute path, glob or URL.
        is_delta: Whether it is a Delta table; else Parquet files.
    """

    kind: str
    location: str
    is_delta: bool = False


def locate_dataset(dataset: str, settings: Settings | None) -> DatasetSource:
    """Locate a data set by path, URL, glob, or name in Feast's registry.

    Args:
        dataset: As the user wrote it; a path is relative to the current folder or to the project's.
        settings: The project's settings; None: no project.

    Raises:
        UnreadableInput: There is no such data set.
        FeatureStoreError: Feast's registry cannot be read.
    """
    if "://" in dataset:
        return _table("parquet", dataset, settings)
    named = Path(dataset).expanduser()
    for path in [named, *([settings.resolve(dataset)] if settings else [])]:
        if (path / "manifest.json").is_file() and (path / "rows").is_dir():
            return DatasetSource("training set", str((path / "rows").resolve()))
        if path.exists():
            return _table("parquet", str(path.absolute()), settings)
    if any(sign in dataset for sign in "*?"):  # only the user's text is a pattern, not the folder's name
        folders = [Path.cwd(), *([settings.base] if settings else [])]
        patterns = [str(Path(glob.escape(str(folder)), named)) for folder in folders]
        matching = (pattern for pattern in patterns if glob.glob(pattern))  # noqa: PTH207 - a pattern may be absolute
        return DatasetSource("parquet", next(matching, patterns[0]))
    if settings is None:
        raise UnreadableInput("there is no such file or folder", where=dataset, next_step=f"{_NEXT} (with --config)")
    from scalr_prod.features import saved_dataset_location

    try:
        location = saved_dataset_location(settings, dataset)
    except FeatureStoreError as error:
        raise UnreadableInput(
            f"there is no such file or folder, and no such data set in Feast: {error.found}", where=dataset, next_step=_NEXT
        ) from error
    return _table("feast", location, settings)


def load_dataset(
    source: DatasetSource, database: Path, settings: Settings | None, *, memory_mb: int
) -> tuple[int, dict[str, str]]:
    """Create the view over the rows; Delta tables and remote files are copied into the database.

    Args:
        source: The data set.
        database: A DuckDB file to create.
        settings: See `locate_dataset`; its ``storage_options`` are used for remote data.
        memory_mb: DuckDB's memory limit; it spills next to the file.

    Returns:
        Row count, and column → DuckDB type.

    Raises:
        UnreadableInput: It cannot be read.
        EmptyInput: It has no row.
    """
    import duckdb

    try:
        with duckdb.connect(str(database), config=dict(duckdb_options(database, memory_mb=memory_mb))) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")
            _make(connection, source, dict(settings.project.storage_options) if settings else {})
            types = {str(name): str(kind) for name, kind, *_ in connection.execute(f"DESCRIBE {DATASET_VIEW}").fetchall()}
            rows = int(connection.execute(f"SELECT count(*) FROM {DATASET_VIEW}").fetchall()[0][0])
    except ScalrError:
        raise
    except Exception as error:
        # DuckDB, pyarrow, deltalake, fsspec and object stores raise many exception types.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableInput(
            f"cannot be read: {first}", where=source.location, next_step="check the files, and [project] storage_options"
        ) from error
    if not rows:
        raise EmptyInput("has no rows", where=source.location, next_step="check what should have written it")
    return rows, types


def duckdb_options(database: Path, *, memory_mb: int) -> dict[str, str]:
    """Return DuckDB's options for such a file; see `load_dataset`."""
    return {
        "memory_limit": f"{memory_mb}MB",
        "threads": str(min(os.cpu_count() or 1, 8)),
        "temp_directory": f"{database}.spill",
        "preserve_insertion_order": "false",
        "autoinstall_known_extensions": "false",
    }


def _make(connection: Any, found: DatasetSource, options: dict[str, str]) -> None:
    if found.is_delta:
        from scalr_prod.ingest import read_delta_table

        connection.register("incoming", read_delta_table(found.location, options))
        connection.execute(f"CREATE TABLE {DATASET_VIEW} AS SELECT * FROM incoming")
    elif "://" in found.location:
        import fsspec
        import pyarrow.dataset as ds

        filesystem, path = fsspec.core.url_to_fs(found.location, **options)
        names = sorted(filesystem.glob(path)) if any(sign in path for sign in "*?") else path
        incoming = ds.dataset(names, filesystem=filesystem, format="parquet", partitioning="hive")
        connection.register("incoming", incoming.scanner(batch_readahead=2, fragment_readahead=1).to_reader())
        connection.execute(f"CREATE TABLE {DATASET_VIEW} AS SELECT * FROM incoming")
    elif found.kind == "csv":
        rows = f"FROM read_csv({_files(found.location)}, header = true, sample_size = -1)"
        chosen, types = "*", {name: type_ for name, type_, *_ in connection.execute(f"DESCRIBE {rows}").fetchall()}
        if set(_EXPORTED_COLUMNS) <= set(types) and types["timestamp"] in {"BIGINT", "DOUBLE"}:
            chosen = "* EXCLUDE (timestamp) REPLACE (is_synthetic::BOOLEAN AS is_synthetic), to_timestamp(timestamp) AS event_timestamp"
        connection.execute(f"CREATE VIEW {DATASET_VIEW} AS SELECT {chosen} {rows}")
    else:
        connection.execute(
            f"CREATE VIEW {DATASET_VIEW} AS SELECT * FROM read_parquet({_files(found.location)}, hive_partitioning = true)"
        )


def _files(location: str) -> str:
    """Return the files of a path or glob as a DuckDB list, with escaped names; skip names that start with . or _."""
    path = Path(location)
    if path.is_dir():
        files = [file for pattern in ("*.parquet", "*.pq") for file in path.rglob(pattern)]
        files = [file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts)]
    elif path.is_file():
        files = [path]
    else:
        files = list(Path(path.anchor).glob(location.removeprefix(path.anchor)))
    if not files:
        raise UnreadableInput("there is no Parquet file", where=location, next_step=_NEXT)
    return f"[{', '.join(quote_literal(escape_glob(file)) for file in sorted(files))}]"


def _table(kind: str, location: str, settings: Settings | None) -> DatasetSource:
    from scalr_prod.ingest import detect_table_format, resolve_location

    if kind == "parquet" and location.lower().endswith(_CSV_ENDINGS):
        kind = "csv"
    if any(sign in location for sign in "*?") and not Path(location).exists():
        return DatasetSource(kind, location)
    with resolve_location(location, dict(settings.project.storage_options) if settings else {}) as (_, filesystem, path):
        table = detect_table_format(filesystem, path)
    if table == "iceberg":
        raise UnreadableInput(
            "is an Iceberg table, which cannot be checked", where=location, next_step="write the rows to check as Parquet"
        )
    return DatasetSource("delta" if table == "delta" and kind == "parquet" else kind, location, table == "delta")
