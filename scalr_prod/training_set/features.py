# SPDX-License-Identifier: Apache-2.0
"""The spine's features, joined through the Feast service, part by part."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.training_set.by_key import Groups, joined_by_key
from scalr_prod.training_set.joining import features_of
from scalr_prod.training_set.manifest import IDS, ROWS
from scalr_prod.training_set.vocabulary import write_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.feast_store import OwnFeatures
    from scalr_prod.settings import Settings
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Spine

__all__ = ["part_rows", "write_parts"]

#: List elements that one part's histories may hold; bounds the memory of a join, whatever the length of histories.
_ELEMENTS: Final = 5_000_000
#: What a torch stream reads, shuffles and shares out at once.
_ROW_GROUP: Final = 8_192


def part_rows(settings: Settings) -> int:
    """Most rows of one file: 100 000 at histories of 50 events, more for shorter ones and fewer for longer ones."""
    return min(200_000, max(10_000, _ELEMENTS // settings.histories.length))


def write_parts(
    settings: Settings, spine: Spine, periods: Mapping[Period, int], wanted: Collection[Period], folder: Path,
    *, own: OwnFeatures | None = None, advance: Callable[[int], None],
) -> dict[Period, tuple[str, ...]]:  # fmt: skip
    """Join every feature of the service, and those of the user's own, as of the last microsecond before each label, and write the result.

    Short periods are joined and written together, long ones piece by piece. What is more than one join takes is joined in the order of
    users and of items, and written in the order of time.

    Args:
        settings: The project's settings.
        spine: The labelled rows.
        periods: Rows of each of its periods, in order.
        wanted: Those of them that are written.
        folder: Of the version: ``rows/part-2026-01-31-00000.parquet`` goes there, and the same name below ``ids``.
        own: The user's own features.
        advance: Called with the number of rows as they are done.

    Returns:
        The names of each period's files, relative to the folder.

    Raises:
        TrainingSetError: The join gave other rows than it was asked for.
    """
    import pyarrow as pa

    limit = part_rows(settings)
    pieces = _pieces(periods, wanted, limit)
    sizes, numbers = (np.array([getattr(piece, name) for piece in pieces], np.int64) for name in ("rows", "group"))
    advance(int(sizes[numbers < 0].sum()))
    files: dict[Period, tuple[str, ...]] = {}
    with ExitStack() as stack:
        found: Callable[[int], pa.Table] | None = None
        if (numbers > 0).any():
            groups = Groups(np.cumsum(sizes), numbers)
            found = stack.enter_context(joined_by_key(settings, spine.path, groups, limit=limit, own=own, advance=advance))
        read = zip(pieces, spine.pieces(sizes.tolist()), strict=True)
        for group, some in groupby((one for one in read if one[0].group >= 0), lambda one: one[0].group):
            names, chunks = zip(*((piece.file, chunk) for piece, chunk in some), strict=True)
            rows = pa.concat_tables(chunks)
            if found is None:
                features = features_of(settings, rows, own=own)
                advance(len(rows))
            else:
                features = found(group)
            for field, column in zip(features.schema, features.columns, strict=True):
                rows = rows.append_column(field, column)
            rows, since = rows.replace_schema_metadata(None), 0
            for name, chunk in zip(names, chunks, strict=True):
                _write(rows.slice(since, len(chunk)).combine_chunks(), folder, name)
                since += len(chunk)
    for piece in pieces:
        if piece.group >= 0:
            files[piece.period] = (*files.get(piece.period, ()), f"{ROWS}/{piece.file}", f"{IDS}/{piece.file}")
    return files


@dataclass(frozen=True)
class _Piece:
    """The rows of one file.

    Attributes:
        period: Which they belong to.
        file: Its name.
        rows: How many.
        group: Those of one number are joined or fetched, and written, together; -1: it is not written.
    """

    period: Period
    file: str
    rows: int
    group: int


def _pieces(periods: Mapping[Period, int], wanted: Collection[Period], limit: int) -> list[_Piece]:
    """Cut periods into files of at most so many rows, and take files together up to as many."""
    found: list[_Piece] = []
    group = held = 0
    for period, rows in periods.items():
        for number, since in enumerate(range(0, rows, limit)):
            size = min(limit, rows - since)
            if period in wanted:
                if held and held + size > limit:
                    group, held = group + 1, 0
                held += size
            name = f"part-{period.name}-{number:05d}.parquet"
            found.append(_Piece(period, name, size, group if period in wanted else -1))
    return found


def _write(rows: pa.Table, folder: Path, name: str) -> None:
    import pyarrow.parquet as pq

    for below in (ROWS, IDS):
        (folder / below).mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / ROWS / name, compression="zstd", row_group_size=_ROW_GROUP, coerce_timestamps="us")
    write_ids(rows, folder / IDS / name)
