# SPDX-License-Identifier: Apache-2.0
"""Topic estimator: an aspect model (Hofmann 1999) whose latent topic links a source item to a target item.

A history has a distribution over topics, and a topic one over target items:

    P(i | history) = Σ_h w_h Σ_k P(k | j_h) P(i | k)

over the last `HISTORY_DEPTH` source items j_h, the most recent first. The weights w_h depend on how many events ago the item was, and sum
to 1. All three tables are fitted by expectation maximisation on the target events that follow each history. The score is the logarithm.

They begin from P(k | j) that explains which source items users share (`_fit_source_topics`).

Plain EM overfits: the topic of a rare source item becomes that of the single target event that followed it, and the recency weights then
favour such items. So the training users are split into groups, and the expectation step of each group uses parameters fitted on the other
groups (`_Counts.without`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.memmap import iter_row_slices
from scalr_prod.translator.estimators.compiled_kernels import load_kernels
from scalr_prod.translator.estimators.dot_products import UNIT_ROUNDOFF, dot_product_scores
from scalr_prod.translator.estimators.window_index import index_source_windows, sample_windows
from scalr_prod.translator.worker_pool import check_cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


version: Final = 1
#: Topics per unit of ``[translator] dim``.
TOPICS_PER_DIM: Final = 2
#: Source events of a history that count.
DEPTH: Final = 20
#: Upper limits of the recency classes, in events ago.
STEPS_BACK: Final = (0, 1, 2, 4, 8, 16)
ITERATIONS: Final = 7
GROUPS: Final = 4
#: Pseudo-events per source item that follow the overall topic distribution, and that follow the item's initial topics.
SMOOTHING: Final = 0.5
ANCHOR: Final = 2.0
#: Pseudo-events per topic that follow popularity.
TARGET_SMOOTHING: Final = 5.0
#: Inverse temperature of the cluster membership that initialises the topics.
_INVERSE_TEMPERATURE: Final = 5.0
_CLUSTER_STEPS: Final = 20
#: Passes over the source events, and steps in each to find the topics of a window.
_SOURCE_ITERATIONS: Final = 10
_WINDOW_ITERATIONS: Final = 3
#: Pseudo-events of a window that follow the overall topic distribution.
_WINDOW_SMOOTHING: Final = 1.0
#: Windows at a time: few enough that the topics of their items stay near the processor's cache.
_WINDOW_BATCH: Final = 512
#: Target events at a time: few enough that their items' topics fit the processor's cache.
_CHUNK_ROWS: Final = 128
#: Histories read at a time.
_HISTORY_BATCH: Final = 65_536


def share(pairs: TrainingSlice) -> Parameters:
    """Fit ``source`` float32 [n_source + 1, K]: P(k | j) from source events alone, beginning from clusters of items that share users."""
    from scalr_prod.translator.estimators import linear

    topic_count = min(TOPICS_PER_DIM * pairs.settings.dim, max(1, pairs.n_source // 2))
    basis = torch.from_numpy(linear.source_basis(pairs, topic_count + 1))[1:]
    # The first component is popularity, which does not separate items.
    vectors = torch.nn.functional.normalize(basis[:, 1:] if basis.shape[1] > 1 else basis, dim=1)
    users = torch.from_numpy(pairs.source_user_counts()[1:])
    similarity = _INVERSE_TEMPERATURE * vectors @ _centres(vectors, users, topic_count, pairs.settings.seed).T
    start = torch.full((pairs.n_source + 1, topic_count), 1 / topic_count)
    start[1:] = similarity.softmax(1)
    return {"source": _fit_source_topics(pairs, start)}


def _fit_source_topics(pairs: TrainingSlice, start: torch.Tensor) -> torch.Tensor:
    """Fit P(k | j) to the source events alone by probabilistic latent semantic analysis, in which each window has its own topics.

    Args:
        pairs: The training slice.
        start: P(k | j) to begin with: float32 [n_source + 1, K].
    """
    windows = index_source_windows(pairs)
    windows = sample_windows(windows, windows.known_event_counts())
    source = start.clone()
    item_counts = torch.from_numpy(windows.item_counts()).float()
    for _ in range(_SOURCE_ITERATIONS):
        check_cancelled(1 / _SOURCE_ITERATIONS)
        shares = (item_counts[:, None] * source).sum(0) + 1
        shares /= shares.sum()
        # P(j | k) up to a factor of each item, which the posterior does not depend on.
        likelihood = source / shares
        counts = torch.zeros_like(source)
        for batch in torch.arange(len(windows)).split(_WINDOW_BATCH):
            items, _ = windows.read(batch)
            window, position = (items > 0).nonzero(as_tuple=True)
            item = items[window, position]
            of_items, topics = likelihood[item], shares.expand(len(items), -1)
            for _ in range(_WINDOW_ITERATIONS):
                posterior = of_items * topics[window]
                posterior /= posterior.sum(1, keepdim=True)
                topics = (_WINDOW_SMOOTHING * shares).repeat(len(items), 1).index_add_(0, window, posterior)
                topics /= topics.sum(1, keepdim=True)
            counts.index_add_(0, item, posterior)
        source = counts + SMOOTHING * shares + ANCHOR * start
        source /= source.sum(1, keepdim=True)
    source[0] = shares
    return source


def fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    """Fit by expectation maximisation.

    Returns:
        ``source`` float32 [n_source + 1, K]: P(k | j), row 0 the overall distribution P(k); ``target`` float32 [n_target, K]: P(i | k);
        ``recency`` float32 [DEPTH]: weight of an item by its position in the history, the most recent last.
    """
    from scalr_prod.translator.estimators import popularity

    groups, depth = _groups(pairs), min(DEPTH, pairs.log.history.shape[1])
    item_probability = popularity.log_popularity(pairs).exp()
    recency_class = torch.bucketize(torch.arange(depth - 1, -1, -1), torch.tensor(STEPS_BACK))
    weight = 1 / (1 + torch.arange(len(STEPS_BACK) + 1.0))
    counts, next_counts = (_Counts.empty(shared["source"], item_probability) for _ in range(2))
    source, target = torch.empty_like(shared["source"]), torch.empty(len(item_probability), shared["source"].shape[1])
    for iteration in range(ITERATIONS):
        check_cancelled(1 / ITERATIONS)
        next_counts.clear()
        position_sums = torch.zeros(2, depth, dtype=torch.float64)
        for number, group in enumerate(groups):
            if iteration:
                counts.without(number, source, target)
            else:
                source.copy_(shared["source"])
            group_sums = next_counts.source[number], next_counts.target[number]
            for events in _iter_events(pairs, *group):
                _expectation_step(
                    events, weight[recency_class], (source, target), group_sums, position_sums, first=not iteration
                )
            next_counts.source[number].mul_(source)
        if iteration:
            expected, explained = (
                torch.zeros(len(weight)).double().index_add_(0, recency_class, sums).float() for sums in position_sums
            )
            weight = weight * (explained + 1) / (expected + 1)
            weight = weight / weight.sum()
        counts, next_counts = next_counts, counts
    counts.without(None, source, target)
    return {"source": source, "target": target, "recency": weight[recency_class].contiguous()}


def _groups(pairs: TrainingSlice) -> list[tuple[NDArray[np.int64], NDArray[np.float32] | None]]:
    """Split the target events that follow a known source item into groups of users: positions in the log, and weights."""
    rows = pairs.target_rows()
    rows = rows[np.concatenate([(items > 0).any(1) for _, items in _histories(pairs, rows)])]
    group = (pairs.log.target.user[rows].astype(np.int64) * 2654435761 >> 16) % GROUPS
    weights = pairs.target_weights(rows)
    masks = [group == number for number in range(GROUPS)]
    return [(rows[mask], None if weights is None else weights[mask]) for mask in masks]


def _iter_events(
    pairs: TrainingSlice, rows: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield batches of target events: their last source items, int64 [R, up to DEPTH], the target items [R], and weights [R]."""
    for batch, items in _histories(pairs, rows):
        label = torch.from_numpy(pairs.target_index[pairs.log.target.item[rows[batch]]].astype(np.int64))
        event_weights = torch.ones(len(label)) if weights is None else torch.from_numpy(weights[batch])
        yield torch.from_numpy(items).long(), label, event_weights


