"""Ids as dense numbers, also where a column of them is larger than one Arrow array of strings can be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.core import id_index
from scalr_prod.core.id_index import IdIndex, index_in, sorted_unique
from scalr_prod.errors import InputError

#: Bytes of each of the long ids below; with 33 of them an array would have more than 2 GiB.
LONG = 2**26


def windows_of(text: bytes, count: int) -> pa.ChunkedArray:
    """One chunk each: strings of `LONG` bytes that begin one byte after another in the same memory."""
    data = pa.py_buffer(text)
    chunks = []
    for number in range(count):
        ends = pa.array([number, number + LONG], pa.int32()).buffers()[1]
        chunks.append(pa.Array.from_buffers(pa.string(), 1, [None, ends, data]))
    return pa.chunked_array(chunks)


def test_ids_are_numbered_in_their_order():
    ids = pa.chunked_array([["b", "a"], [], ["b", "c"]])
    known = sorted_unique(ids)
    assert known.to_pylist() == ["a", "b", "c"]
    assert index_in(ids, known).tolist() == [1, 0, 1, 2]
    assert index_in(["c", "d", None], known).tolist() == [2, -1, -1]
    assert sorted_unique(pa.array([3, 1, 3])).to_pylist() == [1, 3]
    assert index_in(pa.chunked_array([[1], [7]]), pa.array([1, 3])).tolist() == [0, -1]
    assert index_in(pa.chunked_array([], pa.string()), known).tolist() == []


@pytest.mark.parametrize("hashed", ["as is", "in three", "all alike"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_an_index_finds_what_a_table_built_for_each_call_finds(kind, hashed, monkeypatch):
    if hashed != "as is":
        number = 3 if hashed == "in three" else 1
        true_hash = id_index._hash
        monkeypatch.setattr(id_index, "_hash", lambda ids: true_hash(ids) % np.uint64(number))
    rng = np.random.default_rng(0)
    known = pa.array(rng.permutation(3_000)[:1_000]).cast(kind)
    index = IdIndex(known)
    for ids in (rng.integers(0, 3_000, 5_000), rng.integers(0, 3_000, 5_000), [], [None, 7, None]):
        asked = pa.array(ids, pa.int64()).cast(kind)
        for form in (asked, pa.chunked_array([asked.slice(0, 2), asked.slice(2)]), asked.to_pylist()):
            found = index.positions(form)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, index_in(form, known))


def test_an_index_does_not_find_nulls_and_may_be_empty():
    index = IdIndex(pa.array(["b", None, "a", None]))
    assert index.positions(["a", None, "b", "c"]).tolist() == [2, -1, 0, -1]
    assert IdIndex(pa.array([], pa.string())).positions(["a", None]).tolist() == [-1, -1]
    assert IdIndex(pa.array([None], pa.string())).positions(["a", None]).tolist() == [-1, -1]


@pytest.mark.slow
def test_a_column_of_more_than_two_gib_of_strings_is_numbered():
    chunk = windows_of(b"x" * LONG, 1).chunk(0)
    ids = pa.chunked_array([chunk] * 33 + [pa.array(["y"])])
    known = sorted_unique(ids)
    assert [len(text) for text in known.to_pylist()] == [LONG, 1]
    assert index_in(ids, known).tolist() == [0] * 33 + [1]


@pytest.mark.nightly
def test_more_than_two_gib_of_distinct_ids_end_in_a_clear_error():
    """Takes 5 GB of memory."""
    ids = windows_of(np.random.default_rng(0).integers(97, 123, LONG + 40, dtype=np.uint8).tobytes(), 33)
    with pytest.raises(InputError, match="2 GiB"):
        sorted_unique(ids)


def test_more_ids_than_positions_are_refused(monkeypatch):
    monkeypatch.setattr("scalr_prod.core.id_index._MAX_IDS", 3)
    assert len(sorted_unique(pa.array([1, 2, 3, 3]))) == 3
    with pytest.raises(InputError, match="4 distinct ids, at most 3"):
        sorted_unique(pa.array([1, 2, 3, 4]))
