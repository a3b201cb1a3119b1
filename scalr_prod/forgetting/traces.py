# SPDX-License-Identifier: Apache-2.0
"""Removal of ids of users or items from text, JSON and Parquet files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from scalr_prod.contracts import ITEM_ID, USER_ID
from scalr_prod.generation.parts import sha256_of
from scalr_prod.row_groups import batches_of
from scalr_prod.whole import whole

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    from scalr_prod.tombstones import Kind

__all__ = ["FileOfRows", "Ids", "Items", "Users", "write_over"]

#: Replaces an id in texts.
GONE: Final = "[forgotten]"
#: Column of a Parquet file that lists ids.
_LISTED: Final = "id"
#: Least number of digits of an id that is replaced anywhere in a text.
_NUMBER_LIKE_AN_ID: Final = 6
#: JSON keys below which texts may quote values of rows.
_SHOWN: Final = re.compile(r"user|unexpected|example|value|row|cause|message|detail", re.IGNORECASE)
#: JSON keys below which lists contain values of rows and how often each occurred. Other numbers, unless their key names an id, are
#: versions, counts and sizes that the package reads again, so they are kept.
_VALUES: Final = re.compile(r"(partial_)?unexpected_(index_)?(list|counts)|observed_value|value_set|details")
_COUNTED: Final = "count"
_BATCH: Final = 65_536


@dataclass(frozen=True)
class FileOfRows:
    """A Parquet file that was rewritten without the rows of erased ids.

    Attributes:
        removed: Number of removed rows.
        former: SHA-256 of the file before.
        rows: Number of remaining rows.
        bytes: Size after rewriting.
        sha256: SHA-256 after rewriting.
    """

    removed: int
    former: str
    rows: int
    bytes: int
    sha256: str


class Ids:
    """Users or items to erase.

    Args:
        ids: Their ids, in the lake's type.

    Attributes:
        kind: ``user`` or ``item``.
        column: The id column of tables.
        keys: Keys that identify a JSON object as a row of one id.
        listed: Stem of a Parquet file with a list of ids, or column with a list of ids per row.
        within: List column in rows of others that may contain the ids; they are replaced by null.
    """

    kind: ClassVar[Kind]
    column: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    listed: ClassVar[str]
    within: ClassVar[str | None] = None

    def __init__(self, ids: Sequence[int | str]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self.texts = {str(value) for value in self.ids}
        self._spelled = self._in_words()
        short = {text for text in self._spelled if _is_short(text)}
        self._pattern = re.compile(rf"(?<![\w.-])(?:{_any_of(self._spelled - short)})(?![\w-]|\.\w)")
        # A short number counts as an id only after a word such as "user", or as the whole content of an HTML element: elsewhere it is a
        # count, a version or a width.
        named, alone = rf"\b{self.kind}s?(?:[ _]?ids?)?[\"']?\W{{0,4}}", r">\s*"
        short_id = f"(?:{_any_of(short)})"
        self._pattern_of_short = re.compile(rf"({named}){short_id}(?![\w-]|\.\w)|({alone}){short_id}(?=\s*<)", re.IGNORECASE)

    def _in_words(self) -> set[str]:
        """Return the ids that are removed from texts and from values whose key does not name an id."""
        return self.texts

    def in_text(self, text: str) -> tuple[str, int]:
        """Return a text without the ids, and how many it contained."""
        if not any(identifier in text for identifier in self._spelled):
            return text, 0
        text, found = self._pattern.subn(GONE, text)
        text, more = self._pattern_of_short.subn(lambda match: f"{match[1] or match[2]}{GONE}", text)
        return text, found + more

    def in_json(self, value: Any, *, name: str = "", shown: bool = False, listed: bool = False) -> tuple[Any, int]:
        """Return a JSON value without the ids, and how many it contained; list entries that are rows of an id are removed entirely.

        Args:
            value: The value.
            name: Its key, or the key of the list that contains it.
            shown: Whether it is below a key whose texts may quote values of rows.
            listed: Whether it is below a key whose lists contain values of rows.
        """
        if isinstance(value, str):
            return self.in_text(value) if shown else (value, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            matches = self.texts if name in self.keys else self._spelled if listed and name != _COUNTED else ()
            return (GONE, 1) if str(value) in matches else (value, 0)
        found = 0
        if isinstance(value, dict):
            content: dict[str, Any] = {}
            for key, child in value.items():
                content[key], inside = self.in_json(
                    child,
                    name=key,
                    shown=shown or bool(_SHOWN.search(key)),
                    listed=listed or (isinstance(child, list | dict) and bool(_VALUES.fullmatch(key))),
                )
                found += inside
            return content, found
        if isinstance(value, list):
            kept = []
            for child in value:
                if isinstance(child, dict) and any(
                    child.get(key) is not None and str(child[key]) in self.texts for key in self.keys
                ):
                    found += 1
                    continue
                scrubbed, inside = self.in_json(child, name=name, shown=shown, listed=listed)
                kept.append(scrubbed)
                found += inside
            return kept, found
        return value, 0

    def in_file(self, path: Path) -> int:
        """Remove the ids from a text or JSON file atomically; return how many it contained."""
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        # JSON escapes non-ASCII letters.
        spelled = self.texts | {json.dumps(identifier)[1:-1] for identifier in self.texts}
        if not any(identifier in text for identifier in spelled):
            return 0
        found = 0
        if path.suffix == ".json":
            try:
                content, found = self.in_json(json.loads(text))
            except ValueError:
                text, found = self.in_text(text)
            else:
                text = json.dumps(content, indent=1) + "\n" if found else text
        else:
            text, found = self.in_text(text)
        if found:
            write_over(path, text.encode("utf-8", errors="surrogateescape"))
        return found

    def of_column(self, kind: pa.DataType) -> pa.Array:
        """Return the ids as values of a column's type, without those that the type cannot hold."""
        import pyarrow as pa

        if pa.types.is_integer(kind):
            numeric = [int(value) for value in self.ids if re.fullmatch(r"-?\d{1,19}", str(value))]
            return pa.array([value for value in numeric if -(2**63) <= value < 2**63], pa.int64())
        return pa.array(sorted(self.texts), kind)

    def in_parquet(self, path: Path) -> FileOfRows | None:
        """Remove the ids' rows from a Parquet file atomically; return None if it has none.

        In a list of ids (a single column ``id``), ids are replaced by null, so that the positions of the others do not change.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not self.held_by(path):
            return None
        former, rows, removed = sha256_of(path), 0, 0
        with (
            whole(path) as unfinished,
            pq.ParquetFile(path) as file,
            pq.ParquetWriter(unfinished, file.schema_arrow, compression="zstd") as writer,
        ):
            column = str(self._column_of(file, path))
            kind = self._kind_of(file, column)
            ids = self.of_column(kind)
            for batch in batches_of(file, _BATCH):
                if column == self.listed:
                    kept, gone = _without(batch, ids, column)
                    writer.write_batch(kept)
                    rows, removed = rows + kept.num_rows, removed + gone
                    continue
                matches = pc.is_in(batch.column(column), value_set=ids)
                if column == _LISTED:
                    kept = pa.record_batch([pc.if_else(matches, pa.scalar(None, kind), batch.column(0))], schema=batch.schema)
                else:
                    kept = _without_others(batch.filter(pc.invert(matches)), ids, self.within)
                writer.write_batch(kept)
                rows += kept.num_rows
                removed += pc.sum(matches).as_py() or 0
        return FileOfRows(removed, former, rows, path.stat().st_size, sha256_of(path))

    def held_by(self, path: Path) -> bool:
        """Return whether a Parquet file has a row of one of the ids, or a list that contains one."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            column = self._column_of(file, path)
            if column is None:
                return False
            names = [name for name in (column, self.within) if name and name in file.schema_arrow.names]
            return any(
                pc.any(pc.is_in(_flat(column), value_set=self.of_column(_flat(column).type))).as_py()
                for batch in batches_of(file, _BATCH, columns=names)
                for column in batch.columns
                if len(_flat(column))
            )

    def _column_of(self, file: pq.ParquetFile, path: Path) -> str | None:
        """Return the file's column with the ids; None if it has none."""
        import pyarrow as pa

        names = file.schema_arrow.names
        if self.listed in names and pa.types.is_list(file.schema_arrow.field(self.listed).type):
            column = self.listed
        else:
            column = _LISTED if names == [_LISTED] and path.stem == self.listed else self.column
        if column not in names:
            return None
        kind = self._kind_of(file, column)
        return column if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) else None

    def _kind_of(self, file: pq.ParquetFile, column: str) -> pa.DataType:
        """Return the type of the ids in a column."""
        kind = file.schema_arrow.field(column).type
        return kind.value_type if column == self.listed else kind


