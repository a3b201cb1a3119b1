# SPDX-License-Identifier: Apache-2.0
"""Preflight checks: whether an ingest can read its inputs, at little cost."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from scalr_prod.errors import EmptyInput

if TYPE_CHECKING:
    from collections.abc import Generator

    from scalr_prod.config import Settings
    from scalr_prod.ingest.sources.protocol import Batch


def check_domain_input(settings: Settings, place: str) -> str:
    """Check a domain's log and item file by their first rows; for a query, which may be slow, only the connection.

    Args:
        settings: The project's settings.
        place: Key of its settings below ``[domains]``.

    Returns:
        A sentence on the result.

    Raises:
        InputError: The input does not exist, cannot be read, lacks a column or is empty.
    """
    from scalr_prod.ingest.sources.sql import check_connection
    from scalr_prod.ingest.staging import open_events, open_items

    section = settings.domains[place]
    results = []
    if section.sql_source is not None:
        results.append(f"{check_connection(section.sql_source[0])} can be reached")
    else:
        batches, origin = open_events(settings, place)
        first = _first(batches, origin, next_step=f"check what [domains.{place}] names")
        results.append(f"{first.origin} can be read, with its columns")
    if section.items is not None:
        _first(open_items(settings, place), section.items, next_step=f"check or leave out [domains.{place}] items")
        results.append(f"so can {section.items}")
    return "; ".join(results)


def _first(batches: Generator[Batch, None, None], origin: str, *, next_step: str) -> Batch:
    with closing(batches):
        first = next((batch for batch in batches if batch.rows.num_rows), None)
    if first is None:
        raise EmptyInput("has no rows", where=origin, next_step=next_step)
    return first


def check_id_mapping(settings: Settings) -> str:
    """Check ``[users] map`` by its first pairs; for a query only the connection.

    Args:
        settings: The project's settings; they name a map.

    Returns:
        A sentence on the result.

    Raises:
        InputError: The map does not exist, cannot be read, lacks a column or an id, or is empty.
    """
    from scalr_prod.ingest.id_mapping import IdMapping
    from scalr_prod.ingest.sources.sql import check_connection

    section = settings.users
    if section.sql_source is not None:
        return f"{check_connection(section.sql_source[0])} can be reached"
    mapping = IdMapping.from_settings(settings, read_all=False)
    return f"{mapping.origin if mapping else 'no map'} can be read, with its columns"
