"""A search for an id in everything that a project keeps: bytes as they lie, and Parquet, whose bytes are compressed, decoded.

A short number, such as 7, lies in every file by chance. Its search reads what files say instead: columns, keys and fields that hold ids of
its kind, in Parquet, Delta's log, JSON and SQLite, those of Feast decoded.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
import struct
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["in_redis", "short_traces", "traces"]


def patterns(user: int | str) -> list[bytes]:
    """How an id may lie in bytes: as text, in both forms of UTF-16, and, of a number, as int64 in either order and as protobuf's varint."""
    text = str(user)
    found = [text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be")]
    if isinstance(user, int):
        varint, rest = bytearray(), user
        while rest > 127:
            varint.append(rest & 127 | 128)
            rest >>= 7
        found += [struct.pack("<q", user), struct.pack(">q", user), bytes([*varint, rest])]
    return found


def traces(folder: Path, user: int | str) -> list[str]:
    """Files below a folder that hold the id, each with where in it."""
    looked_for = patterns(user)
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        found += [f"{name}: name"] if str(user) in name else []
        found += [f"{name}: bytes {number}" for number, one in enumerate(looked_for) if one in content]
        if content[:4] == b"PAR1":
            found += [f"{name}: {place}" for place in _in_parquet(content, user)]
    return found


@functools.lru_cache(maxsize=1_000)  # most files are those of the search before
def _in_parquet(content: bytes, user: int | str) -> tuple[str, ...]:
    text, found = str(user), []
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        metadata = file.metadata
        if text in str(metadata.metadata):
            found.append("footer")
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                statistics = column.statistics
                if (
                    statistics is not None
                    and statistics.has_min_max
                    and any(text in str(one) for one in (statistics.min, statistics.max))
                ):
                    found.append(f"statistics of {column.path_in_schema} in row group {group}")
            rows: pa.Table = file.read_row_group(group)
            for column_name in rows.column_names:
                values = rows[column_name].to_pylist()
                if any(text in json.dumps(one, default=str) for one in values):
                    found.append(f"{column_name} in row group {group}")
    return tuple(found)


def short_traces(folder: Path, one: int, named: str) -> list[str]:
    """Files below a folder in which the id stands where ids of its kind do, each with where in it.

    Args:
        folder: A project's home.
        one: An id that is too short to be told by its bytes.
        named: A regular expression of columns, keys and features that hold such ids, and of nothing else.
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if content[:4] == b"PAR1":
            places = _columns_with(pq.read_table(path), one, named)
        elif content[:16] == b"SQLite format 3\0":
            places = _in_sqlite(path, one, named)
        elif path.suffix == ".json":
            places = _in_json(content.decode(), one, named)
        else:
            places = [f"line {row}" for row, line in enumerate(_lines(content), 1) if _shown(line, one, named)]
        found += [f"{path.relative_to(folder).as_posix()}: {place}" for place in places]
    return found


def _columns_with(rows: pa.Table, one: int, named: str) -> Iterator[str]:
    for name in rows.column_names:
        column = rows[name]
        values = column.to_pylist()
        if re.search(named, name) and any(_holds(value, one) for value in values):
            yield name
        elif pa.types.is_nested(column.type):  # of Delta's checkpoints: statistics of files
            yield from (f"{name}.{place}" for value in values for place in _within(value, one, named))


def _holds(value: Any, one: int) -> bool:
    """Whether a value is the id, as a number or as text, or a list of such."""
    if isinstance(value, list | tuple):
        return any(_holds(each, one) for each in value)
    return not isinstance(value, bool) and (value == one or value == str(one))


def _within(value: Any, one: int, named: str, key: str = "") -> Iterator[str]:
    """Keys of a nested value that are named so and hold the id."""
    if isinstance(value, str) and value[:1] in "{[":
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _within(each, one, named, name)
    elif isinstance(value, list):
        if re.search(named, key) and _holds(value, one):
            yield key
        for each in value:
            if isinstance(each, dict | list):
                yield from _within(each, one, named, key)
            elif isinstance(each, tuple) and len(each) == 2:
                yield from _within(each[1], one, named, str(each[0]))
    elif re.search(named, key) and _holds(value, one):
        yield key


def _in_json(text: str, one: int, named: str) -> Iterator[str]:
    """Of a JSON document, or of lines of JSON as Delta's log has them; conditions of SQL in it, too."""
    documents = [text] if text.count("\n{") == 0 else text.splitlines()
    for document in documents:
        if not document.strip():
            continue
        yield from _within(json.loads(document), one, named)
        if _shown(document, one, named):
            yield "a condition"


def _shown(line: str, one: int, named: str) -> bool:
    """Whether a line says column = id, or column IN (…, id, …)."""
    conditions = re.finditer(rf"(?:{named})\W{{0,3}}\s*(?:=|IN)\s*\(?([^)\n]*)", line)
    return any(re.search(rf"(?<![\w.-]){one}(?![\w.-])", condition[condition.lastindex or 0]) for condition in conditions)


def _lines(content: bytes) -> list[str]:
    return content.decode(errors="replace").splitlines()


def _in_sqlite(path: Path, one: int, named: str) -> Iterator[str]:
    """Cells of columns that are named so, JSON in others, and what Feast's online store encodes: keys of entities, and features."""
    from feast.infra.key_encoding_utils import deserialize_entity_key
    from feast.protos.feast.types.Value_pb2 import Value

    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in db.execute(f'PRAGMA table_info("{table}")')]
            online = {"entity_key", "feature_name", "value"} <= set(columns)
            for cells in db.execute(f'SELECT * FROM "{table}"'):
                row = dict(zip(columns, cells, strict=True))
                for name, cell in row.items():
                    yield from (f"{table}.{place}" for place in _within(cell, one, named, name))
                if online:
                    key = deserialize_entity_key(row["entity_key"], entity_key_serialization_version=3)
                    for name, value in zip(key.join_keys, key.entity_values, strict=True):
                        if re.search(named, name) and one == value.int64_val:
                            yield f"{table}: key of an entity"
                    feature = Value.FromString(row["value"])
                    kind = feature.WhichOneof("val")
                    held = getattr(feature, kind) if kind else None
                    values = list(held.val) if hasattr(held, "val") else [held]
                    if re.search(named, row["feature_name"]) and _holds(values, one):
                        yield f"{table}: {row['feature_name']}"


def in_redis(redis, user: int | str) -> list[str]:
    """Keys of a Redis that hold the id, in themselves or in what they stand for."""
    looked_for = patterns(user)
    found = []
    for key in redis.scan_iter():
        kind = redis.type(key)
        content = (
            [key, *(part for pair in redis.hgetall(key).items() for part in pair)] if kind == b"hash" else [key, redis.get(key)]
        )
        if any(one in part for one in looked_for for part in content):
            found.append(repr(key))
    return found
