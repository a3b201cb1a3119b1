"""Values out of range are refused before they become tensors, in-process and in the server."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.translator_log import DAY, METADATA, SETTINGS, calibration, make_log

from scalr_prod.errors import InvalidRequest
from scalr_prod.serving.client.wire import ModelIdentity, answer_requests, encode_request
from scalr_prod.translator import context_batch
from scalr_prod.translator.data.contexts import Contexts
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.trainer import fit_parameter_sets

ROWS = 3


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    torch.set_num_threads(1)
    pairs = TrainingSlice.from_log(make_log(), 90 * DAY, SETTINGS)
    fold = pairs.log.fold
    tensors = (
        fit_parameter_sets(pairs, {-1: np.zeros(len(fold), bool), 0: fold == 0, 1: fold == 1}, lambda _: None) | calibration()
    )
    module = TranslatorModule(tensors, METADATA | {"n_source": str(pairs.n_source)})
    return SimpleNamespace(module=module, source=pairs.n_source, target=pairs.n_target)


def arrays(world) -> dict[str, np.ndarray]:
    """A valid request at both ends of every range."""
    return {
        "history_items": np.array([[0, 0, world.source], [0, 1, 2], [world.source, world.source, 1]], np.int32),
        "history_ages": np.array([[0, 0, 0], [0, 3, 0], [np.finfo(np.float32).max, 1, 0]], np.float32),
        "history_end": np.array([-(2**62), 99 * DAY, 100 * DAY]),
        "event_time": np.array([0, 99 * DAY, 2**62]),
        "fold": np.array([-2, -1, 1], np.int32),
        "noise_key": np.array([-(2**63), 0, 2**63 - 1]),
        "exclude": np.array([[-1, 0], [world.target - 1, -1], [-1, -1]], np.int32),
        "candidates": np.array([[-1, 0], [1, world.target - 1], [-1, -1]], np.int32),
    }


NAN, INF = float("nan"), float("inf")
#: Array → values that no table has a row for, or that are no numbers; the world's sizes are named.
OUTSIDE = {
    "history_items": [-1, "source + 1", 2**31 - 1, -(2**31)],
    "exclude": [-2, "target", 2**31 - 1, -(2**31)],
    "candidates": [-2, "target", 2**31 - 1, -(2**31)],
    "fold": [-3, 2, 2**31 - 1, -(2**31)],
    "history_ages": [NAN, INF, -INF, -1.0],
    "event_time": [2**62 + 1, 2**63 - 1, -(2**63)],
    "history_end": [2**62 + 1, 2**63 - 1, -(2**62) - 1, -(2**63)],
}
CASES = [(name, value) for name, values in OUTSIDE.items() for value in values]
NUMBERS = [{"k": 0}, {"k": -5}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": NAN}, {"temperature": INF}]
NUMBERS += [{"min_lift": -0.5}, {"min_lift": NAN}, {"min_lift": INF}]


def spoilt(world, name: str, value: object) -> dict[str, np.ndarray]:
    named = {"source + 1": world.source + 1, "target": world.target}
    found = arrays(world)
    found[name] = found[name].copy()
    found[name].reshape(-1)[-1] = named.get(value, value)
    return found


def in_process(world, found, **numbers):
    contexts = Contexts(**{name: array for name, array in found.items() if name != "candidates"})
    if "k" in numbers:
        return world.module.sample(contexts, numbers.pop("k"), **numbers)
    return world.module.score(contexts, found["candidates"])


def at_the_door(world, found, **numbers):
    contexts = Contexts(**{name: array for name, array in found.items() if name != "candidates"})
    request = encode_request(contexts, **numbers) if numbers else encode_request(contexts, candidates=found["candidates"])
    return answer_requests(world.module, ModelIdentity(1, 2, world.target), [request])[0]


@pytest.fixture
def no_tensors(monkeypatch):
    """From here on a request may not become tensors."""

    def refuse(*_):
        pytest.fail("a tensor was made of it")

    monkeypatch.setattr(context_batch.ContextBatch, "from_contexts", refuse)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_out_of_range_values_are_refused(world, no_tensors, name, value):
    found = spoilt(world, name, value)
    ways = [{}] if name == "candidates" else [{}, {"k": 2}]
    for numbers in ways:
        with pytest.raises(InvalidRequest, match=name if name != "fold" else "fold .* this translator has 2") as caught:
            in_process(world, found, **numbers)
        assert caught.value.next_step
        refused = at_the_door(world, found, **numbers)
        assert isinstance(refused, ValueError)
        assert name in str(refused)


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_invalid_sampling_parameters_are_refused(world, no_tensors, numbers):
    asked = {"k": 2} | numbers
    with pytest.raises(InvalidRequest, match="k = "):
        in_process(world, arrays(world), **asked)
    assert isinstance(at_the_door(world, arrays(world), **asked), ValueError)


def test_shortlists_below_one_item_are_refused_and_sent_only_if_set(world, no_tensors):
    with pytest.raises(InvalidRequest, match="a shortlist of -1 items"):
        in_process(world, arrays(world), k=2, shortlist=-1)
    assert "a shortlist of -1 items" in str(at_the_door(world, arrays(world), k=2, shortlist=-1))
    contexts = Contexts(**{name: array for name, array in arrays(world).items() if name != "candidates"})
    assert "shortlist" not in encode_request(contexts, k=2), "a server of before would not know it"
    assert (encode_request(contexts, k=2, shortlist=9)["shortlist"] == 9).all()


def test_candidates_of_another_shape_are_refused(world, no_tensors):
    found = arrays(world)
    for candidates in (found["candidates"][:2], found["candidates"].astype(np.int64), found["candidates"][0]):
        with pytest.raises(InvalidRequest, match="candidates"):
            in_process(world, found | {"candidates": candidates})


def test_values_at_the_limits_are_accepted(world):
    found = arrays(world)
    samples = in_process(world, found, k=4)
    assert np.isfinite(samples.probabilities).all()
    assert (samples.items[1] >= 0).all()
    assert at_the_door(world, found, k=4)["items"].tolist() == samples.items.tolist()
    for shares in in_process(world, found):
        assert np.isfinite(shares).all()


def test_a_refused_request_does_not_affect_its_batch(world, monkeypatch):
    batches = []
    sample = world.module.sample
    monkeypatch.setattr(
        world.module, "sample", lambda contexts, *a, **n: batches.append(len(contexts)) or sample(contexts, *a, **n)
    )
    fine = Contexts(**{name: array for name, array in arrays(world).items() if name != "candidates"})
    bad = Contexts(**{name: array for name, array in spoilt(world, "exclude", "target").items() if name != "candidates"})
    first, refused, last = answer_requests(
        world.module, ModelIdentity(1, 2, world.target), [encode_request(fine), encode_request(bad), encode_request(fine)]
    )
    assert isinstance(refused, ValueError)
    assert first["items"].tolist() == last["items"].tolist()
    assert batches == [2 * ROWS]
