# SPDX-License-Identifier: Apache-2.0
"""A run's rows and the target events on which its translator was trained, of a sample of users, as user-item matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.hashing import hash_bucket_sql, hash_fold
from scalr_prod.core.id_index import index_in, sorted_unique
from scalr_prod.errors import GenerationError
from scalr_prod.lake import open_project_lake
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table, source_item_key_sql
from scalr_prod.workspace import create_delta_view, escape_glob, timestamp_literal

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.translator import TranslatorVersion


#: Most users whose rows are read: users of one bucket of the hash.
MAX_USERS: Final = 20_000


@dataclass(frozen=True)
class RunRows:
    """Rows of U users of a run.

    Attributes:
        users: [U]. Their ids, sorted.
        buckets: They are the run's users in hash bucket 0 of this many.
        fold: int32 [U]. Fold of each user, whose parameter set was not trained on the user's target events.
        newcomer: bool [U]. Users without a known target event; other parameters translate them.
        drawn: scipy CSR bool [U, N]. Target items of the run's rows.
        real: scipy CSR bool [U, N]. Target items of the events that the translator was trained on.
        source: scipy CSR bool [U, S + 1]. Source items that the run's rows name as their origin.
        weight: scipy CSR float32 [U, N]. The highest confidence weight of a user's rows of an item, where ``drawn`` has it.
    """

    users: pa.Array
    buckets: int
    fold: NDArray[np.int32]
    newcomer: NDArray[np.bool_]
    drawn: Any
    real: Any
    source: Any
    weight: Any

    @property
    def is_member(self) -> NDArray[np.bool_]:
        """Return on which users the translator was trained: bool [U]."""
        return np.asarray(np.diff(self.real.indptr) > 0)


def find_run_files(settings: Settings, spec: RunSpec) -> list[Path]:
    """Return the files of a run's accepted rows, or of its candidates if the gate has not accepted any.

    Raises:
        GenerationError: The run has no rows.
    """
    from pyarrow.parquet import read_metadata

    folder = run_folder(settings.home, spec.run_id)
    for name in ("accepted", "candidates"):
        files = sorted((folder / name).glob("*.parquet"))
        if any(read_metadata(path).num_rows for path in files):
            return files
    raise GenerationError(
        "the run has no rows to measure",
        where=str(folder),
        next_step=f"generate them: scalr runs resume {spec.run_id}",
    ).add_context(run_id=spec.run_id)


def open_run_rows(connection: DuckDBPyConnection, settings: Settings, spec: RunSpec, files: list[Path]) -> None:
    """Create the views ``run_rows``, and ``known_target_events``, which are the target events that the run could read.

    Args:
        connection: A DuckDB connection.
        settings: The project's settings.
        spec: The run.
        files: Files of its rows.
    """
    lake = open_project_lake(settings)
    create_delta_view(
        connection,
        "all_target_events",
        lake.open_table(Table.TARGET_EVENTS, version=spec.table_versions.get(Table.TARGET_EVENTS.value)),
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP VIEW known_target_events AS SELECT {USER_ID}, {ITEM_ID},
                epoch_us({EVENT_TIMESTAMP}) < {_micros(spec)} AND epoch_us({CREATED_TIMESTAMP}) <= {_micros(spec)} AS trained
            FROM all_target_events WHERE {CREATED_TIMESTAMP} <= {timestamp_literal(spec.as_of)}"""
    )
    connection.read_parquet([escape_glob(path) for path in files], hive_partitioning=False).create_view(
        "run_rows", replace=True
    )


def _micros(spec: RunSpec) -> int:
    from scalr_prod.core.timestamps import to_micros

    return to_micros(spec.translator_trained_until)


def read_run_rows(connection: DuckDBPyConnection, settings: Settings, version: TranslatorVersion) -> RunRows:
    """Read the rows of a sample of at most about `MAX_USERS` users.

    Args:
        connection: The connection of `open_run_rows`.
        settings: The project's settings.
        version: The run's translator version.
    """
    ((users,),) = connection.execute(f"SELECT count(DISTINCT {USER_ID}) FROM run_rows").fetchall()
    buckets = max(1, -(-int(users) // MAX_USERS))
    chosen = f"{hash_bucket_sql(USER_ID, buckets)} = 0" if buckets > 1 else "true"
    source_key = source_item_key_sql("source_domain", "source_item_id", settings.domains.source_names)
    rows = connection.sql(
        f"SELECT {USER_ID}, {ITEM_ID}, {source_key} AS source_key, weight FROM run_rows WHERE {chosen}"
    ).to_arrow_table()
    connection.register("rows_of_sample", rows)
    real = connection.sql(
        f"""SELECT {USER_ID}, {ITEM_ID}, bool_or(trained) AS trained FROM known_target_events
            WHERE {USER_ID} IN (SELECT {USER_ID} FROM rows_of_sample) GROUP BY ALL"""
    ).to_arrow_table()
    connection.unregister("rows_of_sample")
    ids, vocabulary = sorted_unique(rows[USER_ID]), version.vocabulary()
    row_user, real_user = index_in(rows[USER_ID], ids), index_in(real[USER_ID], ids)
    n_items, n_source = len(vocabulary.all_target_ids), len(vocabulary.source_ids)
    weight = weight_matrix(
        row_user, vocabulary.target_index(rows[ITEM_ID].combine_chunks()), rows["weight"].to_numpy(), (len(ids), n_items)
    )
    trained = real["trained"].to_numpy()
    newcomer = np.ones(len(ids), dtype=bool)
    newcomer[real_user] = False
    return RunRows(
        ids,
        buckets,
        hash_fold(ids, version.folds),
        newcomer,
        drawn=as_ones(weight),
        real=user_item_matrix(
            real_user[trained], vocabulary.target_index(real[ITEM_ID].combine_chunks())[trained], (len(ids), n_items)
        ),
        source=user_item_matrix(
            row_user, vocabulary.source_index(rows["source_key"].combine_chunks()), (len(ids), n_source + 1)
        ),
        weight=weight,
    )


def user_item_matrix(user: NDArray[Any], item: NDArray[np.int32], shape: tuple[int, int]) -> Any:
    """Return which user has which item: scipy CSR float32 of ones, ``shape``; negative items are left out."""
    from scipy import sparse

    known = item >= 0
    matrix = sparse.csr_matrix((np.ones(int(known.sum()), dtype=np.float32), (user[known], item[known])), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def weight_matrix(user: NDArray[Any], item: NDArray[np.int32], weight: NDArray[np.float32], shape: tuple[int, int]) -> Any:
    """Return each user's highest weight of each item: scipy CSR float32, ``shape``; negative items are left out."""
    from scipy import sparse

    known = np.flatnonzero(item >= 0)
    pair = user[known].astype(np.int64) * shape[1] + item[known]
    order = np.lexsort((weight[known], pair))
    ordered = pair[order]
    highest = order[np.append(ordered[1:] != ordered[:-1], True)] if len(ordered) else order
    row, column = np.divmod(pair[highest], shape[1])
    return sparse.csr_matrix((np.nan_to_num(weight[known][highest]).astype(np.float32), (row, column)), shape=shape)


def as_ones(matrix: Any) -> Any:
    """Return a copy of a sparse matrix with every stored value 1."""
    ones = matrix.copy()
    ones.data[:] = 1
    return ones
