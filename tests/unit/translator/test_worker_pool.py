"""The worker pool: threads, order of results, cancellation and progress."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from scalr_prod.translator.worker_pool import check_cancelled, open_worker_pool, report_progress


def blas_threads() -> set[int]:
    np.linalg.qr(np.eye(2))  # loads BLAS
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_and_blas_use_one_thread_within_the_pool(threads):
    def both(*_: object) -> tuple[int, set[int]]:
        return torch.get_num_threads(), blas_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        outside = both()
        with open_worker_pool(threads) as found:
            assert both() == (1, {1})
            assert list(found.map(both, None, range(6))) == [(1, {1})] * 6
        assert both() == outside
    finally:
        torch.set_num_threads(before)


def test_units_run_concurrently_and_results_keep_their_order():
    met = threading.Barrier(3, timeout=60)

    def meet(barrier: threading.Barrier, unit: int) -> int:
        barrier.wait()  # nobody passes alone
        return unit

    with open_worker_pool(3) as found:
        assert list(found.map(meet, met, range(6))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failing_unit_cancels_the_others(threads):
    begun = threading.Event()

    def work(_: None, unit: str) -> None:
        if unit == "fails":
            assert threads == 1 or begun.wait(60)
            raise ValueError("too little")
        begun.set()
        while True:
            check_cancelled()

    units = ["fails", "endless", "endless"]
    with open_worker_pool(threads) as found, pytest.raises(ValueError, match="too little"):
        list(found.map(work, None, units))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_unit_reports_its_steps_and_the_rest_at_the_end(threads):
    told: list[float] = []

    def step(_: None, unit: str) -> None:
        with report_progress(10.0):
            check_cancelled(0.25)
            if unit == "fails":
                raise ValueError("failed")
            check_cancelled(0.5)
            check_cancelled(0.5)
        check_cancelled(0.5)  # after its report

    with open_worker_pool(threads) as found:
        assert list(found.map(step, None, ["passes"], told.append)) == [None]
        assert told == [2.5, 5.0, 2.5, 0.0]
        with pytest.raises(ValueError, match="failed"):
            list(found.map(step, None, ["fails"], told.append))
    assert told[4:] == [2.5]


def test_a_unit_outside_of_a_pool_reports_to_nobody():
    with report_progress(10.0):
        check_cancelled(0.5)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_functions_share_the_pool(threads):
    with open_worker_pool(threads) as found:
        assert found.run_concurrently(
            lambda: list(found.map(max, 1, [0, 2])), lambda: (torch.get_num_threads(), list(found.map(min, 3, [4])))
        ) == ([1, 2], (1, [3]))


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_function_cancels_the_other(failing):
    begun = threading.Event()

    def fail(*_: object) -> None:
        assert begun.wait(60)
        raise ValueError("too little")

    def run_forever(*_: object) -> None:
        begun.set()
        while True:
            check_cancelled()

    with open_worker_pool(2) as found:
        functions = [lambda: list(found.map(fail, None, [0])), lambda: list(found.map(run_forever, None, [0]))]
        with pytest.raises(ValueError, match="too little"):
            found.run_concurrently(functions[failing], functions[1 - failing])
