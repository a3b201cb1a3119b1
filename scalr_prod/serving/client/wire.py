# SPDX-License-Identifier: Apache-2.0
"""Wire protocol: names, types and shapes of tensors, and the server's batching of requests.

Client and server import this file, so it imports only numpy and modules that need nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from scalr_prod.errors import ScalrError
from scalr_prod.translator import NO_ITEM, Contexts, Samples, check_sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator import RequestBounds

    Tensors = dict[str, NDArray[Any]]


#: Input tensors and their dtypes; the first axis of each is the batch. One value per row has shape [B, 1].
INPUTS: Final[Mapping[str, type[np.generic]]] = {
    "history_items": np.int32,
    "history_ages": np.float32,
    "history_end": np.int64,
    "event_time": np.int64,
    "fold": np.int32,
    "noise_key": np.int64,
    "exclude": np.int32,
    "k": np.int32,
    "temperature": np.float32,
    "min_lift": np.float32,
    "shortlist": np.int32,
    "candidates": np.int32,
}
#: Output tensors and their dtypes.
OUTPUTS: Final[Mapping[str, type[np.generic]]] = {
    "items": np.int32,
    "probabilities": np.float32,
    "prior": np.float32,
    "candidate_probabilities": np.float32,
    "candidate_prior": np.float32,
    "model_version": np.int64,
    "model_digest": np.int64,
    "catalogue_size": np.int32,
    # `request_key` of the request, by which the client detects an answer to another request.
    "request_key": np.int64,
}
SAMPLE_OUTPUTS: Final = ("items", "probabilities", "prior")
SCORE_OUTPUTS: Final = ("candidate_probabilities", "candidate_prior")
_SCALAR_INPUTS: Final = ("history_end", "event_time", "fold", "noise_key")
#: A shortlist of 0 items: all items are scored.
_DEFAULTS: Final[Mapping[str, float]] = {"k": 1, "temperature": 1.0, "min_lift": 0.0, "shortlist": 0}


@dataclass(frozen=True)
class ModelIdentity:
    """Identify the model that answers.

    Attributes:
        version: Its version.
        digest: `digest_to_int64` the parameters' checksum, which differs for another model with the same version number.
        catalogue_size: Number of target items; indices in answers are smaller.
    """

    version: int
    digest: int
    catalogue_size: int


class AnsweringModule(Protocol):
    """The part of the translator's module that answers requests."""

    bounds: RequestBounds

    def sample(
        self, contexts: Contexts, k: int, *, temperature: float = 1.0, min_lift: float = 0.0, shortlist: int | None = None
    ) -> Samples:
        """See `scalr_prod.serving.client.Scorer`."""

    def score(self, contexts: Contexts, candidates: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `scalr_prod.serving.client.Scorer`."""


def digest_to_int64(sha256: str) -> int:
    """Return the first 63 bits of a hexadecimal checksum, which fit into an int64."""
    return int(sha256[:16], 16) >> 1


def encode_request(
    contexts: Contexts,
    *,
    k: int = 1,
    temperature: float = 1.0,
    min_lift: float = 0.0,
    shortlist: int | None = None,
    candidates: NDArray[np.int32] | None = None,
) -> Tensors:
    """Return the input tensors of one request: score the candidates if there are any, else sample from all items."""
    rows = len(contexts)
    tensors: Tensors = {"history_items": contexts.history_items, "history_ages": contexts.history_ages}
    tensors |= {name: getattr(contexts, name)[:, None] for name in _SCALAR_INPUTS}
    # Triton does not accept a tensor without bytes: an empty list is sent as one filler element.
    empty = np.full((rows, 1), NO_ITEM, np.int32)
    exclude = contexts.exclude_matrix()
    tensors["exclude"] = exclude if exclude.shape[1] else empty
    if candidates is not None:
        return tensors | {"candidates": candidates}
    values = {"k": k, "temperature": temperature, "min_lift": min_lift}
    values |= {} if shortlist is None else {"shortlist": shortlist}
    return tensors | {name: np.full((rows, 1), value, INPUTS[name]) for name, value in values.items()}


def request_key(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Return the request's identity: its rows' noise keys, each with a digest of all input tensors. Shape [B, 1]."""
    digest = hashlib.blake2b(digest_size=8)
    for name in INPUTS:
        if name in tensors:
            digest.update(f"{name}{tensors[name].shape}".encode())
            digest.update(np.ascontiguousarray(tensors[name]).data)
    return tensors["noise_key"].reshape(-1, 1) ^ np.int64(int.from_bytes(digest.digest(), "little", signed=True))


def answer_requests(
    module: AnsweringModule, identity: ModelIdentity, requests: Sequence[Mapping[str, NDArray[Any]]]
) -> list[Tensors | ValueError]:
    """Answer queued requests with as few forward passes as possible, each as if it had come alone.

    Requests of one kind with equal parameters and widths are joined into one batch; exclusion lists are padded to the widest.

    Args:
        module: The translator.
        identity: The model's identity, sent with every answer.
        requests: Input tensors of each request.

    Returns:
        The output tensors of each request, or its error.
    """
    answers: list[Tensors | ValueError] = [ValueError("not answered")] * len(requests)
    groups: dict[tuple[Any, ...], list[tuple[int, Contexts]]] = {}
    for number, request in enumerate(requests):
        try:
            contexts, key = _decode(request, module.bounds)
        except KeyError as error:
            answers[number] = ValueError(f"input {error} is missing")
        except (
            ScalrError,
            ValueError,
            TypeError,
            IndexError,
        ) as error:  # of `_decode`: an unexpected shape or dtype
            answers[number] = ValueError(_error_line(error))
        else:
            groups.setdefault(key, []).append((number, contexts))
    for key, members in groups.items():
        for number, part in _answer_group(module, key, members, requests).items():
            answers[number] = part if isinstance(part, ValueError) else part | _identity_tensors(identity, requests[number])
    return answers


def _answer_group(
    module: AnsweringModule,
    key: tuple[Any, ...],
    members: list[tuple[int, Contexts]],
    requests: Sequence[Mapping[str, NDArray[Any]]],
) -> dict[int, Tensors | ValueError]:
    contexts = Contexts.concat([part for _, part in members]) if len(members) > 1 else members[0][1]
    candidates = [requests[number]["candidates"] for number, _ in members] if key[0] == "score" else None
    try:
        outputs = _forward(module, contexts, key, candidates)
    except (ScalrError, ValueError, IndexError, RuntimeError) as error:  # the last two are torch's
        if len(members) == 1:
            return {members[0][0]: ValueError(_error_line(error))}
        # One request must not fail because of another one.
        return {number: part for one in members for number, part in _answer_group(module, key, [one], requests).items()}
    parts: dict[int, Tensors | ValueError] = {}
    start = 0
    for number, part in members:
        parts[number] = {name: array[start : start + len(part)] for name, array in outputs.items()}
        start += len(part)
    return parts


def _error_line(error: Exception) -> str:
    """Return one line for the client."""
    if isinstance(error, ScalrError):
        return f"{error.where}: {error.found}" if error.where else error.found
    return str(error)


def _decode(request: Mapping[str, NDArray[Any]], bounds: RequestBounds) -> tuple[Contexts, tuple[Any, ...]]:
    """Return the contexts, and the parameters that requests must share to be answered in one pass."""
    contexts = Contexts(
        history_items=request["history_items"],
        history_ages=request["history_ages"],
        exclude=request["exclude"],
        **{name: _one_per_row(request, name) for name in _SCALAR_INPUTS},
    )
    bounds.check_contexts(contexts)
    if (contexts.history_end > contexts.event_time).any():
        raise ValueError("history_end is later than event_time: the translated event happened at that time or before")
    width = contexts.history_items.shape[1]
    candidates = request.get("candidates")
    if candidates is not None:
        bounds.check_candidates(candidates, len(contexts))
        return contexts, ("score", width, candidates.shape[1])
    k, temperature, min_lift, shortlist = (_shared_parameter(request, name) for name in _DEFAULTS)
    check_sampling(k, temperature, min_lift, shortlist or None)
    if k > bounds.n_target:  # each draw takes memory in the server, even if no item is left for it
        raise ValueError(f"k = {k}: the catalogue has {bounds.n_target} items, and none is drawn twice")
    return contexts, ("sample", width, int(k), temperature, min_lift, int(shortlist) or None)


def _one_per_row(request: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    array = request[name]
    if array.ndim > 1 and array.shape[1:] != (1,):
        raise ValueError(f"{name} has shape {list(array.shape)}; it takes one value per row, [rows, 1]")
    return array.reshape(-1)


def _shared_parameter(request: Mapping[str, NDArray[Any]], name: str) -> float:
    values = request.get(name)
    if values is None:
        return _DEFAULTS[name]
    first = values.flat[0] if values.size else _DEFAULTS[name]
    if not np.isfinite(first) or (values != first).any():
        raise ValueError(f"{name} differs within one request, or is not a finite number")
    return float(first)


def _forward(
    module: AnsweringModule, contexts: Contexts, key: tuple[Any, ...], candidates: list[NDArray[Any]] | None
) -> Tensors:
    if candidates is not None:
        probabilities, prior = module.score(contexts, np.concatenate(candidates))
        return {"candidate_probabilities": probabilities, "candidate_prior": prior}
    _, _, k, temperature, min_lift, shortlist = key
    samples = module.sample(contexts, k, temperature=temperature, min_lift=min_lift, shortlist=shortlist)
    return {name: getattr(samples, name) for name in SAMPLE_OUTPUTS}


def _identity_tensors(identity: ModelIdentity, request: Mapping[str, NDArray[Any]]) -> Tensors:
    rows = len(request["noise_key"])
    return {
        "request_key": request_key(request),
        "model_version": np.full((rows, 1), identity.version, np.int64),
        "model_digest": np.full((rows, 1), identity.digest, np.int64),
        "catalogue_size": np.full((rows, 1), identity.catalogue_size, np.int32),
    }
