"""Thousands of requests to a real Triton, most of them spoilt: each is answered or refused, and the server goes on."""

from __future__ import annotations

import time
from collections import Counter, deque

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from scalr_prod.errors import InvalidRequest
from scalr_prod.serving import triton_status
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.client.wire import INPUTS, SAMPLE_OUTPUTS, encode_request
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.serving.model_repository import configured_instances
from scalr_prod.translator import load_version
from scalr_prod.translator.data.contexts import Contexts

#: Attacks a server with a thousand requests; what it answers and refuses is in test_triton.py.
pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.long]

IN_FLIGHT = 64
TYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
INT32, INT64 = np.iinfo(np.int32), np.iinfo(np.int64)
NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.fixture
def served(attacked):
    return attacked


class Fuzz:
    """Draws requests from a seed, and knows by itself which of them can be answered."""

    def __init__(self, sizes: dict[str, int], seed: int) -> None:
        self.sizes, self.rng = sizes, np.random.default_rng(seed)

    def good(self) -> dict[str, np.ndarray]:
        rng, rows, length = self.rng, int(self.rng.integers(1, 4)), int(self.rng.integers(1, 7))
        time = rng.integers(-(2**62), 2**62, rows)
        contexts = Contexts(
            history_items=rng.integers(0, self.sizes["n_source"] + 1, (rows, length), dtype=np.int32),
            history_ages=np.where(rng.random((rows, length)) < 0.1, 3e38, rng.random((rows, length)) * 99).astype(np.float32),
            history_end=np.maximum(time - rng.integers(0, 2**50, rows), -(2**62)),
            event_time=time,
            fold=rng.integers(-2, self.sizes["folds"], rows, dtype=np.int32),
            noise_key=rng.integers(INT64.min, INT64.max, rows),
            exclude=rng.integers(-1, self.sizes["n_target"], (rows, int(rng.integers(1, 5))), dtype=np.int32),
        )
        if rng.random() < 0.3:
            candidates = rng.integers(-1, self.sizes["n_target"], (rows, int(rng.integers(1, 5))), dtype=np.int32)
            return encode_request(contexts, candidates=candidates)
        numbers = {"k": int(rng.integers(1, 6)), "temperature": float(rng.choice([1e-3, 0.5, 1, 20])), "min_lift": 0.5}
        return encode_request(contexts, **numbers)

    def outside(self, name: str) -> int | float:
        """A value that is refused."""
        beyond = {"history_items": self.sizes["n_source"] + 1, "fold": self.sizes["folds"]}.get(name, self.sizes["n_target"])
        below = {"history_items": -1, "fold": -3}.get(name, -2)
        if name in {"history_items", "exclude", "candidates", "fold"}:
            near, far = self.rng.integers(0, 9), self.rng.choice([INT32.min, INT32.max])
            return int(self.rng.choice([below - near, beyond + near, far]))
        if name in {"event_time", "history_end"}:
            return int(self.rng.choice([INT64.min, INT64.max, 2**62 + 1, -(2**62) - 1]))
        if name == "k":
            return int(self.rng.choice([0, -1, INT32.min, INT32.max, self.sizes["n_target"] + 1]))
        return float(self.rng.choice([*NOT_FINITE, -1.0]))

    def spoilt(self) -> dict[str, np.ndarray]:
        """A good one with a few values outside of their ranges."""
        found = {name: array.copy() for name, array in self.good().items()}
        names = [name for name in found if name != "noise_key"]
        for name in self.rng.choice(names, int(self.rng.integers(1, 3)), replace=False):
            where = slice(None) if name in {"k", "temperature", "min_lift"} else self.rng.integers(found[name].size)
            found[name].reshape(-1)[where] = self.outside(name)
        return found

    def broken(self) -> pb.ModelInferRequest:
        """A message that is no request: a tensor is missing, of another type or shape, or of other bytes than it says."""
        message, number = build(self.good()), int(self.rng.integers(7))
        tensor, way = message.inputs[number], self.rng.integers(6)
        if way == 0:
            del message.inputs[number], message.raw_input_contents[number]
        elif way == 1:
            tensor.datatype = {"INT32": "INT64", "INT64": "FP32", "FP32": "FP64"}[tensor.datatype]
        elif way == 2:
            tensor.shape[1] += int(self.rng.integers(1, 2**40))
        elif way == 3:
            message.raw_input_contents[number] = bytes(self.rng.bytes(int(self.rng.integers(0, 3))))
        elif way == 4:
            tensor.shape[0] = int(self.rng.choice([0, -1, 2**40]))
        else:
            tensor.name = "nothing"
        return message


