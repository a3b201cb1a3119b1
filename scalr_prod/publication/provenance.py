# SPDX-License-Identifier: Apache-2.0
"""Provenance of published events: which source event each of them was translated from, in a table of its own.

The feature view holds no source item and no source time, so that its readers do not read the source log. A row of
``synthetic_event_provenance`` with the same ``run_id`` and ``event_id`` has them. A run's rows are committed before its events, and count
only where the events are in the view. So rollback, disabling and canaries leave them alone, and `scalr maintain` removes them
once the run is gone for good.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.delta_log import arrow_schema, files_in_key_range
from scalr_prod.lake import retry_on_new_version
from scalr_prod.publication.accepted_rows import stream_accepted_rows, write_accepted_rows
from scalr_prod.schemas import EVENT_ID, ITEM_ID, SOURCE_COLUMNS, USER_ID, Table, id_type_of, table_schema
from scalr_prod.workspace import open_duckdb, quote_literal, staging_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake


logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS
_PROVENANCE: Final = Table.SYNTHETIC_EVENT_PROVENANCE


def write_provenance(settings: Settings, lake: Lake, run_id: str, files: Sequence[Path]) -> None:
    """Replace a run's provenance by that of all rows in its accepted files, in one commit.

    Raises:
        CommitFailed: Nothing was written; safe to repeat.
    """
    import pyarrow as pa

    table = _open_table(lake)
    schema = arrow_schema(table)

    def write(version: int) -> None:
        options: dict[str, Any] = {"key": _commit_key(run_id), "expected_version": version, "opened": table}
        lake.refresh(_PROVENANCE, table)
        # Delta takes longer to plan a replacement than to write 10 000 rows.
        if files_in_key_range(table, "run_id", run_id, run_id):
            reader = pa.RecordBatchReader.from_batches(schema, stream_accepted_rows(files, schema, None))
            lake.replace_where(_PROVENANCE, reader, _run_sql([run_id]), **options)
        else:
            written = write_accepted_rows(settings, run_id, files, lake=lake, table=_PROVENANCE, opened=table)
            lake.append_files(_PROVENANCE, written, **options)

    retry_on_new_version(lake, _PROVENANCE, write)


def runs_with_provenance(lake: Lake) -> set[str]:
    """Return the runs that have rows in the provenance table."""
    return _runs(lake, _PROVENANCE) if lake.exists(_PROVENANCE) else set()


def runs_in_view(lake: Lake, version: int | None = None) -> set[str]:
    """Return the runs that have rows in a version of the feature view; default: the current one."""
    return _runs(lake, _VIEW, version=version)


def delete_provenance(lake: Lake, run_ids: Collection[str]) -> None:
    """Delete the provenance of runs, in one commit."""

    def delete(version: int) -> None:
        key = _commit_key("delete")
        lake.replace_where(
            _PROVENANCE, lake.schema(_PROVENANCE).empty_table(), _run_sql(run_ids), key=key, expected_version=version
        )

    if run_ids:
        retry_on_new_version(lake, _PROVENANCE, delete)


def has_source_columns(lake: Lake) -> bool:
    """Return whether the feature view still has source columns, which versions before 0.2 wrote to it."""
    return lake.exists(_VIEW) and set(SOURCE_COLUMNS) <= set(lake.schema(_VIEW).names)


def separate_provenance(settings: Settings, lake: Lake, *, restorable: Collection[int] = ()) -> bool:
    """Move the source columns of a feature view that an earlier version of this package wrote to the provenance table.

    The provenance is copied first, then the view is written anew without the columns, each in one commit. An interrupted call is repeated
    safely. Former versions of the view keep the columns until their files are removed.

    Args:
        settings: The project's settings. With ``[publication] provenance = "none"`` nothing is copied.
        lake: Its lake.
        restorable: Versions of the view that rollbacks may restore rows from; their provenance is copied too.

    Returns:
        Whether there was anything to move. False while publication is disabled, since enabling it restores the former files.

    Raises:
        CommitFailed: Another writer was faster every time; safe to repeat.
    """
    if not has_source_columns(lake) or lake.hidden_version(_VIEW) is not None:
        return False

    def separate(version: int) -> None:
        if not has_source_columns(lake):
            return
        _open_table(lake)
        if settings.publication.provenance == "separate":
            retry_on_new_version(
                lake, _PROVENANCE, lambda held: _copy_missing(settings, lake, {version, *restorable}, expected_version=held)
            )
        lake.drop_columns(_VIEW, SOURCE_COLUMNS, expected_version=version)

    retry_on_new_version(lake, _VIEW, separate)
    logger.info("moved %s of %s to %s", " and ".join(SOURCE_COLUMNS), _VIEW.value, _PROVENANCE.value)
    return True


def _copy_missing(settings: Settings, lake: Lake, versions: Collection[int], *, expected_version: int) -> None:
    """Append the provenance of the view's rows at these versions, as far as the table lacks it."""
    schema = lake.schema(_PROVENANCE)
    columns = ", ".join(schema.names)
    with staging_folder(settings, "maintain") as folder, open_duckdb(settings, folder) as connection:
        connection.register("held", lake.dataset(_PROVENANCE, version=expected_version))
        queries = []
        for version in sorted(versions):
            rows = lake.dataset(_VIEW, version=version)
            if set(schema.names) <= set(rows.schema.names):
                connection.register(f"view_{version}", rows)
                queries.append(f"SELECT {columns} FROM view_{version}")
        rows = connection.sql(
            f"""SELECT DISTINCT ON (run_id, {EVENT_ID}) {columns} FROM ({" UNION ALL ".join(queries)})
                ANTI JOIN held USING (run_id, {EVENT_ID})"""
        )
        lake.append(
            _PROVENANCE, _cast(rows.to_arrow_reader(), schema), key=_commit_key("move"), expected_version=expected_version
        )


def _cast(reader: pa.RecordBatchReader, schema: pa.Schema) -> pa.RecordBatchReader:
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))


def _open_table(lake: Lake) -> DeltaTable:
    """Open the table, after creating it in a lake of an earlier version, which lacks it."""
    if (opened := lake.find_table(_PROVENANCE)) is not None:
        return opened
    stored = lake.schema(Table.SYNTHETIC_QUARANTINE)
    user, item, source = (id_type_of(stored, column) for column in (USER_ID, ITEM_ID, "source_item_id"))
    return lake.create(_PROVENANCE, table_schema(_PROVENANCE, user=user, item=item, source_item=source))


def _runs(lake: Lake, table: Table, *, version: int | None = None) -> set[str]:
    batches = lake.dataset(table, version=version).to_batches(columns=["run_id"])
    return {run for batch in batches for run in batch.column(0).unique().to_pylist()}


def _run_sql(run_ids: Collection[str]) -> str:
    return f"run_id IN ({', '.join(map(quote_literal, sorted(run_ids)))})"


def _commit_key(what: str) -> str:
    # Writing the same rows again is idempotent, so each attempt may have its own key.
    return f"provenance:{what}:{uuid.uuid4().hex}"
