# SPDX-License-Identifier: Apache-2.0
"""A look at a domain's input that costs little: whether an ingest could begin to read it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from scalr_prod.errors import EmptyInput

if TYPE_CHECKING:
    from collections.abc import Generator

    from scalr_prod.ingest.protocol import Batch
    from scalr_prod.settings import Settings

__all__ = ["probe", "probe_users"]


def probe(settings: Settings, place: str) -> str:
    """Read the first rows of a domain's log and item file; of a query, which may take long, reach the database alone.

    Args:
        settings: The project's settings.
        place: Where its settings stand below ``[domains]``.

    Returns:
        What was found, in one sentence.

    Raises:
        InputError: The input is not there, cannot be read, lacks a column or is empty.
    """
    from scalr_prod.ingest.sql import reach
    from scalr_prod.ingest.staging import open_events, open_items

    chosen = settings.domains[place]
    found = []
    if chosen.sql is not None:
        found.append(f"{reach(chosen.sql[0])} can be reached")
    else:
        batches, origin = open_events(settings, place)
        first = _first(batches, origin, next_step=f"check what [domains.{place}] names")
        found.append(f"{first.origin} can be read, with its columns")
    if chosen.items is not None:
        _first(open_items(settings, place), chosen.items, next_step=f"check or leave out [domains.{place}] items")
        found.append(f"so can {chosen.items}")
    return "; ".join(found)


def _first(batches: Generator[Batch, None, None], origin: str, *, next_step: str) -> Batch:
    with closing(batches):
        first = next((batch for batch in batches if batch.rows.num_rows), None)
    if first is None:
        raise EmptyInput("holds no row", where=origin, next_step=next_step)
    return first


def probe_users(settings: Settings) -> str:
    """Read the first pairs of ``[users] map``; of a query reach the database alone.

    Args:
        settings: The project's settings; they name a map.

    Returns:
        What was found, in one sentence.

    Raises:
        InputError: The map is not there, cannot be read, lacks a column, holds no id where one belongs, or is empty.
    """
    from scalr_prod.ingest.sql import reach
    from scalr_prod.ingest.usermap import UserMap

    chosen = settings.users
    if chosen.sql is not None:
        return f"{reach(chosen.sql[0])} can be reached"
    found = UserMap.read(settings, whole=False)
    return f"{found.origin if found else 'no map'} can be read, with its columns"
