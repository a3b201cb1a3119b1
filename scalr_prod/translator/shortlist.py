# SPDX-License-Identifier: Apache-2.0
"""Shortlists: in a catalogue of millions of items, score only those that a context is likely to choose.

Items lie in blocks of alike ones: a tree halves them, again and again, along the direction in which their logits differ most over times
and histories. What a block is worth to a context,

    log Σ_i e^(popularity of i / T) + Σ_e c_e s_e(mean vector of the block | context) / T,

at the temperature T of the draws, is estimated from its mean vectors and from popularity at the beginning of the week, so that it costs a
product with as many rows as there are blocks. The blocks that are worth most, until they hold as many items as are asked for, are the
shortlist; no other item is drawn. P and the prior of what is drawn are those of the whole catalogue but for the estimate: over the list
they sum to the share that its blocks have of what all blocks are worth (T = 1). What the lists of a run leave out is measured beside the
whole catalogue (`generation.partition`). Estimators that are neither a product nor the logarithm of one do not say what is on the list.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ConsumedItems
from scalr_prod.translator.estimators import has_log_score, has_product_score, popularity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.sample_request import SampleRequest

__all__ = ["ShortlistIndex", "ShortlistSelection"]

#: Blocks that a catalogue is cut into, about; limits of a block's size.
_BLOCKS: Final = 1024
_SMALLEST, _LARGEST = 64, 2048
#: Times and histories over which logits are compared.
_TIMES, _HISTORIES = 16, 1024
#: Directions that the tree looks at, the items that they are worked out of, and steps of the power method.
_DIRECTIONS, _SAMPLE, _STEPS = 32, 20_000, 6
_WEEK_US: Final = 7 * 86_400_000_000
#: Worths are told apart in these steps: what is equal but for rounding stays equal, whatever the batch.
_STEP: Final = 2.0**-30
#: Bytes of what is kept of weeks: those that were asked for last.
_KEPT: Final = 2**28


@dataclass(frozen=True)
class ShortlistSelection:
    """The shortlists of B contexts.

    Attributes:
        blocks: bool [B, blocks]. Which are on the list.
        catalogue_share: Member → float64 [B], the estimated share of its P on the list; for the requested component and popularity.
    """

    blocks: torch.Tensor
    catalogue_share: dict[str, torch.Tensor]


@dataclass(frozen=True)
class ShortlistIndex:
    """Blocks of items, and which of them a context's shortlist holds.

    Attributes:
        item_order: int64 [N], on the CPU, as all that follows. Items by block, and ascending within one.
        block_size: Items of a block; the last one may hold fewer.
        first_seen: int64 [N], ascending, microseconds.
        block_of_item: int32 [N]. Which block each item is in.
        on_progress: Called now and then, while what a first request needs is worked out.
    """

    item_order: torch.Tensor
    block_size: int
    first_seen: torch.Tensor
    block_of_item: torch.Tensor
    on_progress: Callable[[], None] = lambda: None
    _means: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _masses: OrderedDict[tuple[Any, ...], torch.Tensor] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    @classmethod
    def from_mixture(
        cls, mixture: Mixture, n_source: int, first_seen: torch.Tensor, on_progress: Callable[[], None] = lambda: None
    ) -> ShortlistIndex:
        """Cut a catalogue into blocks; some seconds for each million items.

        Args:
            mixture: The parameter set that says which items are alike; to those of other folds much the same ones are.
            n_source: Source items.
            first_seen: int64 [N], ascending: when the items were first seen, microseconds.
            on_progress: See the attribute.
        """
        n = len(first_seen)
        size = min(max(2 ** round(math.log2(max(n / _BLOCKS, 1))), _SMALLEST), _LARGEST)
        order, at = torch.empty(n, dtype=torch.int64), 0
        for block in _halved(torch.arange(n), _coordinates(mixture, n_source, n, on_progress), size, on_progress):
            order[at : at + len(block)] = block.sort().values
            at += len(block)
        of_each = torch.empty(n, dtype=torch.int32)
        of_each[order] = (torch.arange(n) // size).int()
        return cls(order, size, first_seen.cpu(), of_each, on_progress)

    def warm_up(self, mixtures: Iterable[Mixture]) -> None:
        """Work out the blocks' mean vectors of some parameter sets."""
        for mixture in mixtures:
            self._of(mixture)

    @property
    def n_blocks(self) -> int:
        """How many there are."""
        return -(-len(self.item_order) // self.block_size)

    def select(self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest) -> ShortlistSelection:
        """Each context's shortlist: a function of the context alone, whatever the batch that it travels in and the execution that asks.

        Args:
            mixture: The parameter set.
            encoded: Of B contexts.
            request: Whose distribution at which temperature; ``shortlist``: items on a list that can be proposed, at least. Whole blocks
                are taken, until they hold as many.
        """
        eligible = self._eligible(encoded.batch.eligible.cpu())

        def worth(member: str, temperature: float) -> torch.Tensor:
            popular = self._by_popularity(mixture, member, encoded.batch.time.cpu(), eligible, temperature)
            return popular + self._scores(mixture, encoded, member) / temperature

        drawn = worth(request.component, request.temperature)
        best = (drawn / _STEP).round().argsort(dim=1, descending=True, stable=True)
        held = eligible.gather(1, best)
        # What is excluded may lie in the same blocks, and is not counted.
        count = (request.shortlist or 0) + _excluded(encoded.batch)[:, None]
        wanted = (held.cumsum(1) - held < count) & (held > 0)
        blocks = torch.zeros(drawn.shape, dtype=torch.bool).scatter_(1, best, wanted)
        known = {request.component: drawn} if request.temperature == 1 else {}
        return ShortlistSelection(
            blocks, {name: _share(known[name] if name in known else worth(name, 1.0), blocks) for name in request.components}
        )

    def restrict(
        self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest
    ) -> tuple[EncodedBatch, dict[str, torch.Tensor]]:
        """The same contexts, to which all items but those of their lists are excluded; and `ShortlistSelection.catalogue_share`."""
        lists = self.select(mixture, encoded, request)
        left_out = ~lists.blocks[:, self.block_of_item.long()]
        batch = replace(encoded.batch, off_shortlist=left_out.to(encoded.batch.time.device))
        return replace(encoded, batch=batch), lists.catalogue_share

    def _scores(self, mixture: Mixture, summary: EncodedBatch, member: str) -> torch.Tensor:
        """Weighted scores of the blocks' mean vectors: float64 [B, blocks]."""
        found = torch.zeros(len(summary.batch.time), self.n_blocks, dtype=torch.float64)
        for name, mean in self._of(mixture).items():
            weight = mixture.calibration[member][name]
            if weight != 0:
                score = summary.user_vectors[name].cpu() @ mean.T
                found += weight * (score.clamp(min=1e-300).log() if has_log_score(mixture.estimators[name]) else score)
        return found

    def _eligible(self, until: torch.Tensor) -> torch.Tensor:
        """How many of each block's items are below a number, int64 [B]: int64 [B, blocks]."""
        distinct, row = torch.unique(until, return_inverse=True)
        found = torch.zeros(len(distinct), self.n_blocks, dtype=torch.int64)
        begin = 0
        for number, end in enumerate(distinct.tolist()):
            found[number] = torch.bincount(self.block_of_item[begin:end], minlength=self.n_blocks)
            begin = end
        return found.cumsum(0)[row]

    def _of(self, mixture: Mixture) -> dict[str, torch.Tensor]:
        """Mean vectors of the blocks by estimator: float64 [blocks, d]."""
        found = {}
        with self._lock:
            for name in _products(mixture):
                # By tensors that the module holds, and sets may share: memory of what is made of them may be another's by now.
                key = name, *map(id, mixture.parameters[name].values())
                if key not in self._means:
                    here = mixture.estimators[name].vectors(mixture.parameters[name]).cpu()
                    parts = self.item_order.split(self.block_size)
                    self._means[key] = torch.stack([here[items].mean(0, dtype=torch.float64) for items in parts])
                    self.on_progress()
                found[name] = self._means[key]
        return found

    def _by_popularity(
        self, mixture: Mixture, member: str, time: torch.Tensor, eligible: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """log Σ e^(popularity / T) of what can be proposed, by block: float64 [B, blocks], -infinity where that is nothing.

        Popularity is that of the beginning of the week. Items that were first seen after it count as ones that nobody had chosen.
        """
        weeks, row = torch.unique(time.div(_WEEK_US, rounding_mode="floor") * _WEEK_US, return_inverse=True)
        known = self._by_week(mixture, member, weeks, temperature)[row]
        new = eligible - self._eligible(torch.searchsorted(self.first_seen, weeks))[row]
        return torch.logaddexp(known, new.double().log() + _of_nothing(mixture, member) / temperature)

    def _by_week(self, mixture: Mixture, member: str, weeks: torch.Tensor, temperature: float) -> torch.Tensor:
        """log Σ e^(popularity / T) of each block's items that were seen before some instants, as of these: float64 [weeks, blocks]."""
        prior = sum(mixture.calibration[member][name] for name in _with_prior(mixture))
        of = id(mixture.popularity["prior" if prior else "time"]), prior, temperature, *_weights(mixture, member).tolist()
        with self._lock:
            for moment in weeks.split(1):  # one at a time: a product with more would round otherwise
                key = (*of, int(moment))
                if key not in self._masses:
                    self.on_progress()
                    logits = _popular(mixture, member, moment)[0]
                    logits[int(torch.searchsorted(self.first_seen, moment)) :] = -torch.inf
                    by_block = torch.full((self.n_blocks * self.block_size,), -torch.inf, dtype=torch.float64)
                    by_block[: len(self.item_order)] = logits[self.item_order].double() / temperature
                    self._masses[key] = by_block.view(self.n_blocks, self.block_size).logsumexp(1)
                self._masses.move_to_end(key)
            found = torch.stack([self._masses[*of, moment] for moment in weeks.tolist()])
            while len(self._masses) * self.n_blocks * found.itemsize > _KEPT:
                self._masses.popitem(last=False)
        return found


def _excluded(batch: ContextBatch) -> torch.Tensor:
    """How many items each context excludes, at most: int64 [B]."""
    exclude = batch.exclude.to_matrix() if isinstance(batch.exclude, ConsumedItems) else batch.exclude
    if exclude is None:
        return torch.zeros(len(batch.time), dtype=torch.int64)
    return torch.from_numpy((exclude >= 0).sum(1))


def _share(worth: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The share that some blocks have of what all are worth: float64 [B]; 1 where nothing is worth anything."""
    parts = (worth - worth.amax(1, keepdim=True).clamp(min=torch.finfo(worth.dtype).min)).exp()
    whole = parts.sum(1)
    return torch.where(whole > 0, (parts * blocks).sum(1) / whole, 1.0)


def _of_nothing(mixture: Mixture, member: str) -> float:
    """What popularity adds to the logit of an item that nobody has chosen."""
    counts = {
        name: torch.tensor(math.log(added), dtype=torch.float64) for name, (_, added) in popularity.DECAYED_COUNTS.items()
    }
    features = torch.stack([popularity.feature_values(counts, name) for name in popularity.FEATURES])
    prior = sum(mixture.calibration[member][name] for name in _with_prior(mixture))
    return float(_weights(mixture, member).cpu() @ features) + (
        prior * float(mixture.popularity["prior"].min()) if prior else 0.0
    )


def _products(mixture: Mixture) -> list[str]:
    """Estimators whose items have vectors."""
    return [name for name, estimator in mixture.estimators.items() if has_product_score(estimator)]


def _coordinates(mixture: Mixture, n_source: int, n: int, alive: Callable[[], None]) -> torch.Tensor:
    """Where items stand, so that two are as far apart as their logits differ over times and histories: float32 [N, r].

    The times have as many target events between each two, the histories are of one source item each.
    """
    weights = mixture.calibration["mixture"]
    count = min(n_source, _HISTORIES)
    items = torch.linspace(1, n_source, count, dtype=torch.float64).round().long()[:, None]
    device, end = mixture.popularity["time"].device, mixture.popularity["end"].expand(count)
    batch = ContextBatch(items.to(device), torch.zeros(count, 1, device=device), end, end, torch.full_like(end, n))
    # Each column's part in the distance: columns of popularity, and vectors times the square root of the users' second moment.
    time = torch.cat([mixture.popularity["time"], end[:1]])
    moments = time[torch.arange(1, _TIMES + 1, device=device) * len(time) // _TIMES - 1]
    popular = torch.empty(_TIMES, n)
    for row, moment in enumerate(moments.split(1)):
        popular[row] = _popular(mixture, "mixture", moment)[0]
        alive()
    parts = [(popular.T, torch.eye(_TIMES) / _TIMES**0.5)]
    for name in _products(mixture):
        estimator, parameters = mixture.estimators[name], mixture.parameters[name]
        if weights[name] != 0 and not has_log_score(estimator):
            user = estimator.user(parameters, batch).cpu()
            size, axes = torch.linalg.eigh(user.T @ user / count)
            parts.append((estimator.vectors(parameters).cpu(), (weights[name] * axes * size.clamp(min=0).sqrt()).float()))
    some = torch.linspace(0, n - 1, min(n, _SAMPLE), dtype=torch.float64).round().long()
    sample = torch.cat([columns[some].float() @ scale for columns, scale in parts], 1).double()
    sample -= sample.mean(0)
    basis = torch.linalg.eigh(sample.T @ sample)[1][:, -_DIRECTIONS:].float()
    found, begin = torch.zeros(n, basis.shape[1]), 0
    for columns, scale in parts:
        found.addmm_(columns.float(), scale @ basis[begin : begin + scale.shape[1]])
        begin += scale.shape[1]
        alive()
    return found


def _popular(mixture: Mixture, member: str, moments: torch.Tensor) -> torch.Tensor:
    """What popularity adds to the items' logits at some times, whatever the history: float32 [T, N], on the CPU."""
    weights = _weights(mixture, member)
    logits = popularity.weighted_features(mixture.popularity, moments.to(weights.device), [weights])[0]
    for name in _with_prior(mixture):
        logits += mixture.calibration[member][name] * mixture.popularity["prior"]
    return logits.cpu()


def _with_prior(mixture: Mixture) -> list[str]:
    """Estimators whose score is a logarithm of a mixture with the prior, which is most of it for most items."""
    return [
        name for name, estimator in mixture.estimators.items() if has_log_score(estimator) and not has_product_score(estimator)
    ]


def _weights(mixture: Mixture, member: str) -> torch.Tensor:
    """A member's weights of popularity's features, without tastes: float64 [F]."""
    weights = [mixture.calibration[member][name] for name in popularity.FEATURES]
    return torch.tensor(weights, dtype=torch.float64, device=mixture.popularity["time"].device)


def _halved(items: torch.Tensor, x: torch.Tensor, most: int, alive: Callable[[], None]) -> Iterator[torch.Tensor]:
    """Parts of so many items, the last of fewer: each halving is along the first principal component of what is halved."""
    if len(items) <= most:
        yield items
        return
    here = x[items]
    here = here - here.mean(0)
    direction = torch.ones(x.shape[1]) / x.shape[1] ** 0.5
    for _ in range(_STEPS):
        moved = here.T @ (here @ direction)
        direction = torch.nn.functional.normalize(moved, dim=0) if moved.norm() > 0 else direction
    order = (here @ direction).argsort(stable=True)
    half = -(-len(items) // most) // 2 * most
    del here
    alive()
    yield from _halved(items[order[:half]], x, most, alive)
    yield from _halved(items[order[half:]], x, most, alive)
