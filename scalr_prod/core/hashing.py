# SPDX-License-Identifier: Apache-2.0
"""Checksums of files, and a stable hash of an id: the same in Python and DuckDB, on any machine and in any process.

The hash of an id is the low 64 bits of the md5 of its text, ``md5_number_lower(CAST(id AS VARCHAR))`` in DuckDB, so the int 7 and the
string '7' hash alike. The bucket comes from the low bits and the fold from the high bits, so that they are independent.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa


_HIGH = 2**32
#: Ids hashed at a time: as Python objects they take a hundred bytes each.
_BATCH = 65_536


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stable_hash(ids: Sequence[int | str] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Hash each id.

    Args:
        ids: [N] int64 or string ids: a sequence, a numpy array, or a pyarrow array.

    Returns:
        uint64 [N].

    Raises:
        TypeError: An id is neither an int nor a string (a null, a float, bytes): its text would differ between platforms.
    """
    distinct = getattr(ids, "dictionary_encode", None)
    if distinct is not None:  # pyarrow: hash each distinct id once, since a user appears once per event
        encoded = distinct()
        flat = encoded.combine_chunks() if hasattr(encoded, "chunks") else encoded
        if flat.null_count:
            raise TypeError("an id is an int or a string, not NoneType")
        hashes: npt.NDArray[np.uint64] = _hashes(flat.dictionary)[flat.indices.to_numpy()]
        return hashes
    return _hashes(ids)


def _hashes(ids: Any) -> npt.NDArray[np.uint64]:
    md5, hashes = hashlib.md5, np.empty(len(ids), dtype=np.uint64)
    for first in range(0, len(ids), _BATCH):
        batch = ids[first : first + _BATCH]
        values: Iterable[Any] = batch.tolist() if hasattr(batch, "tolist") else batch
        low = b"".join(md5(_text(value), usedforsecurity=False).digest()[8:] for value in values)
        hashes[first : first + _BATCH] = np.frombuffer(low, dtype="<u8")
    return hashes


def hash_bucket(
    ids: Sequence[int | str] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray, buckets: int
) -> npt.NDArray[np.int64]:
    """Return the bucket of each id: int64 [N] in ``0 … buckets - 1``."""
    return (stable_hash(ids) % np.uint64(buckets)).astype(np.int64)


def hash_fold(ids: Sequence[int | str] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray, folds: int) -> npt.NDArray[np.int32]:
    """Return the fold of each id: int32 [N] in ``0 … folds - 1``."""
    return (stable_hash(ids) // np.uint64(_HIGH) % np.uint64(folds)).astype(np.int32)


def splitmix64(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply splitmix64 (Steele et al., 2014), which scatters neighbouring inputs."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))


def stable_hash_sql(column: str) -> str:
    """Return a DuckDB expression (UBIGINT) that equals `stable_hash` of a column or expression."""
    return f"md5_number_lower(CAST({column} AS VARCHAR))"


def hash_bucket_sql(column: str, buckets: int) -> str:
    """Return a DuckDB expression (BIGINT) that equals `hash_bucket`."""
    return f"CAST({stable_hash_sql(column)} % {int(buckets)} AS BIGINT)"


def _text(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value)).encode()
    raise TypeError(f"an id is an int or a string, not {type(value).__name__}")
