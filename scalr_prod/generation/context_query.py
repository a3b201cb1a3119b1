# SPDX-License-Identifier: Apache-2.0
"""Queries for a run's contexts: users of the window, as known by its ``as_of``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.hashing import hash_bucket_sql, hash_fold
from scalr_prod.core.timestamps import column_to_micros
from scalr_prod.generation import encoding
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.translator import ALL_USERS, COLD_USERS, Contexts
from scalr_prod.workspace import has_consent_sql, not_held_out_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation
    from numpy.typing import NDArray

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import RunSpec
    from scalr_prod.translator import ItemVocabulary
    from scalr_prod.workspace import SuppressionList


#: Time of the source event. ``event_timestamp`` is the time of the prediction: that of the source event, or, with one context per user, the
#: end of the window.
SOURCE_TIMESTAMP: Final = "source_event_timestamp"
_LATEST_FIRST_SQL: Final = f"{SOURCE_TIMESTAMP} DESC, {ITEM_ID}"

#: The table of users to translate, and SQL conditions on what is read for them.
CHOSEN_USERS_TABLE: Final = "chosen_users"
_IS_CHOSEN_SQL: Final = f"{USER_ID} IN (SELECT {USER_ID} FROM {CHOSEN_USERS_TABLE})"
_IN_WINDOW_SQL: Final = f"{EVENT_TIMESTAMP} >= $start AND {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of"

#: Share of the maximum request size that a batch may take.
_REQUEST_SHARE: Final = 0.5


def read_contexts(
    connection: DuckDBPyConnection, settings: Settings, spec: RunSpec, bucket: int, buckets: int
) -> tuple[pa.Table, pa.Table | None]:
    """Return the distinct contexts of some of the run's users, and what these users consumed in the target domain.

    Args:
        connection: A DuckDB connection.
        settings: The project's settings.
        spec: The run.
        bucket: Users whose id hashes to this bucket, see `hashing.hash_bucket`.
        buckets: Number of buckets.

    Returns:
        Contexts sorted by user, time and item (``user_id``, ``item_id``, ``event_timestamp``: the time to predict for,
        ``source_event_timestamp``, ``noise_key`` uint64, ``newcomer`` bool: no target event of the user can be in the training data);
        and the first time of each (user, target item), sorted by user and time, or None if a run may propose consumed items.
    """
    create_chosen_users(
        connection, settings, spec, f"{hash_bucket_sql(USER_ID, buckets)} = {int(bucket)}" if buckets > 1 else "true"
    )
    rows = chosen_user_contexts(connection, spec).to_arrow_table()
    consumed = chosen_user_consumption(connection, spec)
    return rows, None if consumed is None else consumed.to_arrow_table()


def create_chosen_users(connection: DuckDBPyConnection, settings: Settings, spec: RunSpec, condition: str = "true") -> None:
    """Create the table `CHOSEN_USERS_TABLE` of the users whose contexts the run translates.

    Its columns are ``user_id``, ``contexts`` and ``events`` (both upper bounds of distinct contexts), ``newcomer``.

    Args:
        connection: A DuckDB connection; afterwards it has views of both domains' events at the run's versions.
        settings: The project's settings.
        spec: The run.
        condition: An SQL condition on ``user_id``.

    Raises:
        LakeError: A table cannot be read.
        InputError: The consents that the run was planned with were removed.
    """
    from scalr_prod.lake import Lake

    _open_events(connection, Lake.open(settings), spec)
    contexts = "1" if has_one_context_per_user(spec) else "count(*)"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE users AS SELECT {USER_ID}, {contexts} AS contexts, count(*) AS events
            FROM {Table.SOURCE_EVENTS} WHERE {_IN_WINDOW_SQL} GROUP BY {USER_ID}""",
        _query_parameters(spec, _IN_WINDOW_SQL),
    )
    # A causal run must not know who joins the target domain within its window.
    before = "$start" if spec.mode == "causal" else "'infinity'::TIMESTAMPTZ"
    learned = f"{EVENT_TIMESTAMP} < {before} AND {CREATED_TIMESTAMP} <= $as_of"
    # Hashing dominates the cost per row: hash each user once, which a condition in the query above would not.
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE {CHOSEN_USERS_TABLE} AS
            SELECT *, {USER_ID} NOT IN (SELECT {USER_ID} FROM {Table.TARGET_EVENTS} WHERE {learned}) AS newcomer
            FROM users WHERE {condition} AND {not_held_out_sql(spec.settings, USER_ID)}
            AND {has_consent_sql(settings.home, spec.settings, USER_ID)}""",
        _query_parameters(spec, learned),
    )


def count_users_without_consent(settings: Settings, spec: RunSpec) -> int | None:
    """Return how many users of the window the run leaves out because they have not consented; None if consent is not required."""
    from scalr_prod.lake import Lake
    from scalr_prod.workspace import ConsentState, open_duckdb, staging_folder

    state = ConsentState.from_run(spec.settings)
    if state is None:
        return None
    with staging_folder(settings, "consent") as folder, open_duckdb(settings, folder) as connection:
        _open_events(connection, Lake.open(settings), spec)
        query = f"""SELECT count(DISTINCT {USER_ID}) FROM {Table.SOURCE_EVENTS} WHERE {_IN_WINDOW_SQL}
            AND {not_held_out_sql(spec.settings, USER_ID)} AND NOT ({has_consent_sql(settings.home, spec.settings, USER_ID)})"""
        ((users,),) = connection.execute(query, _query_parameters(spec, query)).fetchall()
    return int(users)


def chosen_user_events(spec: RunSpec, *columns: str) -> tuple[str, dict[str, Any]]:
    """Return a query of the window's source events of the chosen users, and its parameters.

    Args:
        spec: The run.
        columns: Columns of `CHOSEN_USERS_TABLE` to add to each event, in addition to ``newcomer``.
    """
    selected = ", ".join((USER_ID, ITEM_ID, EVENT_TIMESTAMP, "newcomer", *columns))
    query = f"SELECT {selected} FROM {Table.SOURCE_EVENTS} JOIN {CHOSEN_USERS_TABLE} USING ({USER_ID}) WHERE {_IN_WINDOW_SQL}"
    return query, _query_parameters(spec, query)


def chosen_user_contexts(
    connection: DuckDBPyConnection, spec: RunSpec, *columns: str, events: str | None = None
) -> DuckDBPyRelation:
    """Return the distinct contexts of the chosen users, as `read_contexts` returns them: a DuckDB relation.

    Args:
        connection: The DuckDB connection of `create_chosen_users`.
        spec: The run.
        columns: Further columns of `CHOSEN_USERS_TABLE`.
        events: Table that holds the `chosen_user_events` of some users, with these columns; default: those of all chosen users.
    """
    source = events or f"({chosen_user_events(spec, *columns)[0]})"
    of_user = ", ".join(("newcomer", *columns))
    # Each source event at its own time, or each user's latest one as of the window's last instant.
    moment, last = (
        (
            "$end - INTERVAL 1 MICROSECOND",
            f"QUALIFY row_number() OVER (PARTITION BY {USER_ID} ORDER BY {_LATEST_FIRST_SQL}) = 1",
        )
        if has_one_context_per_user(spec)
        else (SOURCE_TIMESTAMP, "")
    )
    query = f"""SELECT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}, {SOURCE_TIMESTAMP}, noise_key, {of_user}
        FROM (SELECT *, md5_number_lower(concat($seed, ':', {context_text_sql(ITEM_ID)})) AS noise_key
            FROM (SELECT {USER_ID}, {ITEM_ID}, {moment} AS {EVENT_TIMESTAMP}, {SOURCE_TIMESTAMP}, {of_user}
                FROM (SELECT DISTINCT {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP} AS {SOURCE_TIMESTAMP}, {of_user} FROM {source}) {last}))
        ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"""
    return connection.sql(query, params=_query_parameters(spec, query))


def chosen_user_consumption(connection: DuckDBPyConnection, spec: RunSpec, *columns: str) -> DuckDBPyRelation | None:
    """Return what the chosen users consumed, as `read_contexts` does, or None; arguments as in `chosen_user_contexts`."""
    if not spec.settings["generation"]["exclude_consumed"]:
        return None
    selected = ", ".join((USER_ID, ITEM_ID, EVENT_TIMESTAMP, *columns))
    query = f"""SELECT {selected}
        FROM (SELECT {USER_ID}, {ITEM_ID}, min({EVENT_TIMESTAMP}) AS {EVENT_TIMESTAMP} FROM {Table.TARGET_EVENTS}
            WHERE {EVENT_TIMESTAMP} < $end AND {CREATED_TIMESTAMP} <= $as_of AND {_IS_CHOSEN_SQL} GROUP BY {USER_ID}, {ITEM_ID})
        JOIN {CHOSEN_USERS_TABLE} USING ({USER_ID}) ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"""
    return connection.sql(query, params=_query_parameters(spec, query))


def has_one_context_per_user(spec: RunSpec) -> bool:
    """Return whether the run translates each user once, at the window's end, instead of every source event."""
    return bool(spec.settings["generation"].get("contexts") == "users")


