# SPDX-License-Identifier: Apache-2.0
"""Removal of ids of users or items from text, JSON and Parquet files."""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from scalr_prod.core.atomic_io import atomic_path, sync_folder
from scalr_prod.core.hashing import file_sha256
from scalr_prod.core.row_groups import iter_batches
from scalr_prod.schemas import ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    from scalr_prod.workspace import SuppressedKind


#: Replaces an id in texts.
PLACEHOLDER: Final = "[forgotten]"
#: Column of a Parquet file that lists ids.
_LIST_COLUMN: Final = "id"
#: Least number of digits of an id that is replaced anywhere in a text.
_MIN_ID_DIGITS: Final = 6
#: JSON keys below which texts may quote values of rows.
_FREE_TEXT_KEYS: Final = re.compile(r"user|unexpected|example|value|row|cause|message|detail", re.IGNORECASE)
#: JSON keys below which lists contain values of rows and how often each occurred. Other numbers, unless their key names an id, are
#: versions, counts and sizes that the package reads again, so they are kept.
_ROW_VALUE_KEYS: Final = re.compile(r"(partial_)?unexpected_(index_)?(list|counts)|observed_value|value_set|details")
_COUNT_KEY: Final = "count"
#: Letters that JSON inside of HTML escapes besides.
_JSON_IN_HTML: Final = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "&<>'"})
_BATCH: Final = 65_536


@dataclass(frozen=True)
class RewrittenFile:
    """A Parquet file that was rewritten without the rows of erased ids.

    Attributes:
        removed: Number of removed rows.
        former_sha256: SHA-256 of the file before.
        rows: Number of remaining rows.
        bytes: Size after rewriting.
        sha256: SHA-256 after rewriting.
    """

    removed: int
    former_sha256: str
    rows: int
    bytes: int
    sha256: str


