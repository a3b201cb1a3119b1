"""Rows, training events and evidence are those of the lake as the run knew it; a run without rows says what to do."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.small_project import Handmade, target_rows

from scalr_prod.core.hashing import hash_fold
from scalr_prod.errors import GenerationError, RunNotFound
from scalr_prod.ledger import run_folder
from scalr_prod.privacy import measure_privacy, run_rows
from scalr_prod.privacy.evidence import measure_evidence
from scalr_prod.privacy.run_rows import find_run_files, open_run_rows, read_run_rows, weight_matrix
from scalr_prod.translator import ItemVocabulary
from scalr_prod.workspace import open_duckdb

#: The translator was trained until hour 50: u1's event is of that time, u2's happened before and became known later, u3's is after.
TARGET = [
    *target_rows(),
    ("u1", "t1", 20, 20),
    ("u1", "t1", 30, 30),
    ("u2", "t2", 20, 60),
    ("u3", "t3", 60, 60),
    ("u4", "t4", 20, 500),
]


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=TARGET)


@pytest.fixture
def opened(project, tmp_path):
    """The run, a connection with its views, and a version with its vocabulary."""
    spec = project.run(trained_until=50)
    items = pa.array([f"t{number}" for number in range(10)])
    vocabulary = ItemVocabulary(pa.array([f"s{number}" for number in range(10)]), items, *np.zeros((3, 10)))
    (tmp_path / "duck").mkdir()
    with open_duckdb(project.settings, tmp_path / "duck") as connection:
        open_run_rows(connection, project.settings, spec, find_run_files(project.settings, spec))
        yield project.candidates(spec), connection, SimpleNamespace(folds=3, vocabulary=lambda: vocabulary), project.settings


def read(opened):
    rows, connection, version, settings = opened
    return rows, read_run_rows(connection, settings, version)


def test_they_are_as_the_lake_has_them(opened):
    rows, found = read(opened)
    users = found.users.to_pylist()
    assert users == sorted(set(rows["user_id"]))
    for matrix, column, prefix in ((found.drawn, "item_id", "t"), (found.source, "source_item_id", "s")):
        shift = int(prefix == "s")  # 0 is padding
        expected = {
            (user, int(item.removeprefix(prefix)) + shift) for user, item in zip(rows["user_id"], rows[column], strict=True)
        }
        assert {(users[user], item) for user, item in zip(*matrix.nonzero(), strict=True)} == expected
    assert {(users[user], item) for user, item in zip(*found.real.nonzero(), strict=True)} == {("u1", 1)}
    assert found.is_member.tolist() == [user == "u1" for user in users]
    # u2's and u3's events were known to the run, u4's was not.
    assert [user for user, newcomer in zip(users, found.newcomer, strict=True) if not newcomer] == ["u1", "u2", "u3"]
    np.testing.assert_array_equal(found.fold, hash_fold(found.users, 3))
    assert set(found.weight.data) == set(rows["weight"].unique())
    np.testing.assert_array_equal(found.weight.toarray() > 0, found.drawn.toarray() > 0)


def test_the_highest_weight_of_a_pair_is_kept():
    user, item = np.array([1, 0, 1, 1, 0]), np.array([2, 0, 2, -1, 3], np.int32)
    weight = np.array([0.25, 0.5, 0.75, 1, 0.125], np.float32)
    found = weight_matrix(user, item, weight, (2, 4)).toarray()
    np.testing.assert_array_equal(found, [[0.5, 0, 0, 0.125], [0, 0, 0.75, 0]])
    assert weight_matrix(user[:0], item[:0], weight[:0], (2, 4)).nnz == 0


def test_of_many_users_a_sample_is_read_whole(opened, monkeypatch):
    rows, everybody = read(opened)
    monkeypatch.setattr(run_rows, "MAX_USERS", 7)
    _, found = read(opened)
    assert 0 < len(found.users) < len(everybody.users) == 20
    assert found.buckets == 3
    of_sample = rows[rows["user_id"].isin(found.users.to_pylist())]
    assert found.drawn.nnz == len(of_sample.drop_duplicates(["user_id", "item_id"]))


def test_evidence_counts_other_users(opened):
    rows, connection, *_ = opened
    trained = pd.DataFrame([("first", f"t{number}") for number in range(10)] + [("u1", "t1")], columns=["user_id", "item_id"])
    others = [
        trained.loc[(trained["item_id"] == item) & (trained["user_id"] != user), "user_id"].nunique()
        for user, item in zip(rows["user_id"], rows["item_id"], strict=True)
    ]
    expected = {str(k): pytest.approx(np.mean(np.array(others) < k)) for k in (2, 5, 10)}
    assert measure_evidence(connection) == expected
    assert 0 < expected["2"].expected < 1


def test_a_run_without_rows_says_what_to_do(project):
    with pytest.raises(RunNotFound, match="no run yet"):
        measure_privacy(project.settings)
    spec = project.run()
    shutil.rmtree(run_folder(project.settings.home, spec.run_id) / "candidates")
    with pytest.raises(GenerationError, match="no rows to measure") as caught:
        measure_privacy(project.settings, spec.run_id)
    assert caught.value.next_step == f"generate them: scalr runs resume {spec.run_id}"
