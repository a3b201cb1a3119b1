# SPDX-License-Identifier: Apache-2.0
"""How ids of users or items are found, and taken out, in what is no table: text, JSON values, Parquet files."""

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

#: What stands where an id stood.
GONE: Final = "[forgotten]"
#: The column of a file that lists ids.
_LISTED: Final = "id"
#: Digits from which on a number is looked for anywhere in a text.
_NUMBER_LIKE_AN_ID: Final = 6
#: Keys of JSON below which texts show values of rows.
_SHOWN: Final = re.compile(r"user|unexpected|example|value|row|cause|message|detail", re.IGNORECASE)
#: Keys of JSON below which lists hold values of rows, and how often each was found. All other numbers but those that are an id by their
#: name are the package's own, which reads them again: versions, counts of rows and of users, sizes.
_VALUES: Final = re.compile(r"(partial_)?unexpected_(index_)?(list|counts)|observed_value|value_set|details")
_COUNTED: Final = "count"
_BATCH: Final = 65_536


@dataclass(frozen=True)
class FileOfRows:
    """A Parquet file before and after its rows of some users were taken out.

    Attributes:
        removed: How many rows went.
        former: SHA-256 of the file before.
        rows: Rows that are left.
        bytes: Its size now.
        sha256: Of it now.
    """

    removed: int
    former: str
    rows: int
    bytes: int
    sha256: str


