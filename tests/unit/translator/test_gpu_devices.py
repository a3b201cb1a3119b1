"""Training, calibration and metrics on a GPU; tests that compute on one are skipped where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, METADATA, SETTINGS, make_log

from scalr_prod.translator import devices, training_device
from scalr_prod.translator.calibration import CalibrationEvents, calibrate, uncalibrated_tables
from scalr_prod.translator.data.training_pairs import LazyContexts, TrainingSlice
from scalr_prod.translator.estimators import attention, sequential
from scalr_prod.translator.information_gain import LabelledContexts, measure_own_over_others
from scalr_prod.translator.metrics import measure
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

METADATA = METADATA | {"folds": "0"}
GPU = "cuda"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")


@pytest.fixture(scope="module")
def pairs() -> TrainingSlice:
    torch.set_num_threads(1)
    return TrainingSlice.from_log(make_log(target_items=60), 70 * DAY, SETTINGS, popularity_until=100 * DAY)


@pytest.fixture(autouse=True)
def _forgotten():
    training_device.training_device.cache_clear()
    yield
    training_device.training_device.cache_clear()


@needs_gpu
def test_a_device_that_reproduces_the_cpu_passes_the_self_test():
    training_device.check_device_training(GPU)


@needs_gpu
def test_a_device_with_other_losses_fails_the_self_test(monkeypatch):
    states = attention.reference_states
    monkeypatch.setattr(attention, "reference_states", lambda *asked: 1.1 * states(*asked))
    with pytest.raises(RuntimeError, match="losses on"):
        training_device.check_device_training(GPU)


def test_a_device_with_nan_losses_fails_the_self_test(monkeypatch):
    losses = training_device._losses
    monkeypatch.setattr(
        training_device,
        "_losses",
        lambda device: losses(device) if device == "cpu" else [float("nan")] * training_device._STEPS,
    )
    with pytest.raises(RuntimeError, match="losses on"):
        training_device.check_device_training(GPU)


@needs_gpu
def test_a_fit_that_fails_on_the_gpu_runs_again_on_the_cpu(pairs, monkeypatch, caplog):
    settings = SETTINGS.model_copy(update={"estimators": ("popularity", "sequential")})
    expected = fit_parameter_sets(replace(pairs, settings=settings), {-1: pairs.log.fold == 0}, lambda _: None)
    states, asked = attention.reference_states, []

    def full(*args):
        asked.append(args)
        if len(asked) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return states(*args)

    monkeypatch.setattr(attention, "reference_states", full)
    told: list[float] = []
    found = fit_parameter_sets(replace(pairs, settings=settings, device=GPU), {-1: pairs.log.fold == 0}, told.append)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert caplog.text.count("continues on the CPU") == 2, "pretraining, and the fit"
    assert "CUDA out of memory" in caplog.text


def test_cpu_estimators_do_not_wait_for_the_gpu(pairs, monkeypatch):
    class Taken:
        def __enter__(self) -> None:
            pytest.fail("the GPU was asked for")

        def __exit__(self, *raised: object) -> None: ...

    monkeypatch.setattr(devices, "_gpu_lock", Taken())
    estimators = ("popularity", "frequency", "topics", "linear", "factorisation")
    settings = SETTINGS.model_copy(update={"estimators": estimators})
    assert fit_parameter_sets(replace(pairs, settings=settings, device=GPU), {-1: pairs.log.fold == 0}, lambda _: None)


def test_errors_on_the_cpu_are_raised():
    def broken(_device: str) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        devices.with_cpu_fallback("cpu", broken)


def test_a_failing_gpu_is_logged_and_not_used(monkeypatch, caplog):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, which does not fail")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device.training_device("auto") == "cpu"
    assert "training on the CPU" in caplog.text


def test_the_cpu_needs_no_self_test(monkeypatch):
    monkeypatch.setattr(training_device, "check_device_training", lambda _: pytest.fail("nothing to try"))
    assert training_device.training_device("cpu") == "cpu"


@needs_gpu
@pytest.mark.slow
def test_the_sequential_estimator_learns_the_same_on_a_gpu(pairs):
    shared = sequential.share(pairs)
    expected = sequential.fit(pairs, shared)
    on_gpu = replace(pairs, device=GPU)
    found = sequential.fit(on_gpu, sequential.share(on_gpu))
    assert all(tensor.device.type == "cpu" for tensor in found.values())
    for name, tensor in expected.items():
        apart = (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-6)
        assert apart < 0.02, f"{name}: {apart}"
    # Another seed leads elsewhere: the comparison is no matter of course.
    other = sequential.share(replace(pairs, settings=SETTINGS.model_copy(update={"seed": 1})))
    assert (other["source"] - shared["source"]).norm() > 0.1 * shared["source"].norm()


@needs_gpu
@pytest.mark.slow
def test_calibration_and_metrics_on_a_gpu_match_the_cpu(pairs):
    log = pairs.log
    held_out = log.fold == 0
    tensors = fit_parameter_sets(pairs, {-1: held_out}, lambda _: None)
    rows = np.flatnonzero(log.is_label & (log.target.time >= 70 * DAY))
    contexts = LazyContexts(log, rows, pairs.source_index, pairs.target_index)
    user, metadata = log.target.user[rows], METADATA | {"n_source": str(pairs.n_source)}
    asked = LabelledContexts(contexts, contexts.labels, user, held_out[user])
    taken = contexts.take(np.arange(len(rows)))

    def told(device: str) -> tuple[dict[str, torch.Tensor], float, float]:
        module = TranslatorModule(tensors | uncalibrated_tables(), metadata, device)
        tables = calibrate(module, CalibrationEvents(contexts, contexts.labels, held_out[user], fold=log.fold[user]), seed=0)
        assert all(table.device.type == "cpu" for table in tables.values())
        calibrated = TranslatorModule(tensors | tables, metadata, device)
        figures = measure(calibrated, taken, contexts.labels, {"all": np.ones(len(rows), bool)})["all"]["mixture"]
        said = measure_own_over_others([(tensors, asked)], metadata, seed=0, device=device)
        return tables, figures.nll, said.nats.mean

    expected_tables, nll, information = told("cpu")
    tables, nll_there, information_there = told(GPU)
    assert nll_there == pytest.approx(nll, abs=1e-3)
    assert information_there == pytest.approx(information, abs=5e-3)
    for name, table in expected_tables.items():
        assert torch.allclose(tables[name], table, atol=0.05), name
