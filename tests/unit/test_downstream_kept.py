"""Results on disk: the same to the bit, whole or not there, and worked out anew where the name or the file is another."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scalr_prod.downstream.kept import ARRAY, FACTS, FORGETFUL, Kept, outcomes_of
from scalr_prod.downstream.metrics import Ranking
from scalr_prod.downstream.odds import LabelledRows, Odds
from scalr_prod.downstream.trial import Outcome

KEY = ("ndcg", "als", {"half_life": float("inf")}, [0.1, 0.1])


def made(value):
    """A function that gives a value, and how often it was called."""
    calls = []

    def make():
        calls.append(value)
        return value

    return make, calls


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (ARRAY, np.array([0.1, np.nan, 1 / 3, 5e-324])),
        (FACTS, {"a": [1 / 3, None, True], "b": "ü"}),
        (FACTS, None),
    ],
)
def test_a_result_is_made_once_and_comes_back_to_the_bit(tmp_path, form, value):
    make, calls = made(value)
    for _ in range(2):
        found = Kept(tmp_path / "kept", "of a scene").once(KEY, make, form)
        if form is ARRAY:
            assert found.dtype == value.dtype
            assert found.tobytes() == value.tobytes()
        else:
            assert found == value
    assert len(calls) == 1
    Kept(tmp_path / "kept", "of another scene").once(KEY, make, form)
    Kept(tmp_path / "kept", "of a scene").once((*KEY, 0), make, form)
    assert len(calls) == 3


@pytest.mark.parametrize("probable", [True, False])
def test_an_outcome_comes_back_with_the_rows_of_its_judge(tmp_path, probable):
    rng = np.random.default_rng(0)
    place = np.arange(6)
    rows = LabelledRows(place, place, place, place % 2 == 0, (place % 3).astype(np.int8))
    judge = SimpleNamespace(rows={9: rows}.__getitem__)
    ranking = Ranking(rng.integers(0, 9, (6, 4), dtype=np.int32), rng.random((6, 4)), *rng.random((5, 6)))
    outcome = Outcome(ranking, {"coverage": 1 / 3}, *((Odds(rows, rng.random(6)), 9) if probable else ()))
    make, calls = made(outcome)
    kept = Kept(tmp_path, "of a scene")
    kept.once(KEY, make, outcomes_of(judge))
    found = kept.once(KEY, make, outcomes_of(judge))
    assert len(calls) == 1
    for name, array in vars(ranking).items():
        assert getattr(found.ranking, name).dtype == array.dtype
        assert np.array_equal(getattr(found.ranking, name), array)
    assert (found.exposure, found.negatives) == (outcome.exposure, outcome.negatives)
    if probable:
        assert found.odds.rows is rows
        assert np.array_equal(found.odds.probability, outcome.odds.probability)
    else:
        assert found.odds is None


def test_a_file_that_cannot_be_read_is_made_anew(tmp_path, caplog):
    kept = Kept(tmp_path, "of a scene")
    make, calls = made(np.arange(3.0))
    kept.once(KEY, make, ARRAY)
    (path,) = tmp_path.iterdir()
    for damaged in (path.read_bytes()[:-30], b"", b"no archive"):
        path.write_bytes(damaged)
        assert kept.once(KEY, make, ARRAY).tolist() == [0, 1, 2]
        assert "cannot be read and is worked out anew" in caplog.text
    assert len(calls) == 4
    assert kept.once(KEY, make, ARRAY).tolist() == [0, 1, 2]
    assert len(calls) == 4


def test_what_is_broken_off_leaves_nothing(tmp_path):
    kept = Kept(tmp_path, "of a scene")

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.once(KEY, stopped, ARRAY)
    with pytest.raises(TypeError):
        kept.once(KEY, lambda: {"no": object()}, FACTS)
    assert not list(tmp_path.iterdir())


def test_without_a_home_nothing_is_kept():
    make, calls = made(1)
    assert [FORGETFUL.once(KEY, make, FACTS) for _ in range(2)] == [1, 1]
    assert len(calls) == 2
