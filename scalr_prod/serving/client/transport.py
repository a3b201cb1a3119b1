# SPDX-License-Identifier: Apache-2.0
"""gRPC channel to one Triton server; the only module that uses gRPC.

Requests are built once as messages and sent as often as needed. tritonclient's own client would build them again for every attempt,
has no deadline by default, and decodes an empty tensor without an error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias

from scalr_prod.errors import InvalidRequest, ModelNotReady, ScoringError, ServerUnreachable
from scalr_prod.serving.client.security import Security

if TYPE_CHECKING:
    from types import TracebackType

    from scalr_prod.serving.client.latency import LatencyHistogram


#: A protobuf message of Triton's service.
Message: TypeAlias = "Any"
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Reconnect at our own pace: the channel's own backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two scorers of one process must not share a connection, since one of them may close it.
    ("grpc.use_local_subchannel_pool", 1),
)
_ABSENT_MESSAGES: Final = ("is not found", "unknown model", "not at ready state", "is not ready", "no available versions")


@dataclass
class RequestFailure(Exception):
    """A failed attempt: gRPC's status and the server's message.

    Attributes:
        code: Name of the gRPC status, such as ``UNAVAILABLE``.
        detail: The server's message.
    """

    code: str
    detail: str

    @property
    def is_model_absent(self) -> bool:
        """Return whether the server answers, but does not hold the model (yet)."""
        return self.code in {"NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT"} and any(
            words in self.detail for words in _ABSENT_MESSAGES
        )

    @property
    def is_transient(self) -> bool:
        """Return whether the same request may succeed later."""
        return self.code in {"UNAVAILABLE", "ABORTED", "CANCELLED"} and not self.is_restricted

    @property
    def is_restricted(self) -> bool:
        """Return whether the server requires another header for this protocol."""
        return "protocol is restricted" in self.detail

    @property
    def has_backend_died(self) -> bool:
        """Return whether the model's process has exited, for lack of memory for example; the server does not restart it."""
        return "Stub process" in self.detail

    def to_error(self, url: str, model: str) -> ScoringError:
        """Return the error for the user."""
        if self.is_model_absent:
            return ModelNotReady(
                f"the server has not loaded {model}: {self.detail}",
                where=url,
                next_step="run: scalr translator promote (or see what it has loaded: scalr triton status)",
            )
        if self.is_restricted:
            return ScoringError(
                f"the server restricts this protocol: {self.detail}",
                where=url,
                next_step="set SCALR_SERVING__HEADER=name=value to the pair of its --grpc-restricted-protocol; restart a local one: "
                "scalr triton stop, scalr triton start",
            )
        if self.has_backend_died:
            return ModelNotReady(
                f"the process that {model} runs in has exited: {self.detail}",
                where=url,
                next_step="check the available memory, then resume the run, which reloads the model: scalr runs resume RUN",
            )
        if self.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
            return ServerUnreachable(
                f"no answer: {self.detail}",
                where=url,
                next_step="check it: scalr triton status; start one with: scalr triton start; or correct [serving] url",
            )
        refused = InvalidRequest if self.code == "INVALID_ARGUMENT" else ScoringError
        return refused(
            f"the server refused ({self.code}): {self.detail}", where=url, next_step="see the server's log: scalr triton status"
        )


class Reply(Protocol):
    """A pending answer."""

    def result(self) -> Message:
        """Wait for the answer, at most until the request's deadline.

        Raises:
            Failure: No answer arrived.
        """

    def cancel(self) -> None:
        """Discard the answer."""


class Transport(Protocol):
    """The channel interface that a scorer needs; tests substitute it."""

    @property
    def url(self) -> str:
        """Return the server's address."""

    def infer(self, request: Message, timeout: float) -> Reply:
        """Send a request without waiting for the answer."""

    def model_config(self, model: str, version: str, timeout: float) -> Message:
        """Return the model's configuration.

        Raises:
            Failure: The server did not return it.
        """

    def close(self) -> None:
        """Close the channel."""


class Channel:
    """A channel to the server at ``url``. Sends nothing before the first call. Belongs to one process."""

    def __init__(self, url: str, security: Security | None = None, latencies: LatencyHistogram | None = None) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self.url = url
        self._latencies = latencies
        self._pb = service_pb2
        security = security or Security()
        self._metadata = security.metadata
        if security.tls:
            credentials = grpc.ssl_channel_credentials(security.authorities, security.key, security.certificate)
            self._channel = grpc.secure_channel(url, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._error = grpc.RpcError

    def infer(self, request: Message, timeout: float) -> Reply:
        """Send a request without waiting for the answer."""
        started = time.perf_counter()
        future = self._stub.ModelInfer.future(request, timeout=timeout, metadata=self._metadata)
        return _GrpcReply(future, self._error, started, self._latencies)

    def server_name(self, timeout: float) -> str:
        """Return the server's name; an answer shows that it is alive.

        Raises:
            Failure: Nothing answers.
        """
        return str(self._call("ServerMetadata", self._pb.ServerMetadataRequest(), timeout).name)

    def model_config(self, model: str, version: str, timeout: float) -> Message:
        """Return the model's configuration.

        Raises:
            Failure: The server did not return it.
        """
        return self._call("ModelConfig", self._pb.ModelConfigRequest(name=model, version=version), timeout).config

    def ready_versions(self, model: str, timeout: float) -> list[int]:
        """Return the loaded versions of a model, in ascending order.

        Raises:
            Failure: Nothing answers.
        """
        index = self._call("RepositoryIndex", self._pb.RepositoryIndexRequest(), timeout).models
        return sorted(int(entry.version) for entry in index if entry.name == model and entry.state == "READY")

    def answered_requests(self, model: str, timeout: float) -> int:
        """Return how many requests all versions of a model have answered since they were loaded.

        Raises:
            Failure: Nothing answers.
        """
        statistics = self._call("ModelStatistics", self._pb.ModelStatisticsRequest(name=model), timeout).model_stats
        return sum(int(found.inference_stats.success.count) for found in statistics)

    def load_model(self, model: str, timeout: float) -> None:
        """Load the versions named by the model's configuration; versions loaded already stay until then.

        Raises:
            Failure: The server could not load them; with its reason.
        """
        self._call("RepositoryModelLoad", self._pb.RepositoryModelLoadRequest(model_name=model), timeout)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a channel belongs to one process: open one in each process")

    def _call(self, method: str, request: Message, timeout: float) -> Message:
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        except self._error as error:
            raise RequestFailure(error.code().name, error.details() or "") from error


class _GrpcReply:
    def __init__(self, future: Any, error: type[Exception], started: float, latencies: LatencyHistogram | None) -> None:
        self._future = future
        self._error = error
        self._started, self._arrived, self._latencies = started, 0.0, latencies
        if latencies is not None:
            future.add_done_callback(self._record_latency)  # the answer may arrive long before the caller asks for it

    def _record_latency(self, _: Any) -> None:
        self._arrived = time.perf_counter()

    def result(self) -> Message:
        import grpc

        try:
            found = self._future.result()
        except grpc.FutureCancelledError as error:
            raise RequestFailure("CANCELLED", "cancelled") from error
        except self._error as error:
            raise RequestFailure(self._future.code().name, self._future.details() or "") from error
        if self._latencies is not None:
            self._latencies.observe((self._arrived or time.perf_counter()) - self._started)
        return found

    def cancel(self) -> None:
        self._future.cancel()
