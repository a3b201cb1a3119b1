"""Deadlines, retries, limits and checks of the Triton scorer, with a server made of plain Python in the channel's place."""

from __future__ import annotations

import itertools
import pickle
import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from scalr_prod.errors import (
    DeadlineExceeded,
    MalformedResponse,
    ModelNotReady,
    ModelVersionMismatch,
    RequestTooLarge,
    ScoringError,
    ServerUnreachable,
)
from scalr_prod.serving.client.retry import Deadline, RequestLimits, RequestOptions, RetryPolicy, ThroughputEstimate
from scalr_prod.serving.client.transport import RequestFailure
from scalr_prod.serving.client.triton import TritonScorer
from scalr_prod.serving.client.wire import INPUTS, OUTPUTS, ModelIdentity, answer_requests, encode_request, request_key
from scalr_prod.translator.data.contexts import NO_ITEM, Contexts, Samples
from scalr_prod.translator.requests import RequestBounds

CATALOGUE = 50
TYPES = {np.int32: "INT32", np.int64: "INT64", np.float32: "FP32"}
FAST = RetryPolicy(first_s=0.001, limit_s=0.002)


class Module:
    """Every context's items are a function of its own noise key, so that a mix-up of rows shows."""

    bounds = RequestBounds(n_source=CATALOGUE, n_target=CATALOGUE, folds=2)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def sample(self, contexts, k, **options):
        self.batches.append(len(contexts))
        items = (contexts.noise_key[:, None] + np.arange(k)) % CATALOGUE
        share = np.full(items.shape, 0.5, np.float32)
        return Samples(items.astype(np.int32), share, share * np.float32(options["temperature"]))

    def score(self, contexts, candidates):
        self.batches.append(len(contexts))
        share = (candidates % 10 / 10).astype(np.float32)
        return share, share / 2


