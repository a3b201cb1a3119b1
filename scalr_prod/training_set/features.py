# SPDX-License-Identifier: Apache-2.0
"""The spine's features, joined through the Feast service, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.errors import TrainingSetError
from scalr_prod.training_set.manifest import IDS, ROWS
from scalr_prod.training_set.spine import KEYS
from scalr_prod.training_set.vocabulary import write_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.feast_store import OwnFeatures
    from scalr_prod.settings import Settings
    from scalr_prod.training_set.periods import Period
    from scalr_prod.training_set.spine import Spine

__all__ = ["FEATURE_SERVICE", "part_rows", "write_parts"]

FEATURE_SERVICE: Final = "downstream_training_v1"

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

    Short periods are joined together, long ones piece by piece.

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
    pieces = [
        (period, number, min(limit, rows - number * limit))
        for period, rows in periods.items()
        for number in range(-(-rows // limit))
    ]
    files: dict[Period, tuple[str, ...]] = {}
    waiting: list[tuple[str, pa.Table]] = []

    def join() -> None:
        joined = _join(settings, pa.concat_tables([piece for _, piece in waiting]), own)
        since = 0
        for name, piece in waiting:
            _write(joined.slice(since, piece.num_rows).combine_chunks(), folder, name)
            since += piece.num_rows
        advance(since)
        waiting.clear()

    for (period, number, size), piece in zip(pieces, spine.pieces([size for _, _, size in pieces]), strict=True):
        if period not in wanted:
            advance(size)
            continue
        if waiting and sum(held.num_rows for _, held in waiting) + size > limit:
            join()
        name = f"part-{period.name}-{number:05d}.parquet"
        waiting.append((name, piece))
        files[period] = (*files.get(period, ()), f"{ROWS}/{name}", f"{IDS}/{name}")
    if waiting:
        join()
    return files


def _write(rows: pa.Table, folder: Path, name: str) -> None:
    import pyarrow.parquet as pq

    for below in (ROWS, IDS):
        (folder / below).mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / ROWS / name, compression="zstd", row_group_size=_ROW_GROUP, coerce_timestamps="us")
    write_ids(rows, folder / IDS / name)


def _join(settings: Settings, chunk: pa.Table, own: OwnFeatures | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from scalr_prod.feast_store import point_in_time

    stamp = chunk.schema.field(EVENT_TIMESTAMP).type
    # Strictly before the label, on both clocks: the store shows what happened and was known up to the spine's instant.
    before = pc.subtract(chunk.column(EVENT_TIMESTAMP).cast(pa.int64()), 1).cast(stamp)
    asked = pa.table([chunk.column(USER_ID), chunk.column(ITEM_ID), before], names=list(KEYS))
    found = point_in_time(settings, asked, FEATURE_SERVICE)
    same = found.num_rows == asked.num_rows and all(
        found.column(key).cast(asked.schema.field(key).type).equals(asked.column(key)) for key in KEYS
    )
    if not same:
        raise TrainingSetError(
            f"the point-in-time join gave {found.num_rows} rows for {asked.num_rows}, or gave them in another order",
            where=FEATURE_SERVICE,
            next_step="see that feature_store.yaml names the offline store of scalr_prod",
        )
    rows = chunk
    features = [(field, found.column(field.name)) for field in found.schema if field.name not in KEYS]
    if own is not None:
        theirs = own.join(settings, asked)
        features += [(field, theirs.column(field.name)) for field in theirs.schema]
    for field, column in features:
        rows = rows.append_column(_plain(field), column.cast(_plain(field).type))
    return rows.replace_schema_metadata(None)


def _plain(field: pa.Field) -> pa.Field:
    """The field with types that every reader of Parquet knows: no 'large' ones, and timestamps in UTC microseconds."""
    import pyarrow as pa

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(kind):
            return pa.timestamp("us", tz="UTC")
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        return kind

    return pa.field(field.name, plain(field.type))
