# SPDX-License-Identifier: Apache-2.0
"""Shortlists: in a catalogue of millions of items, score only the items that a context is likely to choose.

Items are grouped into blocks of similar ones. A tree splits the catalogue in two, recursively, along the direction in which the items'
logits vary most over times and histories. A block's score for a context estimates the log-sum-exp of its items' logits at the draws'
temperature T:

    log Σ_i e^(popularity of i / T) + Σ_e c_e s_e(mean vector of the block | context) / T,

with popularity as of the start of the week. It costs one dot product per block and estimator. A shortlist consists of the blocks with the
highest scores that together hold the requested number of items. Other items are never drawn.

P and the prior of a draw are scaled to the whole catalogue: over a shortlist they sum to the estimated share of its blocks in the total
mass at T = 1. `generation.task` measures how often a draw from the whole catalogue is missing from the shortlist. Scores that are neither a
dot product nor the logarithm of one do not affect which blocks are selected, except that a log score counts as the log prior.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ConsumedItems
from scalr_prod.translator.estimators import has_log_score, has_product_score, popularity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.requests import SampleRequest


#: Target number of blocks, and limits of a block's size in items.
_TARGET_BLOCKS: Final = 1024
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 64, 2048
#: Number of times and of histories over which items' logits are compared.
_TIMES, _HISTORIES = 16, 1024
#: Dimensions kept for the tree, number of items that their principal axes are computed from, and steps of the power iteration.
_DIMENSIONS, _SAMPLED_ITEMS, _POWER_STEPS = 32, 20_000, 6
_WEEK_US: Final = 7 * DAY_US
#: Scores are rounded to this before sorting, so that rounding errors, which depend on the batch, do not decide between equal scores.
_SCORE_PRECISION: Final = 2.0**-30
#: Maximum size of the cache of weekly popularity, in bytes; the least recently used weeks are dropped.
_MAX_CACHE_BYTES: Final = 2**28


@dataclass(frozen=True)
class ShortlistSelection:
    """Shortlists of B contexts.

    Attributes:
        blocks: bool [B, blocks]. Mask of the selected blocks.
        catalogue_share: Component → float64 [B], the estimated share of the selected blocks in its total mass; for the requested component
            and ``popularity``.
    """

    blocks: torch.Tensor
    catalogue_share: dict[str, torch.Tensor]


@dataclass(frozen=True)
class ShortlistIndex:
    """Blocks of items, from which each context's shortlist is selected. All tensors are on the CPU.

    Attributes:
        item_order: int64 [N]. Items sorted by block, then ascending.
        block_size: Items per block; the last block may hold fewer.
        first_seen: int64 [N], ascending. Time at which each item was first seen, in microseconds.
        block_of_item: int32 [N]. Block of each item.
        on_progress: Called repeatedly while the index or its caches are built.
    """

    item_order: torch.Tensor
    block_size: int
    first_seen: torch.Tensor
    block_of_item: torch.Tensor
    on_progress: Callable[[], None] = lambda: None
    _mean_cache: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _popularity_cache: OrderedDict[tuple[Any, ...], torch.Tensor] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    @classmethod
    def from_mixture(
        cls, mixture: Mixture, n_source: int, first_seen: torch.Tensor, on_progress: Callable[[], None] = lambda: None
    ) -> ShortlistIndex:
        """Build the blocks of a catalogue. Takes some seconds per million items.

        Args:
            mixture: Parameter set whose logits define which items are similar. The blocks are used with all folds' sets.
            n_source: Number of source items.
            first_seen: int64 [N], ascending. Time at which each item was first seen, in microseconds.
            on_progress: See the attribute.
        """
        n_items = len(first_seen)
        block_size = min(max(2 ** round(math.log2(max(n_items / _TARGET_BLOCKS, 1))), _MIN_BLOCK_SIZE), _MAX_BLOCK_SIZE)
        order, start = torch.empty(n_items, dtype=torch.int64), 0
        coordinates = _embed_items(mixture, n_source, n_items, on_progress)
        for block in _split_by_principal_axis(torch.arange(n_items), coordinates, block_size, on_progress):
            order[start : start + len(block)] = block.sort().values
            start += len(block)
        block_of_item = torch.empty(n_items, dtype=torch.int32)
        block_of_item[order] = (torch.arange(n_items) // block_size).int()
        return cls(order, block_size, first_seen.cpu(), block_of_item, on_progress)

    def warm_up(self, mixtures: Iterable[Mixture]) -> None:
        """Compute and cache the blocks' mean vectors of some parameter sets."""
        for mixture in mixtures:
            self._block_means(mixture)

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks."""
        return -(-len(self.item_order) // self.block_size)

    def select(self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest) -> ShortlistSelection:
        """Select the shortlist of each context. It depends on the context alone, not on the batch or the execution.

        Args:
            mixture: The parameter set.
            encoded: B encoded contexts.
            request: Parameters of the draw. ``shortlist`` is the minimum number of eligible items; whole blocks are selected until they
                hold as many.
        """
        eligible = self._count_eligible(encoded.batch.eligible.cpu())

        def block_scores(component: str, temperature: float) -> torch.Tensor:
            log_mass = self._popularity_scores(mixture, component, encoded.batch.time.cpu(), eligible, temperature)
            return log_mass + self._mean_scores(mixture, encoded, component) / temperature

        scores = block_scores(request.component, request.temperature)
        ranking = (scores / _SCORE_PRECISION).round().argsort(dim=1, descending=True, stable=True)
        sizes = eligible.gather(1, ranking)
        # Excluded items may lie in the selected blocks, and do not count.
        min_items = (request.shortlist or 0) + _count_excluded(encoded.batch)[:, None]
        is_selected = (sizes.cumsum(1) - sizes < min_items) & (sizes > 0)
        blocks = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, ranking, is_selected)
        computed = {request.component: scores} if request.temperature == 1 else {}
        return ShortlistSelection(
            blocks,
            {
                name: _mass_share(computed[name] if name in computed else block_scores(name, 1.0), blocks)
                for name in request.components
            },
        )

    def restrict(
        self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest
    ) -> tuple[EncodedBatch, dict[str, torch.Tensor]]:
        """Return the contexts with all items outside their shortlists masked, and `ShortlistSelection.catalogue_share`."""
        selection = self.select(mixture, encoded, request)
        off_shortlist = ~selection.blocks[:, self.block_of_item.long()]
        batch = replace(encoded.batch, off_shortlist=off_shortlist.to(encoded.batch.time.device))
        return replace(encoded, batch=batch), selection.catalogue_share

    def _mean_scores(self, mixture: Mixture, encoded: EncodedBatch, component: str) -> torch.Tensor:
        """Return weighted estimator scores of the blocks' mean vectors: float64 [B, blocks]."""
        total = torch.zeros(len(encoded.batch.time), self.n_blocks, dtype=torch.float64)
        for name, mean in self._block_means(mixture).items():
            weight = mixture.calibration[component][name]
            if weight != 0:
                score = encoded.user_vectors[name].cpu() @ mean.T
                total += weight * (score.clamp(min=1e-300).log() if has_log_score(mixture.estimators[name]) else score)
        return total

    def _count_eligible(self, n_eligible: torch.Tensor) -> torch.Tensor:
        """Count the items of each block whose index is below a limit, int64 [B]: int64 [B, blocks]."""
        distinct, row = torch.unique(n_eligible, return_inverse=True)
        counts = torch.zeros(len(distinct), self.n_blocks, dtype=torch.int64)
        begin = 0
        for number, end in enumerate(distinct.tolist()):
            counts[number] = torch.bincount(self.block_of_item[begin:end], minlength=self.n_blocks)
            begin = end
        return counts.cumsum(0)[row]

    def _block_means(self, mixture: Mixture) -> dict[str, torch.Tensor]:
        """Return the mean item vectors of the blocks by estimator, cached: float64 [blocks, d]."""
        means = {}
        with self._lock:
            for name in _product_estimators(mixture):
                # The key identifies parameter tensors, which live as long as the module. Vectors derived from them may be temporary, so
                # that their addresses could be reused.
                key = name, *map(id, mixture.parameters[name].values())
                if key not in self._mean_cache:
                    vectors = mixture.estimators[name].vectors(mixture.parameters[name]).cpu()
                    blocks = self.item_order.split(self.block_size)
                    self._mean_cache[key] = torch.stack([vectors[items].mean(0, dtype=torch.float64) for items in blocks])
                    self.on_progress()
                means[name] = self._mean_cache[key]
        return means

    def _popularity_scores(
        self, mixture: Mixture, component: str, time: torch.Tensor, eligible: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Return log Σ e^(popularity / T) over the eligible items of each block: float64 [B, blocks]; -infinity if there are none.

        Popularity is as of the start of the week. Items first seen later in the week count as items without events.
        """
        weeks, row = torch.unique(time.div(_WEEK_US, rounding_mode="floor") * _WEEK_US, return_inverse=True)
        known = self._weekly_popularity(mixture, component, weeks, temperature)[row]
        n_new = eligible - self._count_eligible(torch.searchsorted(self.first_seen, weeks))[row]
        return torch.logaddexp(known, n_new.double().log() + _new_item_logit(mixture, component) / temperature)

    def _weekly_popularity(self, mixture: Mixture, component: str, weeks: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return log Σ e^(popularity / T) over each block's items seen before the start of each week: float64 [weeks, blocks]; cached."""
        prior = sum(mixture.calibration[component][name] for name in _log_mixture_estimators(mixture))
        parameters = id(mixture.popularity["prior" if prior else "time"])
        prefix = parameters, prior, temperature, *_popularity_weights(mixture, component).tolist()
        with self._lock:
            for week in weeks.split(1):  # one at a time: rounding of a matrix product depends on the number of rows
                key = (*prefix, int(week))
                if key not in self._popularity_cache:
                    self.on_progress()
                    logits = _popularity_logits(mixture, component, week)[0]
                    logits[int(torch.searchsorted(self.first_seen, week)) :] = -torch.inf
                    by_block = torch.full((self.n_blocks * self.block_size,), -torch.inf, dtype=torch.float64)
                    by_block[: len(self.item_order)] = logits[self.item_order].double() / temperature
                    self._popularity_cache[key] = by_block.view(self.n_blocks, self.block_size).logsumexp(1)
                self._popularity_cache.move_to_end(key)
            result = torch.stack([self._popularity_cache[*prefix, week] for week in weeks.tolist()])
            while len(self._popularity_cache) * self.n_blocks * result.itemsize > _MAX_CACHE_BYTES:
                self._popularity_cache.popitem(last=False)
        return result


def _count_excluded(batch: ContextBatch) -> torch.Tensor:
    """Return an upper bound of the number of items that each context excludes: int64 [B]."""
    exclude = batch.exclude.to_matrix() if isinstance(batch.exclude, ConsumedItems) else batch.exclude
    if exclude is None:
        return torch.zeros(len(batch.time), dtype=torch.int64)
    return torch.from_numpy((exclude >= 0).sum(1))


def _mass_share(scores: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Return the share of the selected blocks in Σ e^score over all blocks: float64 [B]; 1 where the sum is 0.

    Args:
        scores: float64 [B, blocks].
        blocks: bool [B, blocks]. The selected blocks.
    """
    mass = (scores - scores.amax(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)).exp()
    total = mass.sum(1)
    return torch.where(total > 0, (mass * blocks).sum(1) / total, 1.0)


def _new_item_logit(mixture: Mixture, component: str) -> float:
    """Return popularity's contribution to the logit of an item without events."""
    counts = {
        name: torch.tensor(math.log(added), dtype=torch.float64) for name, (_, added) in popularity.DECAYED_COUNTS.items()
    }
    features = torch.stack([popularity.feature_values(counts, name) for name in popularity.FEATURES])
    prior = sum(mixture.calibration[component][name] for name in _log_mixture_estimators(mixture))
    return float(_popularity_weights(mixture, component).cpu() @ features) + (
        prior * float(mixture.popularity["prior"].min()) if prior else 0.0
    )


def _product_estimators(mixture: Mixture) -> list[str]:
    """Return the names of the estimators that have item vectors."""
    return [name for name, estimator in mixture.estimators.items() if has_product_score(estimator)]


def _log_mixture_estimators(mixture: Mixture) -> list[str]:
    """Return the names of the estimators whose score is the logarithm of a mixture with the prior, which dominates for most items."""
    return [
        name for name, estimator in mixture.estimators.items() if has_log_score(estimator) and not has_product_score(estimator)
    ]


def _popularity_weights(mixture: Mixture, component: str) -> torch.Tensor:
    """Return a component's weights of popularity's features, without traits: float64 [F]."""
    weights = [mixture.calibration[component][name] for name in popularity.FEATURES]
    return torch.tensor(weights, dtype=torch.float64, device=mixture.popularity["time"].device)


def _popularity_logits(mixture: Mixture, component: str, times: torch.Tensor) -> torch.Tensor:
    """Return popularity's contribution to all items' logits as of some times, int64 [T]: float32 [T, N], on the CPU."""
    weights = _popularity_weights(mixture, component)
    logits = popularity.weighted_features(mixture.popularity, times.to(weights.device), [weights])[0]
    for name in _log_mixture_estimators(mixture):
        logits += mixture.calibration[component][name] * mixture.popularity["prior"]
    return logits.cpu()


def _embed_items(mixture: Mixture, n_source: int, n_items: int, on_progress: Callable[[], None]) -> torch.Tensor:
    """Embed items so that the distance of two is the root mean square difference of their logits: float32 [N, r].

    The mean is over times with equally many target events between them, and over histories of one source item each.
    """
    weights = mixture.calibration["mixture"]
    n_histories = min(n_source, _HISTORIES)
    items = torch.linspace(1, n_source, n_histories, dtype=torch.float64).round().long()[:, None]
    device, end = mixture.popularity["time"].device, mixture.popularity["end"].expand(n_histories)
    batch = ContextBatch(items.to(device), torch.zeros(n_histories, 1, device=device), end, end, torch.full_like(end, n_items))
    # Tables of item columns, each with a matrix that maps them to coordinates: popularity at each time, and item vectors times the root of
    # the users' second moment.
    time = torch.cat([mixture.popularity["time"], end[:1]])
    times = time[torch.arange(1, _TIMES + 1, device=device) * len(time) // _TIMES - 1]
    popularity_logits = torch.empty(_TIMES, n_items)
    for row, moment in enumerate(times.split(1)):
        popularity_logits[row] = _popularity_logits(mixture, "mixture", moment)[0]
        on_progress()
    tables = [(popularity_logits.T, torch.eye(_TIMES) / _TIMES**0.5)]
    for name in _product_estimators(mixture):
        estimator, parameters = mixture.estimators[name], mixture.parameters[name]
        if weights[name] != 0 and not has_log_score(estimator):
            users = estimator.user(parameters, batch).cpu()
            variance, axes = torch.linalg.eigh(users.T @ users / n_histories)
            tables.append((estimator.vectors(parameters).cpu(), (weights[name] * axes * variance.clamp(min=0).sqrt()).float()))
    sampled = torch.linspace(0, n_items - 1, min(n_items, _SAMPLED_ITEMS), dtype=torch.float64).round().long()
    sample = torch.cat([columns[sampled].float() @ scale for columns, scale in tables], 1).double()
    sample -= sample.mean(0)
    basis = torch.linalg.eigh(sample.T @ sample)[1][:, -_DIMENSIONS:].float()
    coordinates, begin = torch.zeros(n_items, basis.shape[1]), 0
    for columns, scale in tables:
        coordinates.addmm_(columns.float(), scale @ basis[begin : begin + scale.shape[1]])
        begin += scale.shape[1]
        on_progress()
    return coordinates


def _split_by_principal_axis(
    items: torch.Tensor, coordinates: torch.Tensor, max_size: int, on_progress: Callable[[], None]
) -> Iterator[torch.Tensor]:
    """Split items recursively along their first principal component; yield blocks of ``max_size`` items, the last one maybe smaller.

    Args:
        items: int64 [n]. Items to split.
        coordinates: float32 [N, r]. Coordinates of all items.
        max_size: Items per block.
        on_progress: Called after each split.
    """
    if len(items) <= max_size:
        yield items
        return
    centered = coordinates[items]
    centered = centered - centered.mean(0)
    direction = torch.ones(coordinates.shape[1]) / coordinates.shape[1] ** 0.5
    for _ in range(_POWER_STEPS):
        product = centered.T @ (centered @ direction)
        direction = torch.nn.functional.normalize(product, dim=0) if product.norm() > 0 else direction
    order = (centered @ direction).argsort(stable=True)
    half = -(-len(items) // max_size) // 2 * max_size
    del centered
    on_progress()
    yield from _split_by_principal_axis(items[order[:half]], coordinates, max_size, on_progress)
    yield from _split_by_principal_axis(items[order[half:]], coordinates, max_size, on_progress)