class Server:
    """Answers as Triton would; ``spoil`` may fail an attempt or falsify an answer."""

    def __init__(self, spoil=None, *, version=3, max_rows=1024):
        self.module, self.identity = Module(), ModelIdentity(version, 77, CATALOGUE)
        self.spoil, self.max_rows = spoil or (lambda _, reply: reply), max_rows
        self.sent: list[object] = []
        self.open = 0
        self.most_open = 0
        self.url = "fake:1"
        self.closed = False

    def model_config(self, *_):
        return service_pb2.ModelConfigResponse().config.__class__(max_batch_size=self.max_rows)

    def infer(self, request, timeout):
        assert timeout > 0
        self.sent.append(request)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        attempt = len(self.sent)
        return Reply(self, lambda: self.spoil(attempt, self.reply(request)))

    def reply(self, request):
        tensors = {
            tensor.name: np.frombuffer(raw, INPUTS[tensor.name]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        found = answer_requests(self.module, self.identity, [tensors])[0]
        if isinstance(found, ValueError):
            raise RequestFailure("INVALID_ARGUMENT", str(found))
        response = service_pb2.ModelInferResponse()
        for output in request.outputs:
            array = np.ascontiguousarray(found[output.name], OUTPUTS[output.name])
            response.outputs.add(name=output.name, datatype=TYPES[OUTPUTS[output.name]], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def close(self):
        self.closed = True


class Reply:
    def __init__(self, server, make):
        self.server, self.make, self.future = server, make, Future()

    def result(self):
        self.server.open -= 1
        return self.make()

    def cancel(self):
        self.server.open -= 1


def contexts(rows: int, exclude: int = 2) -> Contexts:
    return Contexts(
        history_items=np.ones((rows, 4), np.int32),
        history_ages=np.zeros((rows, 4), np.float32),
        history_end=np.full(rows, 10**15 - 1),
        event_time=np.full(rows, 10**15),
        fold=np.full(rows, -1, np.int32),
        noise_key=np.arange(rows) * 7,
        exclude=np.full((rows, exclude), -1, np.int32),
    )


def scorer_of(addresses, connect, *, digest: int | None = None, server_index: int = 0, **options) -> TritonScorer:
    requests = RequestOptions(retries=FAST, **options)
    return TritonScorer(addresses, 3, connect=connect, digest=digest, server_index=server_index, options=requests)


def scorer(server: Server, **options) -> TritonScorer:
    return scorer_of(lambda: [server.url], lambda _: server, **options)


def after_opening(spoil):
    """Spoil only what comes after the scorer's own first question."""
    return lambda attempt, reply: reply if attempt == 1 else spoil(attempt - 1, reply)


def fail(code, detail="down", times=10**9):
    def spoil(attempt, reply):
        if attempt <= times:
            raise RequestFailure(code, detail)
        return reply

    return spoil


def test_a_deadline_runs_out_and_can_be_moved():
    now = iter([0.0, 4.0, 11.0, 11.0])
    deadline = Deadline.after(10, clock=lambda: next(now))
    assert deadline.remaining == 6
    assert deadline.remaining == 0
    assert deadline.extended(5).remaining == 4


@given(st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_their_limit_and_never_vanish(drawn):
    waits = list(itertools.islice(RetryPolicy(first_s=0.1, limit_s=3).delays(lambda: drawn), 12))
    assert all(0 < wait <= 3 for wait in waits)
    assert all(later >= earlier for earlier, later in itertools.pairwise(waits))
    assert waits[-1] >= 1.5


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**5))
def test_a_request_never_exceeds_either_limit(request_bytes, rows, row_bytes):
    limits = RequestLimits(request_bytes, rows)
    if row_bytes > request_bytes:
        with pytest.raises(RequestTooLarge):
            limits.rows_per_request(row_bytes)
    else:
        fit = limits.rows_per_request(row_bytes)
        assert 1 <= fit <= rows
        assert fit * row_bytes <= request_bytes


@given(st.floats(1e-6, 100), st.floats(0.1, 100), st.integers(1, 1024))
def test_requests_fit_well_into_their_deadline_and_grow_slowly(row_s, deadline_s, most):
    pace = ThroughputEstimate(deadline_s)
    assert pace.rows_per_request(most) == most
    pace.observe(7, 7 * row_s)
    rows = pace.rows_per_request(most)
    assert 1 <= rows <= most
    assert rows == 1 or rows * row_s <= deadline_s / 4 * 1.001
    pace.observe(rows, 0.0)
    assert pace.rows_per_request(most) <= 4 * (rows + 1)


def test_a_slow_server_is_asked_so_little_at_once_that_it_answers_in_time():
    """A hundred contexts in one request would take twice their deadline."""

    def slowly(attempt, reply):
        seconds = 0.02 * reply.outputs[0].shape[0]
        time.sleep(min(seconds, 1.0))
        if seconds > 1.0:
            raise RequestFailure("DEADLINE_EXCEEDED", "")
        return reply

    server = Server(slowly)
    samples = scorer(server, deadline_s=1.0).sample(contexts(100), 2)
    assert samples.items[:, 0].tolist() == [7 * row % CATALOGUE for row in range(100)]
    assert max(server.module.batches) < 50


def test_a_passing_failure_is_tried_again_with_the_same_message():
    server = Server(after_opening(fail("UNAVAILABLE", times=3)))
    assert scorer(server).sample(contexts(5), 2).items[3].tolist() == [21, 22]
    attempts = server.sent[1:]
    assert len(attempts) == 4
    assert all(message is attempts[0] for message in attempts)


def test_a_lasting_failure_ends_with_the_deadline():
    server = Server(after_opening(fail("UNAVAILABLE")))
    with pytest.raises(ServerUnreachable, match="fake:1"):
        scorer(server, deadline_s=0.5).sample(contexts(5), 2)
    assert len(server.sent) > 3


@pytest.mark.parametrize(
    ("code", "detail", "error"),
    [
        ("INVALID_ARGUMENT", "k is wrong", ScoringError),
        ("DEADLINE_EXCEEDED", "", DeadlineExceeded),
        ("INTERNAL", "Stub process 'translator_0_0' is not healthy.", ModelNotReady),
    ],
)
def test_what_will_not_pass_is_not_tried_again(code, detail, error):
    server = Server(after_opening(fail(code, detail)))
    with pytest.raises(error):
        scorer(server).sample(contexts(5), 2)
    assert len(server.sent) == 2


def test_an_absent_model_is_told_at_once_when_opening_and_awaited_in_the_middle():
    absent = "Request for unknown model: 'translator' version 3 is not found"
    with pytest.raises(ModelNotReady, match="promote"):
        scorer(Server(fail("NOT_FOUND", absent)))
    server = Server(after_opening(fail("NOT_FOUND", absent, times=2)))
    assert len(scorer(server).sample(contexts(5), 2)) == 5


def test_a_lost_server_is_followed_to_its_new_address():
    first, second = Server(after_opening(fail("UNAVAILABLE"))), Server()
    second.url = "fake:2"
    urls = iter([["fake:1"]])
    asked = scorer_of(lambda: next(urls, ["fake:2"]), {"fake:1": first, "fake:2": second}.get, deadline_s=1.0)
    assert asked.sample(contexts(3), 1).items.ravel().tolist() == [0, 7, 14]
    assert first.closed


def several(*servers: Server, **options) -> TritonScorer:
    for number, server in enumerate(servers):
        server.url = f"fake:{number}"
    by_url = {server.url: server for server in servers}
    return scorer_of(lambda: list(by_url), by_url.get, **options)


def test_scorers_of_different_places_ask_different_servers():
    servers = Server(), Server()
    for place in range(4):
        several(*servers, server_index=place).sample(contexts(3), 1)
    assert [len(server.sent) for server in servers] == [4, 4]  # each time who it is, then the contexts


def test_where_a_server_is_lost_the_next_one_answers_all_that_was_asked():
    first, second = Server(after_opening(fail("UNAVAILABLE"))), Server()
    asked = several(first, second, in_flight=3)
    found = list(asked.sample_stream([contexts(rows) for rows in (1, 2, 3, 4)], 1))
    assert [len(samples) for samples in found] == [1, 2, 3, 4]
    # The three on their way fail together, and none of them sends the others back to where they failed.
    assert (len(first.sent), len(second.sent)) == (1 + 3, 4)
    asked.close()
    assert first.closed
    assert second.closed


def test_a_server_that_hangs_takes_half_of_the_deadline():
    limits = []

    class Slow(Server):
        def infer(self, request, timeout):
            limits.append(timeout)
            return super().infer(request, timeout)

    asked = several(Slow(after_opening(fail("DEADLINE_EXCEEDED"))), Server(), deadline_s=8.0)
    assert len(asked.sample(contexts(3), 1)) == 3
    assert all(3 < timeout <= 4 for timeout in limits)
    with pytest.raises(DeadlineExceeded):
        scorer(Server(after_opening(fail("DEADLINE_EXCEEDED"))), deadline_s=8.0).sample(contexts(3), 1)


def test_a_server_that_mixes_answers_up_is_left_for_the_next_one():
    other = []

    def mixed(attempt, reply):
        other.append(reply)
        return other[0] if attempt > 1 else reply

    asked = several(Server(mixed), Server())
    assert asked.sample(contexts(1), 1).items.ravel().tolist() == [0]


def late(first, spoiled):
    """Three servers; the first loses the first of three requests on their way, and spoils the answer to the second."""

    def spoil(attempt, reply):
        if attempt == 1:
            raise RequestFailure("UNAVAILABLE", "down")
        return spoiled(reply) if attempt == 2 else reply

    answers = itertools.count(1)
    first.spoil = lambda attempt, reply: reply if attempt == 1 else spoil(next(answers), reply)
    return first


def of_another_request(reply):
    """The same answer with another request's key."""
    place = [output.name for output in reply.outputs].index("request_key")
    reply.raw_output_contents[place] = bytes(len(reply.raw_output_contents[place]))
    return reply


def test_a_mixed_up_answer_of_a_server_that_was_left_moves_the_scorer_no_further(caplog):
    first, second, third = late(Server(), of_another_request), Server(), Server()
    asked = several(first, second, third, in_flight=3)
    assert [len(samples) for samples in asked.sample_stream([contexts(rows) for rows in (1, 2, 3)], 1)] == [1, 2, 3]
    # Who it is and all three; the first two again; the third server is never needed.
    assert [len(server.sent) for server in (first, second, third)] == [4, 2, 0]
    assert ["fake:0" in record.getMessage() for record in caplog.records] == [True, True]


def test_an_answer_is_told_of_under_the_address_that_it_came_from():
    def of_another_model(reply):
        place = [output.name for output in reply.outputs].index("model_digest")
        reply.raw_output_contents[place] = bytes(len(reply.raw_output_contents[place]))
        return reply

    asked = several(late(Server(), of_another_model), Server(), in_flight=3)
    with pytest.raises(ModelVersionMismatch) as caught:
        list(asked.sample_stream([contexts(2)] * 3, 1))
    assert caught.value.where == "fake:0"


def test_a_failure_that_will_not_pass_is_told_of_under_the_address_that_it_came_from():
    def refused(reply):
        raise RequestFailure("INVALID_ARGUMENT", "no")

    asked = several(late(Server(), refused), Server(), in_flight=3)
    with pytest.raises(ScoringError) as caught:
        list(asked.sample_stream([contexts(2)] * 3, 1))
    assert caught.value.where == "fake:0"


def test_an_item_out_of_the_catalogue_is_asked_for_at_the_next_server():
    def outside(attempt, reply):
        place = [output.name for output in reply.outputs].index("items")
        reply.raw_output_contents[place] = np.full(2, CATALOGUE, np.int32).tobytes()
        return reply

    asked = several(Server(after_opening(outside)), Server())
    assert asked.sample(contexts(2), 1).items.ravel().tolist() == [0, 7]


def test_another_model_under_the_same_number_at_the_next_server_is_told():
    first, second = Server(after_opening(fail("UNAVAILABLE"))), Server()
    second.identity = ModelIdentity(3, 78, CATALOGUE)
    with pytest.raises(ModelVersionMismatch, match=r"fake:1: version 3 is a different model"):
        several(first, second).sample(contexts(2), 1)


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_a_stream_keeps_so_many_in_flight_and_takes_no_more_batches_than_that(in_flight):
    server, taken = Server(), []

    def batches():
        for number in range(10):
            taken.append(number)
            yield contexts(number + 1)

    stream = scorer(server, in_flight=in_flight).sample_stream(batches(), 2)
    first = next(stream)
    assert len(first) == 1
    assert len(taken) == in_flight
    assert [len(samples) for samples in stream] == list(range(2, 11))
    assert server.most_open == in_flight


def test_an_abandoned_stream_cancels_what_is_in_flight():
    server = Server()
    stream = scorer(server, in_flight=3).sample_stream([contexts(2)] * 5, 1)
    next(stream)
    stream.close()
    assert server.open == 0


def test_large_batches_travel_in_parts_within_both_limits():
    server = Server(max_rows=8)
    row = 4 * 8 + 28 + 8 + 12
    samples = scorer(server, max_request_mb=row * 5 / 2**20).sample(contexts(23), 3)
    assert samples.items[:, 0].tolist() == [7 * row % CATALOGUE for row in range(23)]
    assert server.module.batches[1:] == [5, 5, 5, 5, 3]
    scorer(server).score(contexts(20), np.zeros((20, 3), np.int32))
    assert server.module.batches[-3:] == [8, 8, 4]
    with pytest.raises(RequestTooLarge):
        scorer(server, max_request_mb=row * 5 / 2**20).score(contexts(2), np.zeros((2, 1000), np.int32))


def corrupt(name, change):
    def spoil(attempt, reply):
        place = [output.name for output in reply.outputs].index(name)
        change(reply, place)
        return reply

    return after_opening(spoil)


def emptied(reply, place):
    reply.raw_output_contents[place] = b""


def retyped(reply, place):
    reply.outputs[place].datatype = "FP64"


def reshaped(reply, place):
    reply.outputs[place].shape[0] += 1


def removed(reply, place):
    del reply.outputs[place], reply.raw_output_contents[place]


def unannounced(reply, place):
    del reply.raw_output_contents[place]


def filled(value):
    def change(reply, place):
        raw = reply.raw_output_contents[place]
        reply.raw_output_contents[place] = raw[:-4] + np.asarray(value).tobytes()

    return change


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("items", emptied, MalformedResponse),
        ("items", retyped, MalformedResponse),
        ("prior", reshaped, MalformedResponse),
        ("probabilities", removed, MalformedResponse),
        ("model_version", unannounced, MalformedResponse),
        ("probabilities", filled(np.float32("nan")), MalformedResponse),
        ("probabilities", filled(np.float32(1.5)), MalformedResponse),
        ("prior", filled(np.float32(-0.1)), MalformedResponse),
        ("items", filled(np.int32(CATALOGUE)), MalformedResponse),
        ("items", filled(np.int32(-2)), MalformedResponse),
        ("model_version", filled(np.int32(1)), ModelVersionMismatch),
        ("request_key", filled(np.int32(1)), MalformedResponse),
    ],
)
def test_no_answer_is_believed_unchecked(name, change, error):
    with pytest.raises(error):
        scorer(Server(corrupt(name, change))).sample(contexts(4), 2)


