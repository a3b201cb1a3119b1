"""The pool of Dask workers does what the pool of threads does: order, errors, cancellation, progress, log context."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from support.built_tables import fill_lake

from scalr_prod.core.logging import current_log_context, log_context
from scalr_prod.errors import ComputeError, TranslatorError
from scalr_prod.translator import dask_pool, object_files
from scalr_prod.translator.dask_pool import open_training_pool
from scalr_prod.translator.worker_pool import check_cancelled, report_progress

LARGE = 2**18


@pytest.fixture(scope="module")
def settings(here, tmp_path_factory):
    return fill_lake(tmp_path_factory.mktemp("pool"), 40, compute={"dask": here})


@pytest.fixture
def pool(settings):
    with open_training_pool(settings, command="scalr train") as opened:
        yield opened


def left(settings) -> list[str]:
    return [path.name for path in settings.base.rglob("shuffle-*")]


def test_results_keep_their_order_and_nothing_is_left(settings):
    def scale(factor: np.ndarray, unit: int) -> tuple[np.ndarray, torch.Tensor, int]:
        time.sleep(0.05 * (unit == 0))
        return factor * unit, torch.full((LARGE,), float(unit)), torch.get_num_threads()

    with open_training_pool(settings, command="scalr train") as pool:
        found = list(pool.map(scale, np.arange(LARGE, dtype=np.float64), range(5)))
        assert left(settings)
    for unit, (array, tensor, threads) in enumerate(found):
        np.testing.assert_array_equal(array, np.arange(LARGE) * unit)
        assert tensor.tolist() == [unit] * LARGE
        assert threads == 1
    assert not left(settings)
    assert not any((settings.home / "staging").iterdir())


def test_inputs_are_read_once_and_equal_arrays_are_written_once(settings, pool):
    array = np.random.default_rng(0).random(LARGE)
    inputs = {"a": array, "again": array.copy(), "tensor": torch.from_numpy(array.copy())}

    def address(given: dict, _: int) -> tuple[int, bool]:
        given["tensor"][0] += 0  # inputs can be changed if the driver's can
        return id(given), given["tensor"].data_ptr() % 64 == 0

    found = list(pool.map(address, inputs, range(6)))
    assert len(set(found)) == 1  # both workers are threads of this process
    assert found[0][1]
    assert len(left(settings)) == 2  # the arrays, and the dictionary without them


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TranslatorError("too little", where="here", next_step="more"), TranslatorError),
        (ValueError("too little"), ComputeError),
    ],
)
def test_a_failing_unit_cancels_the_others(settings, error, raised):
    def work(_: None, unit: str) -> None:
        if unit == "fails":
            time.sleep(0.2)
            raise error
        while True:
            check_cancelled()
            time.sleep(0.01)

    with pytest.raises(raised, match="too little"), open_training_pool(settings, command="scalr train") as pool:
        list(pool.map(work, None, ["endless", "fails"]))
    with open_training_pool(settings, command="scalr train") as pool:  # the workers are free again
        assert list(pool.map(max, 1, [0, 2])) == [1, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_one_function_cancels_the_other(pool, failing):
    def fail(*_: object) -> None:
        time.sleep(0.2)
        raise TranslatorError("too little", where="here", next_step="more")

    def run_forever(*_: object) -> None:
        while True:
            check_cancelled()
            time.sleep(0.01)

    functions = [lambda: list(pool.map(fail, None, [0])), lambda: list(pool.map(run_forever, None, [0]))]
    with pytest.raises(TranslatorError, match="too little"):
        pool.run_concurrently(functions[failing], functions[1 - failing])


def test_two_functions_share_the_workers(pool):
    assert pool.run_concurrently(
        lambda: list(pool.map(max, 1, [0, 2])), lambda: (torch.get_num_threads(), list(pool.map(min, 3, [4])))
    ) == ([1, 2], (1, [3]))


def test_units_report_their_progress(pool):
    told: list[float] = []

    def step(_: None, unit: int) -> int:
        with report_progress(10.0):
            check_cancelled(0.25)
        return unit

    assert list(pool.map(step, None, [1, 2], told.append)) == [1, 2]
    until = time.monotonic() + 30
    while sum(told) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    assert sum(told) == pytest.approx(20)


def test_log_lines_of_a_unit_know_the_stage(pool):
    with log_context(stage="train", run_id="run_1"):
        (fields,) = pool.map(lambda *_: current_log_context(), None, [0])
    assert fields == {"project": pool._settings.project_name, "stage": "train", "run_id": "run_1"}


def test_a_worker_keeps_the_inputs_of_two_trainings_at_most_and_forgets_them_at_the_end(settings):
    with ExitStack() as stack:
        pools = [stack.enter_context(open_training_pool(settings, command="scalr train")) for _ in range(3)]
        for pool in pools:
            assert list(pool.map(max, 1, [2])) == [2]
        assert len(dask_pool._inputs) == 2
        assert list(pools[0].map(max, 1, [2])) == [2]
    assert not dask_pool._inputs


def test_a_worker_forgets_the_inputs_of_finished_maps_but_not_the_arrays_that_others_share(pool, monkeypatch):
    array, read = np.arange(LARGE, dtype=np.float64), []
    mapped = object_files.map_bytes
    monkeypatch.setattr(object_files, "map_bytes", lambda *each, **named: read.append(each) or mapped(*each, **named))
    for number in range(4):
        assert list(pool.map(lambda inputs, _: inputs[0][-1], (array, number), [0])) == [LARGE - 1]
        (inputs,) = dask_pool._inputs.values()
        assert len(inputs._reader._objects) <= 2
    assert len(read) == 1


def test_inputs_that_somebody_changed_are_not_unpickled(settings, pool, monkeypatch):
    """Who may write to the lake must not run code on its workers."""
    wrote = object_files.ObjectWriter.write

    def write_and_change(writer, value):
        written = wrote(writer, value)
        (file,) = settings.base.rglob(written.path.rpartition("/")[2])
        file.write_bytes(pickle.dumps(Bomb()))
        return written

    monkeypatch.setattr(object_files.ObjectWriter, "write", write_and_change)
    with pytest.raises(ComputeError, match="was changed while a training used it"):
        list(pool.map(max, 1, [2]))
    assert not Bomb.went_off


class Bomb:
    went_off = False

    def __reduce__(self):
        return setattr, (Bomb, "went_off", True)


def test_units_that_are_still_queued_when_a_training_ends_do_not_begin(settings):
    def sleep(_: None, unit: int) -> int:
        while unit:
            check_cancelled()
            time.sleep(0.01)
        return unit

    with open_training_pool(settings, command="scalr train") as pool:
        assert next(pool.map(sleep, None, [0, 1, 2, 3, 4, 5])) == 0
    with open_training_pool(settings, command="scalr train") as pool:
        met = threading.Barrier(2, timeout=60)  # both workers are free
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dask_pool, "_met", met, raising=False)
            assert sorted(pool.map(lambda *_: dask_pool._met.wait(), None, [0, 1])) == [0, 1]


def test_without_a_cluster_units_run_on_threads_of_this_process(settings):
    met = threading.Barrier(2, timeout=60)
    local = settings.model_copy(
        update={
            "compute": settings.compute.model_copy(update={"dask": "local"}),
            "translator": settings.translator.model_copy(update={"threads": 2}),
        }
    )
    with open_training_pool(local, command="scalr train") as pool:
        assert sorted(pool.map(lambda barrier, _: barrier.wait(), met, range(2))) == [0, 1]


def test_a_gpu_of_this_machine_trains_alone(settings, monkeypatch, caplog):
    monkeypatch.setattr(dask_pool, "training_device", lambda _: "cuda")
    with caplog.at_level(logging.INFO), open_training_pool(settings, command="scalr train") as pool:
        assert list(pool.map(lambda *_: threading.current_thread().name.startswith(("translator", "Main")), None, [0])) == [
            True
        ]
