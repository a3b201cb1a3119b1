# SPDX-License-Identifier: Apache-2.0
"""Scorer that uses the translator on a Triton server."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import DeadlineExceeded, MalformedResponse, ScoringError, ServerUnreachable
from scalr_prod.serving.client import codec
from scalr_prod.serving.client.retry import Deadline, RequestLimits, RequestOptions, ThroughputEstimate
from scalr_prod.serving.client.scorer import Scorer
from scalr_prod.serving.client.transport import Channel, RequestFailure
from scalr_prod.serving.client.wire import OUTPUTS, SAMPLE_OUTPUTS, SCORE_OUTPUTS, ModelIdentity, encode_request, request_key
from scalr_prod.translator import MAX_ABS_TIME_US, NO_ITEM, Contexts, Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.serving.client.transport import Message, Reply, Transport


logger = logging.getLogger(__name__)

#: Seconds to wait for the first answer of a server without a watchdog.
_CONNECT_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class _RequestBatch:
    """One request: a batch, or consecutive rows of one; ``is_last`` marks the end of the batch."""

    tensors: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int, int]]
    is_last: bool


@dataclass
class _Pending:
    """A pending request, with all that is needed to send it again."""

    batch: _RequestBatch
    message: Message
    deadline: Deadline
    channel: Transport
    reply: Reply | None


class TritonScorer(Scorer):
    """Call one version of the translator, on one server at a time; see `scalr_prod.serving.client.Scorer`.

    Args:
        addresses: Returns the addresses of the servers. Called again after a failure, before switching to the next server; a restarted
            local server has another address.
        version: The version that must answer.
        model: The model's name in the server.
        digest: The model's expected `model_digest`, if known.
        options: Deadline, size and retries of requests.
        server_index: Number of the server to ask first, modulo the number of servers.
        connect: Opens a channel to an address.

    Raises:
        ServerUnreachable: Nothing answers.
        ModelNotReady: The server does not hold the model's version.
        ModelVersionMismatch: Another model answers.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        version: int,
        *,
        model: str = "translator",
        digest: int | None = None,
        options: RequestOptions,
        server_index: int = 0,
        connect: Callable[[str], Transport] = Channel,
    ) -> None:
        self._addresses, self._connect, self._model, self.version = addresses, connect, model, version
        self._options, self._server_index = options, server_index
        self._throughput = ThroughputEstimate(options.deadline_s)
        self._digest, self._catalogue_size = digest, 0
        urls = addresses()
        #: Whether there is another server to switch to.
        self._others = len(urls) > 1
        self._has_watchdog = options.restart_s is not None
        self._channel = connect(urls[server_index % len(urls)])
        self._channels = {self._channel.url: self._channel}
        try:
            connect_deadline = Deadline.after(
                options.deadline_s if self._has_watchdog else min(_CONNECT_TIMEOUT_S, options.deadline_s)
            )
            self._limits = RequestLimits(int(options.max_request_mb * 2**20), self._fetch_max_rows(connect_deadline))
            # A real request queues behind those of other workers, so it gets a request's full deadline.
            self.identity = self._probe_identity(Deadline.after(options.deadline_s))
            self._digest, self._catalogue_size = self.identity.digest, self.identity.catalogue_size
        except BaseException:
            self.close()
            raise

    def sample_stream(
        self,
        batches: Iterable[Contexts],
        k: int,
        *,
        temperature: float = 1.0,
        min_lift: float = 0.0,
        shortlist: int | None = None,
    ) -> Iterator[Samples]:
        """Yield the answer to each batch, in order, with several requests in flight; see `Scorer.sample_stream`."""
        drawn = min(k, self._catalogue_size)  # a server refuses more draws than there are items
        encoded = (
            encode_request(batch, k=drawn, temperature=temperature, min_lift=min_lift, shortlist=shortlist) for batch in batches
        )
        for answer in self._stream(encoded, SAMPLE_OUTPUTS, drawn):
            yield Samples(**answer).padded(k)

    def score(self, contexts: Contexts, candidates: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return P(item | context) and P(item) of given candidates; see `Scorer.score`."""
        if candidates.dtype != np.int32 or candidates.ndim != 2 or len(candidates) != len(contexts):  # noqa: PLR2004
            raise ScoringError(
                f"candidates are {candidates.dtype} {candidates.shape}, expected int32 ({len(contexts)}, C)",
                where="candidates",
                next_step="pass the candidates of each context as one row",
            )
        if not candidates.size:
            return np.empty(candidates.shape, np.float32), np.empty(candidates.shape, np.float32)
        encoded = encode_request(contexts, candidates=candidates)
        answer = next(self._stream([encoded], SCORE_OUTPUTS, candidates.shape[1]))
        probabilities, prior = (answer[name] for name in SCORE_OUTPUTS)
        return probabilities, prior

    def close(self) -> None:
        """Close the channels and drop pending requests."""
        for channel in self._channels.values():
            channel.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a scorer belongs to one process: open one in each process with open_scorer(settings, version)")

    def _stream(
        self, encoded: Iterable[Mapping[str, NDArray[Any]]], outputs: Sequence[str], width: int
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield each batch's validated output tensors, in order; a batch larger than a request is split."""
        requests = (request for tensors in encoded for request in self._split_batches(tensors, outputs, width))
        waiting: deque[_Pending] = deque()
        answers: list[dict[str, NDArray[Any]]] = []
        try:
            while True:
                while len(waiting) < self._options.in_flight and (request := next(requests, None)) is not None:
                    waiting.append(self._send(request))
                if not waiting:
                    return
                answers.append(self._wait(waiting[0]))
                if not waiting.popleft().batch.is_last:
                    continue
                batch = {name: np.concatenate([answer[name] for answer in answers]) for name in outputs}
                answers.clear()
                paused = time.monotonic()
                yield batch
                # The deadlines of pending requests are extended by the time that the caller works on one answer.
                for pending in waiting:
                    pending.deadline = pending.deadline.extended(time.monotonic() - paused)
        finally:
            for pending in waiting:
                if pending.reply is not None:
                    pending.reply.cancel()

    def _split_batches(
        self, tensors: Mapping[str, NDArray[Any]], outputs: Sequence[str], width: int
    ) -> Iterator[_RequestBatch]:
        total = len(tensors["event_time"])
        most = self._limits.rows_per_request(codec.row_bytes(tensors))
        start, stop = 0, -1
        while stop < total:
            stop = min(start + self._throughput.rows_per_request(most), total)
            shapes = dict.fromkeys(outputs, (stop - start, width)) | dict.fromkeys(
                ("model_version", "model_digest", "request_key"), (stop - start, 1)
            )
            yield _RequestBatch({name: array[start:stop] for name, array in tensors.items()}, shapes, is_last=stop == total)
            start = stop

    def _send(self, request: _RequestBatch) -> _Pending:
        """Build the message, once, and send it."""
        message = codec.build_request(
            self._model, self.version, request.tensors, tuple(request.shapes), timeout_s=self._options.deadline_s
        )
        deadline = Deadline.after(self._options.deadline_s)
        # An empty batch needs no request.
        reply = self._channel.infer(message, self._attempt_timeout(deadline)) if len(request.tensors["event_time"]) else None
        return _Pending(request, message, deadline, self._channel, reply)

    def _wait(self, pending: _Pending) -> dict[str, NDArray[Any]]:
        """Return the validated answer, after as many attempts as the deadline allows."""
        if pending.reply is None:
            return {name: np.empty(shape, OUTPUTS[name]) for name, shape in pending.batch.shapes.items()}
        answer = self._answer(pending, first=pending.reply.result)
        self._throughput.observe(len(pending.batch.tensors["event_time"]), pending.deadline.elapsed)
        return answer

    def _answer(
        self, pending: _Pending, *, first: Callable[[], Message] | None = None, await_model: bool = True
    ) -> dict[str, NDArray[Any]]:
        """Return the validated answer, retrying also after malformed ones."""
        pauses = self._options.retries.delays()
        while True:
            source, response = self._retry(
                lambda channel, left: channel.infer(pending.message, left).result(),
                pending.deadline,
                first=None if first is None else (pending.channel, first),
                await_model=await_model,
            )
            try:
                return self._checked(pending.batch, response, where=source.url)
            except MalformedResponse as error:
                # A server that mixes up answers does so until it is restarted, which the watchdog does.
                pause = next(pauses)
                if not (self._has_watchdog or self._others) or pause >= pending.deadline.remaining:
                    raise
                logger.warning("%s: %s", source.url, error.found)
                time.sleep(pause)
                first = None
                self._switch_server(source)

    def _checked(self, request: _RequestBatch, response: Message, *, where: str) -> dict[str, NDArray[Any]]:
        """Return the tensors of an answer from this address, after validating them."""
        tensors = codec.read_tensors(response, request.shapes, where=where)
        codec.check_version(tensors.pop("model_version"), self.version, where=where)
        codec.check_digest(tensors["model_digest"], self._digest, self.version, where=where)
        codec.check_request(tensors.pop("request_key"), request_key(request.tensors), where=where)
        if "items" in tensors and self._catalogue_size:  # the first answer identifies the model
            codec.check_items(tensors["items"], self._catalogue_size, where=where)
        for name, array in tensors.items():
            if array.dtype == np.float32:
                codec.check_probabilities(name, array, where=where)
        return tensors

    def _retry(
        self,
        attempt: Callable[[Transport, float], Message],
        deadline: Deadline,
        *,
        first: tuple[Transport, Callable[[], Message]] | None = None,
        await_model: bool = True,
    ) -> tuple[Transport, Message]:
        """Retry until there is an answer, a permanent failure, or no time left.

        Args:
            attempt: Makes one attempt on a channel, within the given seconds.
            deadline: Time limit of all attempts.
            first: The first attempt and its channel, if it is under way already.
            await_model: Also retry while the model is absent: a restarted server may still be loading it.

        Returns:
            The channel that the answer came from, which may not be the current one any more, and the answer.
        """
        pauses = self._options.retries.delays()
        restart_s, attempts, left = self._options.restart_s or 0.0, 1, self._attempt_timeout(deadline)
        while True:
            channel = self._channel if first is None else first[0]
            try:
                return channel, (attempt(channel, left) if first is None else first[1]())
            except RequestFailure as failure:
                pause = next(pauses)
                awaited = failure.is_transient or (failure.is_model_absent and await_model)
                elsewhere = (self._has_watchdog or self._others) and (failure.has_backend_died or failure.is_model_absent)
                hung = self._others and failure.code == "DEADLINE_EXCEEDED"
                hopeless = not (awaited or elsewhere or hung)
                if failure.code == "UNAVAILABLE":
                    deadline, restart_s = deadline.extended(restart_s), 0.0
                if hopeless or pause >= deadline.remaining:
                    raise self._to_error(failure, channel.url, attempts, deadline) from failure
                logger.warning("%s, attempt %d: %s %s", channel.url, attempts, failure.code, failure.detail)
                time.sleep(pause)
                left = self._attempt_timeout(deadline)
                if left <= 0:  # a busy machine may sleep longer than requested
                    raise self._to_error(failure, channel.url, attempts, deadline) from failure
            first = None
            attempts += 1
            self._switch_server(channel)

    def _attempt_timeout(self, deadline: Deadline) -> float:
        """Return the time limit of one attempt, which leaves time for another server if this one hangs."""
        return min(deadline.remaining, deadline.seconds / 2) if self._others else deadline.remaining

    def _switch_server(self, failed: Transport) -> None:
        """Switch to the next server, or to the local one's current address, which changes with a restart."""
        if failed is not self._channel:  # another request has switched already
            return
        try:
            urls = self._addresses()
        except ServerUnreachable:  # there is none now; one may start before the deadline
            return
        if failed.url in urls:
            url = urls[(urls.index(failed.url) + 1) % len(urls)]
        else:
            self._channels.pop(failed.url).close()
            url = urls[self._server_index % len(urls)]
        if url not in self._channels:
            self._channels[url] = self._connect(url)
        self._channel = self._channels[url]

    def _to_error(self, failure: RequestFailure, url: str, attempts: int, deadline: Deadline) -> ScoringError:
        if failure.code == "DEADLINE_EXCEEDED":
            return DeadlineExceeded(
                f"no answer within {deadline.seconds:g} s ({attempts} attempts)",
                where=url,
                next_step="see how busy the server is: scalr triton status; or raise [serving] deadline_s",
            )
        return failure.to_error(url, f"{self._model} version {self.version}")

    def _fetch_max_rows(self, deadline: Deadline) -> int:
        """Return the most rows that the server takes in one request."""
        _, config = self._retry(
            lambda channel, left: channel.model_config(self._model, str(self.version), left), deadline, await_model=False
        )
        return max(1, int(config.max_batch_size))

    def _probe_identity(self, deadline: Deadline) -> ModelIdentity:
        """Return which model answers, using a real request to detect a model that loads but cannot answer."""
        contexts = Contexts(
            history_items=np.zeros((1, 1), np.int32),
            history_ages=np.zeros((1, 1), np.float32),
            history_end=np.zeros(1, np.int64),
            event_time=np.full(1, MAX_ABS_TIME_US, np.int64),
            fold=np.full(1, -1, np.int32),
            # A unique request, so that an answer to an earlier one cannot pass for its answer.
            noise_key=np.array([random.getrandbits(62)], np.int64),
            exclude=np.full((1, 1), NO_ITEM, np.int32),
        )
        output_names = ("items", "model_version", "request_key", "model_digest", "catalogue_size")
        request = _RequestBatch(encode_request(contexts), dict.fromkeys(output_names, (1, 1)), is_last=True)
        message = codec.build_request(
            self._model, self.version, request.tensors, output_names, timeout_s=self._options.deadline_s
        )
        tensors = self._answer(_Pending(request, message, deadline, self._channel, None), await_model=False)
        self._throughput.observe(1, deadline.elapsed)
        where = self._channel.url
        identity = ModelIdentity(self.version, int(tensors["model_digest"][0, 0]), int(tensors["catalogue_size"][0, 0]))
        codec.check_items(tensors["items"], identity.catalogue_size, where=where)
        return identity
