"""Results on disk: the same to the bit, whole or not there, and worked out anew where the name or the file is another."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scalr_prod.evaluation.evaluator import Outcome
from scalr_prod.evaluation.probabilities import CalibratedPredictions, LabelledRows
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.evaluation.result_cache import ARRAY_CODEC, JSON_CODEC, NULL_CACHE, ResultCache, outcome_codec

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
        (ARRAY_CODEC, np.array([0.1, np.nan, 1 / 3, 5e-324])),
        (JSON_CODEC, {"a": [1 / 3, None, True], "b": "ü"}),
        (JSON_CODEC, None),
    ],
)
def test_a_result_is_made_once_and_comes_back_to_the_bit(tmp_path, form, value):
    make, calls = made(value)
    for _ in range(2):
        found = ResultCache(tmp_path / "kept", "of a scene").get_or_compute(KEY, make, form)
        if form is ARRAY_CODEC:
            assert found.dtype == value.dtype
            assert found.tobytes() == value.tobytes()
        else:
            assert found == value
    assert len(calls) == 1
    ResultCache(tmp_path / "kept", "of another scene").get_or_compute(KEY, make, form)
    ResultCache(tmp_path / "kept", "of a scene").get_or_compute((*KEY, 0), make, form)
    assert len(calls) == 3


@pytest.mark.parametrize("probable", [True, False])
def test_an_outcome_comes_back_with_the_rows_of_its_judge(tmp_path, probable):
    rng = np.random.default_rng(0)
    place = np.arange(6)
    rows = LabelledRows(place, place, place, place % 2 == 0, (place % 3).astype(np.int8))
    judge = SimpleNamespace(labelled_rows={9: rows}.__getitem__)
    ranking = Ranking(rng.integers(0, 9, (6, 4), dtype=np.int32), rng.random((6, 4)), *rng.random((5, 6)))
    outcome = Outcome(ranking, {"coverage": 1 / 3}, *((CalibratedPredictions(rows, rng.random(6)), 9) if probable else ()))
    make, calls = made(outcome)
    kept = ResultCache(tmp_path, "of a scene")
    kept.get_or_compute(KEY, make, outcome_codec(judge))
    found = kept.get_or_compute(KEY, make, outcome_codec(judge))
    assert len(calls) == 1
    for name, array in vars(ranking).items():
        assert getattr(found.ranking, name).dtype == array.dtype
        assert np.array_equal(getattr(found.ranking, name), array)
    assert (found.exposure, found.negatives) == (outcome.exposure, outcome.negatives)
    if probable:
        assert found.predictions.rows is rows
        assert np.array_equal(found.predictions.probability, outcome.predictions.probability)
    else:
        assert found.predictions is None


def test_a_file_that_cannot_be_read_is_made_anew(tmp_path, caplog):
    kept = ResultCache(tmp_path, "of a scene")
    make, calls = made(np.arange(3.0))
    kept.get_or_compute(KEY, make, ARRAY_CODEC)
    (path,) = tmp_path.iterdir()
    for damaged in (path.read_bytes()[:-30], b"", b"no archive"):
        path.write_bytes(damaged)
        assert kept.get_or_compute(KEY, make, ARRAY_CODEC).tolist() == [0, 1, 2]
        assert "cannot be read and is computed again" in caplog.text
    assert len(calls) == 4
    assert kept.get_or_compute(KEY, make, ARRAY_CODEC).tolist() == [0, 1, 2]
    assert len(calls) == 4


def test_what_is_broken_off_leaves_nothing(tmp_path):
    kept = ResultCache(tmp_path, "of a scene")

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.get_or_compute(KEY, stopped, ARRAY_CODEC)
    with pytest.raises(TypeError):
        kept.get_or_compute(KEY, lambda: {"no": object()}, JSON_CODEC)
    assert not list(tmp_path.iterdir())


def test_without_a_home_nothing_is_kept():
    make, calls = made(1)
    assert [NULL_CACHE.get_or_compute(KEY, make, JSON_CODEC) for _ in range(2)] == [1, 1]
    assert len(calls) == 2
