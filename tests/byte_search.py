"""A search for a user's id in everything that a project keeps: bytes as they lie, and Parquet, whose bytes are compressed, decoded."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["in_redis", "traces"]


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
            found += [f"{name}: {place}" for place in _in_parquet(path, user)]
    return found


def _in_parquet(path: Path, user: int | str) -> Iterator[str]:
    text = str(user)
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        if text in str(metadata.metadata):
            yield "footer"
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                statistics = column.statistics
                if (
                    statistics is not None
                    and statistics.has_min_max
                    and any(text in str(one) for one in (statistics.min, statistics.max))
                ):
                    yield f"statistics of {column.path_in_schema} in row group {group}"
            rows: pa.Table = file.read_row_group(group)
            for column_name in rows.column_names:
                values = rows[column_name].to_pylist()
                if any(text in json.dumps(one, default=str) for one in values):
                    yield f"{column_name} in row group {group}"


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
