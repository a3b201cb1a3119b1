import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr_prod.core.hashing import hash_bucket, hash_bucket_sql, hash_fold, stable_hash, stable_hash_sql

INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=20)


@settings(deadline=None, max_examples=50)
@given(st.one_of(INTS, TEXTS), st.integers(1, 1000))
def test_python_and_duckdb_agree(ids, n):
    texts = ids and isinstance(ids[0], str)
    rows = pa.table({"id": pa.array(ids, pa.string() if texts else pa.int64())})
    fold = f"{stable_hash_sql('id')} // {2**32} % {n}"
    columns = f"{stable_hash_sql('id')}, {hash_bucket_sql('id', n)}, {fold} AS fold"
    with duckdb.connect() as db:
        db.register("rows_", rows)
        found = db.sql(f"SELECT {columns} FROM rows_").fetchnumpy()
    by_sql = [np.asarray(column) for column in found.values()]
    for ours, theirs in zip((stable_hash(ids), hash_bucket(ids, n), hash_fold(ids, n)), by_sql, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_known_value_never_changes():
    assert stable_hash(["abc"]).tolist() == [8250560606382298838]


def test_every_container_gives_the_same():
    expected = stable_hash([3, 1]).tolist()
    assert stable_hash(np.array([3, 1])).tolist() == expected
    assert stable_hash(pa.array([3, 1])).tolist() == expected
    assert stable_hash(pa.chunked_array([[3], [1]])).tolist() == expected
    assert stable_hash(["3", "1"]).tolist() == expected
    assert stable_hash([]).tolist() == []


@pytest.mark.parametrize("bad", [None, 1.0, b"a", True])
def test_what_is_no_id_is_refused(bad):
    with pytest.raises(TypeError, match="int or a string"):
        stable_hash([bad])


def test_what_stands_in_it_again_and_again_keeps_its_place():
    ids = ["a", "b", "a", "a", "c", "b"]
    assert stable_hash(pa.chunked_array([ids[:2], ids[2:]])).tolist() == stable_hash(ids).tolist()
    assert stable_hash(pa.array(ids).dictionary_encode()).tolist() == stable_hash(ids).tolist()
    assert stable_hash(pa.array([], pa.string())).tolist() == []
    assert stable_hash(pa.chunked_array([], pa.string())).tolist() == []


@pytest.mark.parametrize("bad", [pa.array(["a", None]), pa.array([1.0]), pa.chunked_array([["a"], [None]]), pa.array([None])])
def test_what_is_no_id_is_refused_in_a_column_too(bad):
    with pytest.raises(TypeError, match="int or a string"):
        stable_hash(bad)