def test_a_mixed_up_answer_of_a_server_that_is_watched_over_is_asked_for_again():
    spoil = corrupt("request_key", filled(np.int32(1)))
    server = Server(lambda attempt, reply: spoil(attempt, reply) if attempt == 2 else reply)
    assert scorer(server, restart_s=1.0).sample(contexts(4), 2).items[1].tolist() == [7, 8]
    assert len(server.sent) == 3


@pytest.mark.parametrize("restart_s", [None, 30.0])
def test_a_request_outlives_its_deadline_while_a_watchdog_restarts_the_server(restart_s):
    """The server is away for longer than the deadline of a request."""
    began: list[float] = []

    def restarting(attempt, reply):
        began.append(time.monotonic())
        if time.monotonic() - began[0] < 0.6:
            raise RequestFailure("UNAVAILABLE", "connect failed")
        return reply

    asking = scorer(Server(after_opening(restarting)), deadline_s=0.2, restart_s=restart_s)
    if restart_s is None:
        with pytest.raises(ServerUnreachable):
            asking.sample(contexts(4), 2)
    else:
        assert asking.sample(contexts(4), 2).items.shape == (4, 2)


def test_a_request_is_told_from_every_other():
    one, other = contexts(4), Contexts(**{**vars(contexts(4)), "history_items": contexts(4).history_items + 1})
    candidates = np.arange(12, dtype=np.int32).reshape(4, 3)
    asked = [encode_request(one), encode_request(one, k=2), encode_request(one, temperature=0.5), encode_request(other)]
    asked += [
        encode_request(one, candidates=candidates),
        encode_request(one, candidates=candidates + 1),
        encode_request(one.slice(0, 3)),
    ]
    keys = [request_key(tensors) for tensors in asked]
    assert all(key.shape == (len(tensors["noise_key"]), 1) for key, tensors in zip(keys, asked, strict=True))
    assert len({int(key[0, 0]) for key in keys}) == len(keys)
    assert np.array_equal(request_key(encode_request(contexts(4))), keys[0])


