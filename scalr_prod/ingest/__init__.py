# SPDX-License-Identifier: Apache-2.0
"""Ingest: external logs → event tables and item catalogues in the lake.

All input is validated before anything is written. Ingest is idempotent: the same input adds nothing, a log that has grown adds its new
rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.ingest.column_mapping import ColumnSelection
    from scalr_prod.ingest.column_parsers import (
        CellOrigin,
        IdParser,
        common_id_type,
        first_true_index,
        parse_numbers,
        select_column,
    )
    from scalr_prod.ingest.id_mapping import IdMapping
    from scalr_prod.ingest.ingest_report import IngestReport
    from scalr_prod.ingest.input_state import changed_inputs
    from scalr_prod.ingest.pipeline import ingest
    from scalr_prod.ingest.preflight import check_domain_input, check_id_mapping
    from scalr_prod.ingest.sources.files import format_suffix, has_known_format, resolve_location
    from scalr_prod.ingest.sources.lakehouse import read_delta_table
    from scalr_prod.ingest.sources.protocol import Batch, LogReader, LogSource
    from scalr_prod.ingest.sources.readers import read_path
    from scalr_prod.ingest.sources.sql import list_tables, read_query
    from scalr_prod.ingest.sources.table_formats import detect_table_format
    from scalr_prod.ingest.staging import EventParser, ItemParser, open_events, open_items
    from scalr_prod.ingest.timestamp_parser import TimestampParser

__all__ = [
    "Batch",
    "CellOrigin",
    "ColumnSelection",
    "EventParser",
    "IdMapping",
    "IdParser",
    "IngestReport",
    "ItemParser",
    "LogReader",
    "LogSource",
    "TimestampParser",
    "changed_inputs",
    "check_domain_input",
    "check_id_mapping",
    "common_id_type",
    "detect_table_format",
    "first_true_index",
    "format_suffix",
    "has_known_format",
    "ingest",
    "list_tables",
    "open_events",
    "open_items",
    "parse_numbers",
    "read_delta_table",
    "read_path",
    "read_query",
    "resolve_location",
    "select_column",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Batch": "sources.protocol",
        "CellOrigin": "column_parsers",
        "ColumnSelection": "column_mapping",
        "EventParser": "staging",
        "IdMapping": "id_mapping",
        "IdParser": "column_parsers",
        "IngestReport": "ingest_report",
        "ItemParser": "staging",
        "LogReader": "sources.protocol",
        "LogSource": "sources.protocol",
        "TimestampParser": "timestamp_parser",
        "changed_inputs": "input_state",
        "check_domain_input": "preflight",
        "check_id_mapping": "preflight",
        "common_id_type": "column_parsers",
        "detect_table_format": "sources.table_formats",
        "first_true_index": "column_parsers",
        "format_suffix": "sources.files",
        "has_known_format": "sources.files",
        "ingest": "pipeline",
        "list_tables": "sources.sql",
        "open_events": "staging",
        "open_items": "staging",
        "parse_numbers": "column_parsers",
        "read_delta_table": "sources.lakehouse",
        "read_path": "sources.readers",
        "read_query": "sources.sql",
        "resolve_location": "sources.files",
        "select_column": "column_parsers",
    },
)
