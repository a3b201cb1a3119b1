"""Fits at once in threads: as many as allowed, with the results of one after the other."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from scalr_prod.core.logging import current_log_context, log_context
from scalr_prod.evaluation.interactions import Interactions
from scalr_prod.evaluation.models import fits_in_parallel, make_model
from scalr_prod.evaluation.parallel_fits import FitPool
from scalr_prod.plugins import MODELS


def test_only_a_family_that_says_so_is_fitted_in_threads():
    assert {name: fits_in_parallel(name) for name in MODELS.builtin} == dict.fromkeys(MODELS.builtin, False) | {"als": True}


def test_two_fits_run_at_once_and_share_the_threads():
    both = threading.Barrier(2, timeout=20)

    def fit(job, threads):
        both.wait()
        return job, threads, threading.current_thread() is threading.main_thread()

    assert FitPool.from_family("als", 4).map(fit, ["a", "b"]) == [("a", 2, False), ("b", 2, False)]


@pytest.mark.parametrize(("family", "threads"), [("sasrec", 4), ("als", 1)])
def test_others_are_fitted_one_after_the_other_with_all_threads(family, threads):
    running, most = [], []

    def fit(job, threads):
        running.append(job)
        most.append(len(running))
        running.remove(job)
        return threads

    assert FitPool.from_family(family, threads).map(fit, range(3)) == [threads] * 3
    assert most == [1, 1, 1]


def test_no_more_than_four_fits_are_in_memory():
    running, most, lock = 0, [], threading.Lock()

    def fit(_job, _threads):
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        time.sleep(0.02)
        with lock:
            running -= 1

    FitPool.from_family("als", 64).map(fit, range(12))
    assert max(most) == 4


def test_an_error_ends_the_others_that_have_not_begun():
    begun = []

    def fit(job, _threads):
        begun.append(job)
        if job == 0:
            raise ValueError("no such factor")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="no such factor"):
        FitPool(2, 2).map(fit, range(50))
    assert len(begun) < 50


def test_log_lines_of_a_fit_keep_their_context():
    with log_context(stage="evaluate"):
        found = FitPool(2, 2).map(lambda _job, _threads: current_log_context(), range(2))
    assert found == [{"stage": "evaluate"}] * 2
    assert current_log_context() == {}


def test_vectors_are_the_same_with_any_number_of_threads():
    users, items, events = 300, 120, 6_000

    def interactions(seed):
        rng = np.random.default_rng(seed)
        user, item = rng.integers(0, users, events), rng.integers(0, items, events)
        weight = rng.random(events).astype(np.float32)
        time = np.zeros(events, np.int64)
        return Interactions(user.astype(np.int32), item.astype(np.int32), time, weight, users, items, 1)

    def fit(seed, threads):
        model = make_model("als", {"factors": 16}, threads=threads)
        model.fit(interactions(seed), seed=seed)
        return model.score(np.arange(users))

    one, *others = (pool.map(fit, range(5)) for pool in (FitPool(1, 1), FitPool(2, 2), FitPool(8, 4)))
    assert len({scores.tobytes() for scores in one}) == 5
    for other in others:
        for expected, found in zip(one, other, strict=True):
            assert np.array_equal(expected, found)