class Ids:
    """What is to be forgotten.

    Args:
        ids: Their ids, in the type that the lake has them in.

    Attributes:
        kind: Whose ids they are.
        column: Where a row names one.
        keys: By which a JSON object is a row of one.
        listed: The name of a file that lists them, and the column of a file whose only row is a list for each kind.
        within: The column of a row's list of others that may hold them; null stands where one stood.
    """

    kind: ClassVar[Kind]
    column: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    listed: ClassVar[str]
    within: ClassVar[str | None] = None

    def __init__(self, ids: Sequence[int | str]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self.texts = {str(one) for one in self.ids}
        self._spelled = self._in_words()
        short = {text for text in self._spelled if _is_short(text)}
        self._pattern = re.compile(rf"(?<![\w.-])(?:{_any_of(self._spelled - short)})(?![\w-]|\.\w)")
        #: A short number is an id where a word says so, and where it is all that an element of a page holds: elsewhere it is a count, a
        #: version, a width.
        named, alone = rf"\b{self.kind}s?(?:[ _]?ids?)?[\"']?\W{{0,4}}", r">\s*"
        one = f"(?:{_any_of(short)})"
        self._pattern_of_short = re.compile(rf"({named}){one}(?![\w-]|\.\w)|({alone}){one}(?=\s*<)", re.IGNORECASE)

    def _in_words(self) -> set[str]:
        """The ids that are taken out of texts and of values that are no ids by their name."""
        return self.texts

    def in_text(self, text: str) -> tuple[str, int]:
        """A text without the ids, and how many there were."""
        if not any(one in text for one in self._spelled):
            return text, 0
        text, found = self._pattern.subn(GONE, text)
        text, more = self._pattern_of_short.subn(lambda match: f"{match[1] or match[2]}{GONE}", text)
        return text, found + more

    def in_json(self, value: Any, *, name: str = "", shown: bool = False, listed: bool = False) -> tuple[Any, int]:
        """A JSON value without the ids, and how many there were; entries of lists that are rows of one of them go whole.

        Args:
            value: The value.
            name: Its key, or that of the list it is in.
            shown: Whether it is below a key whose texts show values of rows.
            listed: Whether it is below a key whose lists hold values of rows.
        """
        if isinstance(value, str):
            return self.in_text(value) if shown else (value, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            theirs = self.texts if name in self.keys else self._spelled if listed and name != _COUNTED else ()
            return (GONE, 1) if str(value) in theirs else (value, 0)
        found = 0
        if isinstance(value, dict):
            content: dict[str, Any] = {}
            for key, one in value.items():
                below = {
                    "shown": shown or bool(_SHOWN.search(key)),
                    "listed": listed or (isinstance(one, list | dict) and bool(_VALUES.fullmatch(key))),
                }
                content[key], inside = self.in_json(one, name=key, **below)
                found += inside
            return content, found
        if isinstance(value, list):
            kept = []
            for one in value:
                if isinstance(one, dict) and any(one.get(key) is not None and str(one[key]) in self.texts for key in self.keys):
                    found += 1
                    continue
                plain, inside = self.in_json(one, name=name, shown=shown, listed=listed)
                kept.append(plain)
                found += inside
            return kept, found
        return value, 0

    def in_file(self, path: Path) -> int:
        """Take the ids out of a text or JSON file, in one step; gives how many there were."""
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        # JSON writes other letters than ASCII as escapes.
        spelled = self.texts | {json.dumps(one)[1:-1] for one in self.texts}
        if not any(one in text for one in spelled):
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
        """The ids as values of a column's type; those that it cannot hold are left out."""
        import pyarrow as pa

        if pa.types.is_integer(kind):
            values = [int(one) for one in self.ids if re.fullmatch(r"-?\d{1,19}", str(one)) and -(2**63) <= int(one) < 2**63]
            return pa.array(values, pa.int64())
        return pa.array(sorted(self.texts), kind)

    def in_parquet(self, path: Path) -> FileOfRows | None:
        """Take their rows out of a Parquet file, in one step; None: it holds none.

        In a list of ids (one column ``id``), null stands where an id stood, so that the places of the others are what they were.
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
                theirs = pc.is_in(batch.column(column), value_set=ids)
                if column == _LISTED:
                    kept = pa.record_batch([pc.if_else(theirs, pa.scalar(None, kind), batch.column(0))], schema=batch.schema)
                else:
                    kept = _without_others(batch.filter(pc.invert(theirs)), ids, self.within)
                writer.write_batch(kept)
                rows += kept.num_rows
                removed += pc.sum(theirs).as_py() or 0
        return FileOfRows(removed, former, rows, path.stat().st_size, sha256_of(path))

    def held_by(self, path: Path) -> bool:
        """Whether a Parquet file has a row of one of them, or a list that holds one."""
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
        """The column of a file that names them; None: it has none."""
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
        """The type of the ids in a column."""
        kind = file.schema_arrow.field(column).type
        return kind.value_type if column == self.listed else kind


class Users(Ids):
    """Users who are to be forgotten."""

    kind = "user"
    column = USER_ID
    keys = (USER_ID, "user")
    listed = "users"


class Items(Ids):
    """Items of the target domain that are to be forgotten."""

    kind = "item"
    column = ITEM_ID
    keys = (ITEM_ID, "item")
    listed = "target_items"
    within = "target_user_history__item_ids"

    def _in_words(self) -> set[str]:
        # A short number is rarely an item where it stands in a text, but a count, a version or a time.
        return {text for text in self.texts if not _is_short(text)}


def _is_short(text: str) -> bool:
    return text.isdecimal() and len(text) < _NUMBER_LIKE_AN_ID


def _any_of(texts: Collection[str]) -> str:
    """A regular expression of some texts, the longer ones first; of none, one that nothing fits."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def write_over(path: Path, content: bytes) -> None:
    """Put other content into a file, whole or not at all; who may read it stays as it was."""
    with whole(path) as unfinished, unfinished.open("wb") as file:
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flat(column: pa.Array) -> pa.Array:
    """The values of a column, or of its lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.list_flatten(column) if lists else column


def _without_others(batch: pa.RecordBatch, ids: pa.Array, within: str | None) -> pa.RecordBatch:
    """Rows with null in place of the ids that their lists hold: places, times and lengths of the lists are what they were."""
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
    """Rows whose lists do not hold the ids, and how many were taken out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(column)
    flat, of = pc.list_flatten(lists), pc.list_parent_indices(lists)
    theirs = pc.is_in(flat, value_set=ids)
    kept, left = flat.filter(pc.invert(theirs)), of.filter(pc.invert(theirs)).to_numpy()
    ends = [int((left < row).sum()) for row in range(len(lists) + 1)]
    place = batch.schema.get_field_index(column)
    changed = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), kept)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type)), pc.sum(theirs).as_py() or 0