class Users(Ids):
    """Users to erase."""

    kind = "user"
    column = USER_ID
    keys = (USER_ID, "user")
    listed = "users"


class Items(Ids):
    """Items of the target domain to erase."""

    kind = "item"
    column = ITEM_ID
    keys = (ITEM_ID, "item")
    listed = "target_items"
    within = "target_user_history__item_ids"

    def _in_words(self) -> set[str]:
        # In a text, a short number is more likely a count, a version or a time than an item.
        return {text for text in self.texts if not _is_short(text)}


def _is_short(text: str) -> bool:
    return text.isdecimal() and len(text) < _NUMBER_LIKE_AN_ID


def _any_of(texts: Collection[str]) -> str:
    """Return a regular expression that matches any of the texts, longest first; without texts, one that never matches."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def write_over(path: Path, content: bytes) -> None:
    """Replace a file's content atomically, with its permissions unchanged."""
    with whole(path) as unfinished, unfinished.open("wb") as file:
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flat(column: pa.Array) -> pa.Array:
    """Return the values of a column, or of its lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.list_flatten(column) if lists else column


def _without_others(batch: pa.RecordBatch, ids: pa.Array, within: str | None) -> pa.RecordBatch:
    """Replace the ids in the rows' lists by null: positions, times and list lengths do not change."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if within is None or within not in batch.schema.names:
        return batch
    lists = batch.column(within)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(lists)
    kept = pc.if_else(pc.is_in(values, value_set=ids.cast(values.type)), pa.scalar(None, values.type), values)
    offsets = pa.array([0, *counts.cumsum().tolist()], pa.int32())
    changed = pa.ListArray.from_arrays(offsets, kept, mask=lists.is_null())
    place = batch.schema.get_field_index(within)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type))


def _without(batch: pa.RecordBatch, ids: pa.Array, column: str) -> tuple[pa.RecordBatch, int]:
    """Remove the ids from the rows' lists; return the rows and how many ids were removed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(column)
    flat, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    matches = pc.is_in(flat, value_set=ids)
    kept, left = flat.filter(pc.invert(matches)), parents.filter(pc.invert(matches)).to_numpy()
    ends = [int((left < row).sum()) for row in range(len(lists) + 1)]
    place = batch.schema.get_field_index(column)
    changed = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), kept)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type)), pc.sum(matches).as_py() or 0