def _histories(pairs: TrainingSlice, rows: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """Yield slices of ``rows`` with the last source items before these target events, 0 for padding: int32 [R, up to DEPTH]."""
    for batch in iter_row_slices(len(rows), _HISTORY_BATCH):
        history = pairs.log.history[rows[batch], -DEPTH:]
        yield batch, pairs.source_index[pairs.log.source.item[history]] * (history >= 0)


def user(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    """Compute P(k | history): float64 [B, K]; P(k) if the history holds no known item."""
    source, recency = parameters["source"], parameters["recency"].double()
    items = batch.items[:, -len(recency) :]
    shares = _shares(items, recency[len(recency) - items.shape[1] :])
    topics = (shares[:, None] @ source[items].double())[:, 0]
    return torch.where((items > 0).any(1, keepdim=True), topics, source[:1].double())


def vectors(parameters: Parameters) -> torch.Tensor:
    """Return P(i | k) of each target item: float32 [N, K]."""
    return parameters["target"]


def score(parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
    """Compute log P(i | history): [B, N] in the dtype of ``log_prior``."""
    return dot_product_scores(user(parameters, batch), vectors(parameters), log_prior.dtype).log_()


def largest(parameters: Parameters, log_prior: torch.Tensor) -> torch.Tensor:
    """Return an upper bound of the absolute score of each item, by its smallest P(i | k): float32 [N]."""
    del log_prior
    return -parameters["target"].amin(1).log() * (1 + 8 * UNIT_ROUNDOFF)


def _shares(items: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Normalise the weights [L] over the items of each history, without padding: [B, L]."""
    present = weight * (items > 0)
    return present / present.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class _Counts:
    """Expected event counts by group of users.

    Attributes:
        source: [GROUPS, n_source + 1, K]. Expected events of a source item and topic.
        target: [GROUPS, n_target, K]. Expected events of a target item and topic.
        start: [n_source + 1, K]. Initial topics, from source events alone.
        item_probability: [n_target]. P(i), towards which topics are smoothed.
    """

    source: torch.Tensor
    target: torch.Tensor
    start: torch.Tensor
    item_probability: torch.Tensor

    @classmethod
    def empty(cls, start: torch.Tensor, item_probability: torch.Tensor) -> _Counts:
        topics = start.shape[1]
        return cls(
            torch.zeros(GROUPS, *start.shape), torch.zeros(GROUPS, len(item_probability), topics), start, item_probability
        )

    def clear(self) -> None:
        """Set all counts to 0."""
        self.source.zero_()
        self.target.zero_()

    def without(self, group: int | None, source: torch.Tensor, target: torch.Tensor) -> None:
        """Write P(k | j) [n_source + 1, K] and P(i | k) [n_target, K] from all groups but one; None: from all groups."""
        compiled = load_kernels()
        if compiled is not None:
            excluded, smoothing = -1 if group is None else group, (np.float32(SMOOTHING), np.float32(ANCHOR))
            compiled.topics_given_source(self.source.numpy(), excluded, self.start.numpy(), smoothing, source.numpy())
            compiled.targets_given_topic(
                self.target.numpy(), excluded, self.item_probability.numpy(), np.float32(TARGET_SMOOTHING), target.numpy()
            )
            return
        others = [number for number in range(GROUPS) if number != group]
        torch.sum(self.source[others], 0, out=source)
        torch.sum(self.target[others], 0, out=target)
        shares = source[1:].sum(0) + 1
        shares = shares / shares.sum()
        source += SMOOTHING * shares + ANCHOR * self.start
        source /= source.sum(1, keepdim=True)
        source[0] = shares
        target += TARGET_SMOOTHING * self.item_probability[:, None]
        target /= target.sum(0)


def _expectation_step(
    events: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    sums: tuple[torch.Tensor, torch.Tensor],
    position_sums: torch.Tensor,
    *,
    first: bool,
) -> None:
    """Run the expectation step for a batch of events; see `kernels.topic_model.expectation_step`."""
    compiled = load_kernels()
    if compiled is not None:
        event_arrays, table_arrays, sum_arrays = (tuple(x.numpy() for x in tensors) for tensors in (events, tables, sums))
        compiled.expectation_step(event_arrays, weight.numpy(), table_arrays, first, sum_arrays, position_sums.numpy())
        return
    source, target = tables
    for items, label, event_weight in zip(*(tensor.split(_CHUNK_ROWS) for tensor in events), strict=True):
        shares = _shares(items, weight)
        # Weighted events per position.
        weighted = shares * event_weight[:, None]
        item_topics = source[items]
        topics = (shares[:, None] @ item_topics)[:, 0]
        # P(i | k) / P(i | history): [B, K].
        gain = torch.ones_like(topics)
        if not first:
            gain = target[label]
            gain = gain / (topics * gain).sum(1, keepdim=True).clamp(min=1e-30)
            position_sums[0] += weighted.sum(0)
            position_sums[1] += (weighted * (item_topics @ gain[:, :, None])[:, :, 0]).sum(0)
        sums[0].index_add_(0, items.flatten(), (weighted[:, :, None] * gain[:, None]).flatten(0, 1))
        sums[1].index_add_(0, label, topics * gain * event_weight[:, None])


def _centres(vectors: torch.Tensor, weight: torch.Tensor, topic_count: int, seed: int) -> Any:
    """Cluster weighted unit vectors [n, r] by spherical k-means (Dhillon & Modha 2001): unit vectors [topic_count, r]."""
    generator = torch.Generator().manual_seed(seed)
    initial = torch.multinomial(weight + 1e-9, min(topic_count, len(vectors)), generator=generator)
    centres = vectors[initial]
    for _ in range(_CLUSTER_STEPS):
        nearest = (vectors @ centres.T).argmax(1)
        updated = torch.zeros_like(centres).index_add_(0, nearest, vectors * weight[:, None])
        empty = updated.norm(dim=1) <= 1e-9  # noqa: PLR2004 - nothing was added
        centres = torch.where(empty[:, None], centres, torch.nn.functional.normalize(updated, dim=1))
    return centres