def test_who_answers_is_asked_before_anything_else():
    with pytest.raises(ModelVersionMismatch, match="version 4 answers"):
        scorer(Server(version=4))
    with pytest.raises(ModelVersionMismatch, match="a different model"):
        scorer(Server(), digest=78)
    assert scorer(Server(), digest=77).identity == ModelIdentity(3, 77, CATALOGUE)


def test_waiting_requests_are_joined_and_each_gets_its_own_rows():
    module, identity = Module(), ModelIdentity(3, 77, CATALOGUE)

    def request(rows, *, exclude=1, key=0, k=2, **extra):
        part = contexts(rows, exclude)
        part = Contexts(**{**vars(part), "noise_key": part.noise_key + key})
        return encode_request(part, k=k, **extra)

    candidates = np.arange(6, dtype=np.int32).reshape(2, 3)
    requests = [
        request(3, key=1),
        request(2, exclude=9, key=2),
        request(2, k=3),
        request(2, candidates=candidates),
        {"history_items": np.ones((1, 4), np.int32)},
        request(1, key=5),
        request(2, k=0),
    ]
    answers = answer_requests(module, identity, requests)
    assert module.batches == [6, 2, 2]
    assert answers[0]["items"].tolist() == [[1, 2], [8, 9], [15, 16]]
    assert answers[1]["items"].tolist() == [[2, 3], [9, 10]]
    assert answers[5]["items"].tolist() == [[5, 6]]
    assert answers[2]["items"].shape == (2, 3)
    assert np.allclose(answers[3]["candidate_probabilities"], candidates / 10)
    assert "missing" in str(answers[4])
    assert "≥ 1" in str(answers[6])
    assert answers[0]["model_version"].tolist() == [[3]] * 3


def test_a_scorer_is_never_pickled():
    with pytest.raises(TypeError, match="belongs to one process"):
        pickle.dumps(scorer(Server()))


def test_of_a_small_catalogue_no_more_draws_are_asked_than_it_has_items():
    """The others are empty, as if the model were in this process."""
    (found,) = scorer(Server()).sample_stream([contexts(2)], CATALOGUE + 5)
    assert found.items.shape == found.probabilities.shape == found.prior.shape == (2, CATALOGUE + 5)
    assert (found.items[:, :CATALOGUE] >= 0).all()
    assert (found.items[:, CATALOGUE:] == NO_ITEM).all()
    assert not found.probabilities[:, CATALOGUE:].any()