class Subjects:
    """Users or items to erase.

    Args:
        ids: Their ids, in the lake's type.

    Attributes:
        kind: ``user`` or ``item``.
        column: The id column of tables.
        json_keys: Keys that identify a JSON object as a row of one id.
        list_name: Stem of a Parquet file with a list of ids, or column with a list of ids per row.
        list_column: List column in rows of others that may contain the ids; they are replaced by null.
    """

    kind: ClassVar[SuppressedKind]
    column: ClassVar[str]
    json_keys: ClassVar[tuple[str, ...]]
    list_name: ClassVar[str]
    list_column: ClassVar[str | None] = None

    def __init__(self, ids: Sequence[int | str]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self.texts = {str(value) for value in self.ids}
        self._spellings = _spell(self.texts)
        self._ids_in_text = _spell(self._text_ids())
        short = {text for text in self._ids_in_text if _is_short(text)}
        self._long_id_pattern = re.compile(rf"(?<![\w.-])(?:{_alternation(self._ids_in_text - short)})(?![\w-]|\.\w)")
        # A short number counts as an id only after a word such as "user", or as the whole content of an HTML element: elsewhere it is a
        # count, a version or a width.
        named, alone = rf"\b{self.kind}s?(?:[ _]?ids?)?[\"']?\W{{0,4}}", r">\s*"
        short_id = f"(?:{_alternation(short)})"
        self._short_id_pattern = re.compile(rf"({named}){short_id}(?![\w-]|\.\w)|({alone}){short_id}(?=\s*<)", re.IGNORECASE)

    def _text_ids(self) -> set[str]:
        """Return the ids that are removed from texts and from values whose key does not name an id."""
        return self.texts

    def scrub_text(self, text: str) -> tuple[str, int]:
        """Return a text without the ids, and how many it contained."""
        if not any(identifier in text for identifier in self._ids_in_text):
            return text, 0
        text, count = self._long_id_pattern.subn(PLACEHOLDER, text)
        text, more = self._short_id_pattern.subn(lambda match: f"{match[1] or match[2]}{PLACEHOLDER}", text)
        return text, count + more

    def scrub_json(self, value: Any, *, name: str = "", free_text: bool = False, row_values: bool = False) -> tuple[Any, int]:
        """Return a JSON value without the ids, and how many it contained; list entries that are rows of an id are removed entirely.

        Args:
            value: The value.
            name: Its key, or the key of the list that contains it.
            free_text: Whether it is below a key whose texts may quote values of rows.
            row_values: Whether it is below a key whose lists contain values of rows.
        """
        if isinstance(value, str):
            return self.scrub_text(value) if free_text else (value, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            matches = self.texts if name in self.json_keys else self._ids_in_text if row_values and name != _COUNT_KEY else ()
            return (PLACEHOLDER, 1) if str(value) in matches else (value, 0)
        count = 0
        if isinstance(value, dict):
            content: dict[str, Any] = {}
            for key, child in value.items():
                content[key], inside = self.scrub_json(
                    child,
                    name=key,
                    free_text=free_text or bool(_FREE_TEXT_KEYS.search(key)),
                    row_values=row_values or (isinstance(child, list | dict) and bool(_ROW_VALUE_KEYS.fullmatch(key))),
                )
                count += inside
            return content, count
        if isinstance(value, list):
            kept = []
            for child in value:
                if isinstance(child, dict) and any(
                    child.get(key) is not None and str(child[key]) in self.texts for key in self.json_keys
                ):
                    count += 1
                    continue
                scrubbed, inside = self.scrub_json(child, name=name, free_text=free_text, row_values=row_values)
                kept.append(scrubbed)
                count += inside
            return kept, count
        return value, 0

    def scrub_file(self, path: Path) -> int:
        """Remove the ids from a text or JSON file atomically; return how many it contained."""
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if not any(identifier in text for identifier in self._spellings):
            return 0
        count = 0
        if path.suffix == ".json":
            try:
                content, count = self.scrub_json(json.loads(text))
            except ValueError:
                text, count = self.scrub_text(text)
            else:
                text = json.dumps(content, indent=1) + "\n" if count else text
        else:
            text, count = self.scrub_text(text)
        if count:
            overwrite_file(path, text.encode("utf-8", errors="surrogateescape"))
        return count

    def as_array(self, column_type: pa.DataType) -> pa.Array:
        """Return the ids as values of a column's type, without those that the type cannot hold."""
        import pyarrow as pa

        if pa.types.is_integer(column_type):
            numeric = [int(value) for value in self.ids if re.fullmatch(r"-?\d{1,19}", str(value))]
            return pa.array([value for value in numeric if -(2**63) <= value < 2**63], pa.int64())
        return pa.array(sorted(self.texts), column_type)

    def scrub_parquet(self, path: Path) -> RewrittenFile | None:
        """Remove the ids' rows from a Parquet file atomically; return None if it has none.

        In a list of ids (a single column ``id``), ids are replaced by null, so that the positions of the others do not change.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not self.is_in_parquet(path):
            return None
        former, rows, removed = file_sha256(path), 0, 0
        with (
            atomic_path(path) as unfinished,
            pq.ParquetFile(path) as file,
            pq.ParquetWriter(unfinished, file.schema_arrow, compression="zstd") as writer,
        ):
            column = str(self._id_column(file, path))
            kind = self._id_type(file, column)
            ids = self.as_array(kind)
            for batch in iter_batches(file, _BATCH):
                if column == self.list_name:
                    kept, gone = _remove_listed_ids(batch, ids, column)
                    writer.write_batch(kept)
                    rows, removed = rows + kept.num_rows, removed + gone
                    continue
                matches = pc.is_in(batch.column(column), value_set=ids)
                if column == _LIST_COLUMN:
                    kept = pa.record_batch([pc.if_else(matches, pa.scalar(None, kind), batch.column(0))], schema=batch.schema)
                else:
                    kept = _null_listed_ids(batch.filter(pc.invert(matches)), ids, self.list_column)
                writer.write_batch(kept)
                rows += kept.num_rows
                removed += pc.sum(matches).as_py() or 0
        return RewrittenFile(removed, former, rows, path.stat().st_size, file_sha256(path))

    def is_in_parquet(self, path: Path) -> bool:
        """Return whether a Parquet file has a row of one of the ids, or a list that contains one."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            column = self._id_column(file, path)
            if column is None:
                return False
            names = [name for name in (column, self.list_column) if name and name in file.schema_arrow.names]
            return any(
                pc.any(pc.is_in(_flatten(column), value_set=self.as_array(_flatten(column).type))).as_py()
                for batch in iter_batches(file, _BATCH, columns=names)
                for column in batch.columns
                if len(_flatten(column))
            )

    def find_in_parquet(self, path: Path) -> set[int | str]:
        """Return the ids that have rows in a Parquet file."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        found: set[int | str] = set()
        with pq.ParquetFile(path) as file:
            for batch in iter_batches(file, _BATCH, columns=[self.column]):
                column = batch.column(0)
                found.update(column.filter(pc.is_in(column, value_set=self.as_array(column.type))).unique().to_pylist())
        return found

    def _id_column(self, file: pq.ParquetFile, path: Path) -> str | None:
        """Return the file's column with the ids; None if it has none."""
        import pyarrow as pa

        names = file.schema_arrow.names
        if self.list_name in names and pa.types.is_list(file.schema_arrow.field(self.list_name).type):
            column = self.list_name
        else:
            column = _LIST_COLUMN if names == [_LIST_COLUMN] and path.stem == self.list_name else self.column
        if column not in names:
            return None
        kind = self._id_type(file, column)
        return column if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) else None

    def _id_type(self, file: pq.ParquetFile, column: str) -> pa.DataType:
        """Return the type of the ids in a column."""
        kind = file.schema_arrow.field(column).type
        return kind.value_type if column == self.list_name else kind


class UserSubjects(Subjects):
    """Users to erase."""

    kind = "user"
    column = USER_ID
    json_keys = (USER_ID, "user")
    list_name = "users"


class ItemSubjects(Subjects):
    """Items of the target domain to erase."""

    kind = "item"
    column = ITEM_ID
    json_keys = (ITEM_ID, "item")
    list_name = "target_items"
    list_column = "target_user_history__item_ids"

    def _text_ids(self) -> set[str]:
        # In a text, a short number is more likely a count, a version or a time than an item.
        return {text for text in self.texts if not _is_short(text)}


def _spell(texts: Collection[str]) -> set[str]:
    """Return texts as they are, and as HTML and JSON write them: with quotes, ``&``, ``<``, ``>`` or other letters escaped."""
    spelled = set()
    for text in texts:
        in_html, in_json = html.escape(text), json.dumps(text)[1:-1]
        spelled |= {text, in_html, in_html.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"), in_json}
        spelled.add(in_json.translate(_JSON_IN_HTML))
    return spelled


def _is_short(text: str) -> bool:
    return text.isdecimal() and len(text) < _MIN_ID_DIGITS


def _alternation(texts: Collection[str]) -> str:
    """Return a regular expression that matches any of the texts, longest first; without texts, one that never matches."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def overwrite_file(path: Path, content: bytes) -> None:
    """Replace a file's content atomically, with its permissions unchanged; it is on disk afterwards."""
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _flatten(column: pa.Array) -> pa.Array:
    """Return the values of a column, or of its lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.list_flatten(column) if lists else column


def _null_listed_ids(batch: pa.RecordBatch, ids: pa.Array, list_column: str | None) -> pa.RecordBatch:
    """Replace the ids in the rows' lists by null: positions, times and list lengths do not change."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if list_column is None or list_column not in batch.schema.names:
        return batch
    lists = batch.column(list_column)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(lists)
    kept = pc.if_else(pc.is_in(values, value_set=ids.cast(values.type)), pa.scalar(None, values.type), values)
    offsets = pa.array([0, *counts.cumsum().tolist()], pa.int32())
    changed = pa.ListArray.from_arrays(offsets, kept, mask=lists.is_null())
    place = batch.schema.get_field_index(list_column)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type))


def _remove_listed_ids(batch: pa.RecordBatch, ids: pa.Array, column: str) -> tuple[pa.RecordBatch, int]:
    """Remove the ids from the rows' lists; return the rows and how many ids were removed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(column)
    flat, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    matches = pc.is_in(flat, value_set=ids)
    kept, left = flat.filter(pc.invert(matches)), parents.filter(pc.invert(matches)).to_numpy()
    ends = left.searchsorted(range(len(lists) + 1))
    place = batch.schema.get_field_index(column)
    changed = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), kept)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type)), pc.sum(matches).as_py() or 0
