# SPDX-License-Identifier: Apache-2.0
"""Encoding of requests as protobuf messages, and decoding of answers with validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.errors import MalformedResponse, ModelVersionMismatch
from scalr_prod.serving.client.wire import OUTPUTS
from scalr_prod.translator import NO_ITEM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.serving.client.transport import Message


_DATATYPES: Final[Mapping[str, str]] = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
#: Sums of float32 terms may slightly exceed 1.
_PROBABILITY_TOLERANCE: Final = 1e-3
_VERSION_SKEW_HINT: Final = "client and server differ: compare numpy (< 2) and scalr-prod in both environments"


def row_bytes(tensors: Mapping[str, NDArray[Any]]) -> int:
    """Return the bytes that one row of these input tensors takes on the wire."""
    return sum(array[:1].nbytes for array in tensors.values())


def build_request(
    model: str, version: int, tensors: Mapping[str, NDArray[Any]], outputs: Sequence[str], *, timeout_s: float
) -> Message:
    """Build the request message; it can be sent any number of times.

    Args:
        model: The model's name in the server.
        version: The only version that may answer.
        tensors: Input tensors.
        outputs: Output tensors to send back.
        timeout_s: The server drops the request after this time in its queue.
    """
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, model_version=str(version))
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=_DATATYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def read_tensors(response: Message, shapes: Mapping[str, tuple[int, int]], *, where: str) -> dict[str, NDArray[Any]]:
    """Return the named output tensors.

    Args:
        response: The answer.
        shapes: Each tensor's expected shape.
        where: The server's address, for errors.

    Raises:
        MalformedResponse: A tensor is missing, or has an unexpected dtype, shape or size.
    """
    if len(response.raw_output_contents) != len(response.outputs):
        raise _malformed_error(f"{len(response.outputs)} tensors announced, {len(response.raw_output_contents)} sent", where)
    outputs = {output.name: (output, raw) for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}
    tensors = {}
    for name, shape in shapes.items():
        if name not in outputs:
            raise _malformed_error(f"output {name!r} is missing; there are: {', '.join(outputs) or 'none'}", where)
        output, raw = outputs[name]
        dtype = np.dtype(OUTPUTS[name])
        if output.datatype != _DATATYPES[dtype.name] or tuple(output.shape) != shape:
            raise _malformed_error(
                f"output {name!r} is {output.datatype} {tuple(output.shape)}, expected {_DATATYPES[dtype.name]} {shape}", where
            )
        expected = int(np.prod(shape)) * dtype.itemsize
        if len(raw) != expected:
            raise _malformed_error(f"output {name!r} holds {len(raw)} bytes, its shape needs {expected}", where)
        tensors[name] = np.frombuffer(raw, dtype).reshape(shape)
    return tensors


def check_version(versions: NDArray[np.int64], expected: int, *, where: str) -> None:
    """Check that the expected version answered every row.

    Raises:
        ModelVersionMismatch: A row was answered by another version.
    """
    if (versions != expected).any():
        raise version_mismatch_error(int(versions[versions != expected][0]), expected, where)


def check_digest(digests: NDArray[np.int64], expected: int | None, version: int, *, where: str) -> None:
    """Check that the expected model answered every row; None accepts any.

    Raises:
        ModelVersionMismatch: Another model with that version number answered, of another project or of a retraining.
    """
    if expected is not None and (digests != expected).any():
        raise ModelVersionMismatch(
            f"version {version} is a different model from version {version} here",
            where=where,
            next_step=f"install this one: scalr translator promote --version {version}",
        )


def check_request(keys: NDArray[np.int64], expected: NDArray[np.int64], *, where: str) -> None:
    """Check that the answer belongs to the request with these keys.

    Raises:
        MalformedResponse: It belongs to another request. A Triton whose model process was paused for a second does this (ADR 0012).
    """
    if not np.array_equal(keys, expected):
        raise _malformed_error("the answer belongs to another request", where)


def version_mismatch_error(found: int, expected: int, where: str) -> ModelVersionMismatch:
    """Return the error for version ``found`` answering where ``expected`` was requested."""
    return ModelVersionMismatch(
        f"version {found} answers, the run is pinned to version {expected}",
        where=where,
        next_step=f"run: scalr translator promote --version {expected}",
    )


def check_items(items: NDArray[np.int32], catalogue_size: int, *, where: str) -> None:
    """Check that every item is an index into the catalogue, or none.

    Raises:
        MalformedResponse: An item is neither.
    """
    outside = (items < NO_ITEM) | (items >= catalogue_size)
    if outside.any():
        raise _malformed_error(f"item {items[outside][0]} is outside the catalogue of {catalogue_size}", where)


def check_probabilities(name: str, shares: NDArray[np.float32], *, where: str) -> None:
    """Check that every value is a probability.

    Raises:
        MalformedResponse: A value is out of range or not a number.
    """
    wrong = ~((shares >= 0) & (shares <= 1 + _PROBABILITY_TOLERANCE))
    if wrong.any():
        raise _malformed_error(f"{name} holds {shares[wrong][0]}, which is not a probability", where)


def _malformed_error(found: str, where: str) -> MalformedResponse:
    return MalformedResponse(found, where=where, next_step=_VERSION_SKEW_HINT)