def build(tensors: dict[str, np.ndarray]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="translator", model_version="1")
    for name, array in tensors.items():
        message.inputs.add(name=name, datatype=TYPES[array.dtype], shape=array.shape)
        message.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return message


def stubs(settings) -> set[int]:
    return {p.pid for p in psutil.Process(read_record(settings).pid).children(recursive=True) if "stub" in p.name()}


def settled(settings) -> set[int]:
    """The models' processes, once those of versions that were unloaded before have ended, which a busy machine takes its time for."""
    wanted = len(triton_status(settings).versions) * configured_instances(settings)
    deadline = time.monotonic() + 60
    while len(now := stubs(settings)) != wanted:
        assert time.monotonic() < deadline, f"{len(now)} processes, and not {wanted}"
        time.sleep(0.1)
    return now


@pytest.mark.parametrize("requests", [1_500, pytest.param(12_000, marks=pytest.mark.nightly)])
def test_no_request_harms_the_server(served, requests):
    manifest = load_version(served, 1).manifest
    fuzz = Fuzz({name: int(manifest[name]) for name in ("n_source", "n_target", "folds")}, seed=20)
    local = open_scorer(served.model_copy(update={"serving": served.serving.model_copy(update={"scorer": "local"})}), 1)
    record, processes = read_record(served), settled(served)
    found: Counter[str] = Counter()
    with grpc.insecure_channel(record.url) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        waiting: deque = deque()

        def settle() -> None:
            kind, tensors, reply = waiting.popleft()
            code = reply.code()
            found[f"{kind} {code.name}"] += 1
            if kind == "good":
                assert code is grpc.StatusCode.OK, reply.details()
                agrees(local, tensors, reply.result())
            elif kind == "spoilt":
                assert code is grpc.StatusCode.INVALID_ARGUMENT, (tensors, reply.details())
            else:
                assert code not in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

        for number in range(requests):
            kind = ("good", "spoilt", "spoilt", "broken")[number % 4]
            tensors = getattr(fuzz, kind)()
            message = tensors if kind == "broken" else build(tensors)
            waiting.append((kind, tensors, infer.future(message, timeout=120)))
            if len(waiting) >= IN_FLIGHT:
                settle()
        while waiting:
            settle()
    assert sum(found.values()) == requests
    assert found["good OK"] == requests // 4
    assert found["spoilt INVALID_ARGUMENT"] == requests // 2
    assert (read_record(served), stubs(served)) == (record, processes), "not one process was lost"
    with open_scorer(served, 1) as scorer:
        assert len(scorer.sample(contexts_of(fuzz.good()), 2)) >= 1


def test_the_client_tells_what_was_wrong(served):
    manifest = load_version(served, 1).manifest
    fuzz = Fuzz({name: int(manifest[name]) for name in ("n_source", "n_target", "folds")}, seed=21)
    asked = contexts_of(fuzz.good())
    wrong = asked.exclude.copy()
    wrong[0, 0] = manifest["n_target"]
    with open_scorer(served, 1) as scorer:
        with pytest.raises(InvalidRequest, match=f"exclude contains {manifest['n_target']}"):
            scorer.sample(Contexts(**{**vars(asked), "exclude": wrong}), 2)
        with pytest.raises(InvalidRequest, match="candidates contains -7"):
            scorer.score(asked, np.full((len(asked), 1), -7, np.int32))
        assert len(scorer.sample(asked, 2)) == len(asked)


def contexts_of(tensors: dict[str, np.ndarray]) -> Contexts:
    wide = {"history_items", "history_ages", "exclude"}
    names = [name for name in INPUTS if name in vars(Contexts)["__dataclass_fields__"]]
    return Contexts(**{name: tensors[name] if name in wide else tensors[name].reshape(-1) for name in names})


def agrees(local, tensors: dict[str, np.ndarray], response: pb.ModelInferResponse) -> None:
    """The answer is that of the module in this process."""
    answered = {
        output.name: np.frombuffer(raw, np.int32 if output.datatype == "INT32" else np.float32).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if output.datatype != "INT64"
    }
    contexts = contexts_of(tensors)
    if "candidates" in tensors:
        expected = dict(
            zip(("candidate_probabilities", "candidate_prior"), local.score(contexts, tensors["candidates"]), strict=True)
        )
    else:
        numbers = {name: tensors[name].flat[0].item() for name in ("k", "temperature", "min_lift")}
        samples = local.sample(contexts, numbers.pop("k"), **numbers)
        expected = {name: getattr(samples, name) for name in SAMPLE_OUTPUTS}
        np.testing.assert_array_equal(answered["items"], expected.pop("items"))
    for name, array in expected.items():
        np.testing.assert_allclose(answered[name], array, rtol=1e-4, atol=1e-6)
