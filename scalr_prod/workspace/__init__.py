# SPDX-License-Identifier: Apache-2.0
"""A project's home: its identity, ownership of folders, DuckDB sessions that spill there, held-out users, suppressed ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.workspace.consent import (
        ConsentState,
        copy_consent,
        ensure_consent_not_withdrawn,
        has_consent_sql,
        open_consent,
        superseded_consent_files,
        write_consent,
    )
    from scalr_prod.workspace.duckdb import (
        create_delta_view,
        duckdb_session,
        escape_glob,
        move_into_place,
        oldest_staging_time,
        open_duckdb,
        parquet_sql,
        quote_identifier,
        quote_literal,
        read_parquet_sql,
        staging_folder,
        temporary_folder,
        timestamp_literal,
    )
    from scalr_prod.workspace.identity import ProjectIdentity, bind_to_project, normalize_lake_url
    from scalr_prod.workspace.ownership import (
        HOME_ENTRIES,
        claim_directory,
        claim_home,
        ensure_supported_path,
        is_empty,
        is_home,
    )
    from scalr_prod.workspace.suppression_list import SuppressedId, SuppressedKind, SuppressionList, ensure_retrained_in_time
    from scalr_prod.workspace.user_assignment import (
        CANARY_COLUMN,
        HELD_OUT_COLUMN,
        Canary,
        Holdout,
        experiment_salt,
        not_held_out_sql,
    )

__all__ = [
    "CANARY_COLUMN",
    "HELD_OUT_COLUMN",
    "HOME_ENTRIES",
    "Canary",
    "ConsentState",
    "Holdout",
    "ProjectIdentity",
    "SuppressedId",
    "SuppressedKind",
    "SuppressionList",
    "bind_to_project",
    "claim_directory",
    "claim_home",
    "copy_consent",
    "create_delta_view",
    "duckdb_session",
    "ensure_consent_not_withdrawn",
    "ensure_retrained_in_time",
    "ensure_supported_path",
    "escape_glob",
    "experiment_salt",
    "has_consent_sql",
    "is_empty",
    "is_home",
    "move_into_place",
    "normalize_lake_url",
    "not_held_out_sql",
    "oldest_staging_time",
    "open_consent",
    "open_duckdb",
    "parquet_sql",
    "quote_identifier",
    "quote_literal",
    "read_parquet_sql",
    "staging_folder",
    "superseded_consent_files",
    "temporary_folder",
    "timestamp_literal",
    "write_consent",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CANARY_COLUMN": "user_assignment",
        "Canary": "user_assignment",
        "ConsentState": "consent",
        "HELD_OUT_COLUMN": "user_assignment",
        "HOME_ENTRIES": "ownership",
        "Holdout": "user_assignment",
        "ProjectIdentity": "identity",
        "SuppressedId": "suppression_list",
        "SuppressedKind": "suppression_list",
        "SuppressionList": "suppression_list",
        "bind_to_project": "identity",
        "claim_directory": "ownership",
        "claim_home": "ownership",
        "copy_consent": "consent",
        "ensure_consent_not_withdrawn": "consent",
        "create_delta_view": "duckdb",
        "duckdb_session": "duckdb",
        "ensure_retrained_in_time": "suppression_list",
        "ensure_supported_path": "ownership",
        "escape_glob": "duckdb",
        "superseded_consent_files": "consent",
        "has_consent_sql": "consent",
        "experiment_salt": "user_assignment",
        "is_empty": "ownership",
        "is_home": "ownership",
        "move_into_place": "duckdb",
        "normalize_lake_url": "identity",
        "not_held_out_sql": "user_assignment",
        "oldest_staging_time": "duckdb",
        "open_consent": "consent",
        "open_duckdb": "duckdb",
        "parquet_sql": "duckdb",
        "quote_identifier": "duckdb",
        "quote_literal": "duckdb",
        "read_parquet_sql": "duckdb",
        "staging_folder": "duckdb",
        "temporary_folder": "duckdb",
        "timestamp_literal": "duckdb",
        "write_consent": "consent",
    },
)
