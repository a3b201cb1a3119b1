# SPDX-License-Identifier: Apache-2.0
"""How users' ids are found, and taken out, in what is no table: text, JSON values, Parquet files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.contracts import USER_ID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["FileOfRows", "Users", "write_over"]

#: What stands where an id stood.
GONE: Final = "[forgotten]"
#: Keys by which a JSON object is a row of a user.
_KEYS: Final = (USER_ID, "user")
#: The column of a file that lists users, and of one whose only row is a list of them for each kind.
_LISTED: Final = "id"
_LIST: Final = "users"
#: Keys of JSON below which values of rows are shown.
_SHOWN: Final = re.compile(r"user|unexpected|example|value|row|cause|message|detail", re.IGNORECASE)
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


class Users:
    """Users who are to be forgotten.

    Args:
        ids: Their ids, in the type that the lake has them in.
    """

    def __init__(self, ids: Sequence[int | str]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self.texts = {str(one) for one in self.ids}
        # Longer ids first, and none inside of a longer word or number: u1 is not in u17.
        listed = "|".join(re.escape(text) for text in sorted(self.texts, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w.-])(?:{listed})(?![\w-]|\.\w)")

    def in_text(self, text: str) -> tuple[str, int]:
        """A text without the ids, and how many there were."""
        if not any(one in text for one in self.texts):
            return text, 0
        return self._pattern.subn(GONE, text)

    def in_json(self, value: Any, *, shown: bool = False) -> tuple[Any, int]:
        """A JSON value without the ids, and how many there were; entries of lists that are rows of such a user go whole.

        Args:
            value: The value.
            shown: Whether it is below a key that shows values of rows. All else is the package's own: states, counts, names.
        """
        if isinstance(value, str):
            return self.in_text(value) if shown else (value, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            return (GONE, 1) if shown and str(value) in self.texts else (value, 0)
        found = 0
        if isinstance(value, dict):
            content: dict[str, Any] = {}
            for name, one in value.items():
                content[name], inside = self.in_json(one, shown=shown or bool(_SHOWN.search(name)))
                found += inside
            return content, found
        if isinstance(value, list):
            kept = []
            for one in value:
                if isinstance(one, dict) and any(str(one.get(name)) in self.texts for name in _KEYS):
                    found += 1
                    continue
                plain, inside = self.in_json(one, shown=shown)
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
        """Take the rows of the users out of a Parquet file, in one step; None: it holds none.

        In a list of ids (one column ``id``), null stands where an id stood, so that the places of the others are what they were.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        if not self.held_by(path):
            return None
        former, temporary, rows, removed = _sha256(path), path.with_name(f".{path.name}.{os.getpid()}"), 0, 0
        with pq.ParquetFile(path) as file, pq.ParquetWriter(temporary, file.schema_arrow, compression="zstd") as writer:
            column = str(_column_of(file, path))
            kind = _kind_of(file, column)
            ids = self.of_column(kind)
            for batch in file.iter_batches(_BATCH):
                if column == _LIST:
                    kept, gone = _without(batch, ids)
                    writer.write_batch(kept)
                    rows, removed = rows + kept.num_rows, removed + gone
                    continue
                theirs = pc.is_in(batch.column(column), value_set=ids)
                if column == _LISTED:
                    kept = pa.record_batch([pc.if_else(theirs, pa.scalar(None, kind), batch.column(0))], schema=batch.schema)
                else:
                    kept = batch.filter(pc.invert(theirs))
                writer.write_batch(kept)
                rows += kept.num_rows
                removed += pc.sum(theirs).as_py() or 0
        temporary.replace(path)
        return FileOfRows(removed, former, rows, path.stat().st_size, _sha256(path))

    def held_by(self, path: Path) -> bool:
        """Whether a Parquet file has a row of one of the users."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            column = _column_of(file, path)
            if column is None:
                return False
            ids = self.of_column(_kind_of(file, column))
            values = (batch.column(0) for batch in file.iter_batches(_BATCH, columns=[column]) if batch.num_rows)
            flat = (pc.list_flatten(one) if column == _LIST else one for one in values)
            return any(pc.any(pc.is_in(one, value_set=ids)).as_py() for one in flat)


def write_over(path: Path, content: bytes) -> None:
    """Put other content into a file, whole or not at all; who may read it stays as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _column_of(file: pq.ParquetFile, path: Path) -> str | None:
    """The column of a file that names users; None: it has none."""
    import pyarrow as pa

    names = file.schema_arrow.names
    if _LIST in names and pa.types.is_list(file.schema_arrow.field(_LIST).type):
        column = _LIST
    else:
        column = _LISTED if names == [_LISTED] and path.stem == "users" else USER_ID
    if column not in names:
        return None
    kind = _kind_of(file, column)
    return column if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _kind_of(file: pq.ParquetFile, column: str) -> pa.DataType:
    """The type of the ids in a column."""
    kind = file.schema_arrow.field(column).type
    return kind.value_type if column == _LIST else kind


def _without(batch: pa.RecordBatch, ids: pa.Array) -> tuple[pa.RecordBatch, int]:
    """Rows whose lists of users do not hold the ids, and how many were taken out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(_LIST)
    flat, of = pc.list_flatten(lists), pc.list_parent_indices(lists)
    theirs = pc.is_in(flat, value_set=ids)
    kept, left = flat.filter(pc.invert(theirs)), of.filter(pc.invert(theirs)).to_numpy()
    ends = [int((left < row).sum()) for row in range(len(lists) + 1)]
    place = batch.schema.get_field_index(_LIST)
    changed = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), kept)
    return batch.set_column(place, batch.schema.field(place), changed.cast(lists.type)), pc.sum(theirs).as_py() or 0


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