def _query_parameters(spec: RunSpec, query: str) -> dict[str, Any]:
    """Return the run's values that a query refers to; DuckDB rejects unused parameters."""
    known = {"seed": spec.seed, "start": spec.start, "end": spec.end, "as_of": spec.as_of}
    return {name: value for name, value in known.items() if f"${name}" in query}


def _open_events(connection: DuckDBPyConnection, lake: Lake, spec: RunSpec) -> None:
    """Register the events of both domains as views, at the versions the run was planned on."""
    from scalr_prod.workspace import create_delta_view

    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        create_delta_view(connection, table.value, lake.open_table(table, version=spec.table_versions[table]))


def sort_for_scoring(rows: pa.Table, spec: RunSpec, folds: int) -> pa.Table:
    """Sort rows of `read_contexts` by parameter set, then time, so that the rows of a request share item popularity."""
    return rows.take(np.lexsort((column_to_micros(rows[EVENT_TIMESTAMP]), _context_folds(rows, spec, folds))))


@dataclass(frozen=True)
class RequestEncoder:
    """Encodes contexts of a run as the scorer's input.

    Attributes:
        settings: The project's settings.
        spec: The run.
        vocabulary: The translator's vocabulary.
        folds: Number of folds of the translator.
        feature_store: The project's feature store, if it is already open.
        connection: A DuckDB connection whose database runs the point-in-time join; None: a new one.
    """

    settings: Settings
    spec: RunSpec
    vocabulary: ItemVocabulary
    folds: int
    feature_store: Any = None  # a feast.FeatureStore; only `scalr_prod.features` imports Feast
    connection: DuckDBPyConnection | None = None

    def iter_requests(self, rows: pa.Table, consumed: encoding.ConsumptionIndex | None) -> Iterator[Contexts]:
        """Yield rows of `read_contexts` in batches, with histories as of each event from Feast.

        Items erased since the translator was trained are excluded, and so are those that a user had consumed.

        Args:
            rows: B contexts.
            consumed: What the users consumed; None: consumed items may be proposed.
        """
        from scalr_prod.workspace import SuppressionList

        settings = self.settings
        history_end, event_time = column_to_micros(rows[SOURCE_TIMESTAMP]), column_to_micros(rows[EVENT_TIMESTAMP])
        items, ages = encoding.encode_histories(
            self._read_histories(rows), self.vocabulary, self.spec.settings["histories"]["length"], source_times=history_end
        )
        contexts = Contexts(
            history_items=items,
            history_ages=ages,
            history_end=history_end,
            event_time=event_time,
            fold=_context_folds(rows, self.spec, self.folds),
            noise_key=rows["noise_key"].to_numpy().view(np.int64),
            exclude=np.empty((len(rows), 0), np.int32)
            if consumed is None
            else consumed.items_before(rows[USER_ID].combine_chunks(), event_time),
        )
        return encoding.iter_context_batches(
            contexts,
            always_excluded=_erased_item_indices(SuppressionList.open(settings), self.vocabulary),
            batch_size=settings.generation.batch_size,
            max_bytes=int(settings.serving.max_request_mb * 2**20 * _REQUEST_SHARE),
        )

    def _read_histories(self, rows: pa.Table) -> pa.Table:
        from scalr_prod.features import join_point_in_time, open_feature_store

        return join_point_in_time(
            self.feature_store or open_feature_store(self.settings),
            rows.select([USER_ID, ITEM_ID, EVENT_TIMESTAMP]),
            ["source_user_history:item_ids", "source_user_history:event_timestamps"],
            known_by=self.spec.as_of,
            versions=self.spec.table_versions,
            connection=self.connection,
        )


def _erased_item_indices(suppressed: SuppressionList, vocabulary: ItemVocabulary) -> NDArray[np.int32]:
    """Return the target indices of erased items: int32 [F]."""
    erased = suppressed.suppressed_ids(vocabulary.all_target_ids.to_pylist(), "item") if suppressed.items else []
    return vocabulary.target_index(erased) if erased else np.empty(0, np.int32)


def _context_folds(rows: pa.Table, spec: RunSpec, folds: int) -> NDArray[np.int32]:
    """Return the parameter set of each row: int32 [B]. New users were in no fold of the training data."""
    own = ALL_USERS if spec.mode == "causal" else hash_fold(rows[USER_ID].combine_chunks(), folds)
    return np.where(rows["newcomer"].to_numpy(), COLD_USERS, own).astype(np.int32)


def context_text_sql(source_item: str) -> str:
    """Return SQL for a context's unique text; lengths separate ids that contain the separator."""
    return (
        f"epoch_us({EVENT_TIMESTAMP}), ':', length(CAST({USER_ID} AS VARCHAR)), ':', {USER_ID}, "
        f"':', length(CAST({source_item} AS VARCHAR)), ':', {source_item}"
    )
