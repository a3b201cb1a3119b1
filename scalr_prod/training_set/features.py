"""The spine's features, joined through the Feast service, part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.errors import TrainingSetError
from scalr_prod.training_set.spine import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

    from scalr_prod.settings import Settings
    from scalr_prod.training_set.spine import Spine

__all__ = ["FEATURE_SERVICE", "part_rows", "write_parts"]

FEATURE_SERVICE: Final = "downstream_training_v1"

#: List elements that one part's histories may hold; bounds the memory of a join, whatever the length of histories.
_ELEMENTS: Final = 5_000_000
#: What a torch stream reads, shuffles and shares out at once.
_ROW_GROUP: Final = 8_192


def part_rows(settings: Settings) -> int:
    """Rows of one part: 100 000 at histories of 50 events, more for shorter ones and fewer for longer ones."""
    return min(200_000, max(10_000, _ELEMENTS // settings.histories.length))


def write_parts(settings: Settings, spine: Spine, folder: Path, *, advance: Callable[[int], None]) -> list[Path]:
    """Join every feature of the service as of the last microsecond before each label, and write the result.

    Args:
        settings: The project's settings.
        spine: The labelled rows.
        folder: Where ``part-00000.parquet``, … go.
        advance: Called with the number of rows after each part.

    Raises:
        TrainingSetError: The join gave other rows than it was asked for.
    """
    import pyarrow.parquet as pq

    paths: list[Path] = []
    schema: Any = None
    for number, chunk in enumerate(spine.chunks(part_rows(settings))):
        rows = _join(settings, chunk)
        schema = schema or rows.schema
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(rows.cast(schema), path, compression="zstd", row_group_size=_ROW_GROUP, coerce_timestamps="us")
        paths.append(path)
        advance(rows.num_rows)
    return paths


def _join(settings: Settings, chunk: pa.Table) -> pa.Table:
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
    for name in found.schema.names:
        if name not in KEYS:
            rows = rows.append_column(
                _plain(found.schema.field(name)), found.column(name).cast(_plain(found.schema.field(name)).type)
            )
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
