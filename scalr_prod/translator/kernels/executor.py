# SPDX-License-Identifier: Apache-2.0
"""CPU executor of sampling and scoring: one pass over the items, block by block, for a batch of contexts.

BLAS computes the dot products of a block, `item_block` all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator import counter_rng
from scalr_prod.translator.data.contexts import NO_ITEM
from scalr_prod.translator.estimators import frequency, has_log_score, has_product_score, popularity
from scalr_prod.translator.kernels import item_block
from scalr_prod.translator.sampling import (
    EXTRA_CANDIDATES,
    CandidateScores,
    Draws,
    float64_order,
    is_near_min_lift,
    rescale_to_catalogue,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.requests import SampleRequest


#: Items per block: a block of logits fits the processor's cache.
ITEMS_PER_BLOCK: Final = 2048
#: Contexts per pass: each needs a block of logits.
MAX_CONTEXTS: Final = 256
#: Maximum draws per context; the reference, which sorts, handles more.
MAX_DRAWS: Final = 256
#: Minimum fraction of the prior's mass that must remain after subtracting excluded items.
_MIN_REMAINING: Final = 2.0**-4
#: Rounding error of a key in float64, besides that of its logit, relative to the key.
_KEY_ROUNDING: Final = 2.0**-48


@dataclass(frozen=True)
class BlockPassResult:
    """Result of a pass for R contexts.

    Attributes:
        keys: float64 [R, K], descending. Best keys; -infinity if there are fewer items.
        items: int32 [R, K]. Positions of their items.
        logits: float32 [R, K]. Their logits.
        priors: float32 [R, K]. Their logits under the prior.
        peak: float32 [R]. Largest logit.
        mass: float64 [R]. Sum of e^(logit - peak).
        prior_peak: float32 [R]. Largest logit under the prior.
        prior_mass: float64 [R]. Sum of e^(logit - prior_peak) under the prior, without excluded items.
        prior_gross: float64 [R]. The same with excluded items.
    """

    keys: NDArray[np.float64]
    items: NDArray[np.int32]
    logits: NDArray[np.float32]
    priors: NDArray[np.float32]
    peak: NDArray[np.float32]
    mass: NDArray[np.float64]
    prior_peak: NDArray[np.float32]
    prior_mass: NDArray[np.float64]
    prior_gross: NDArray[np.float64]

    @classmethod
    def empty(cls, rows: int, best: int) -> BlockPassResult:
        """Make the result of no block: ``rows`` contexts, ``best`` draws each."""
        return cls(
            keys=np.full((rows, best), -np.inf),
            items=np.zeros((rows, best), np.int32),
            logits=np.full((rows, best), -np.inf, np.float32),
            priors=np.full((rows, best), -np.inf, np.float32),
            peak=np.full(rows, -np.inf, np.float32),
            mass=np.zeros(rows),
            prior_peak=np.full(rows, -np.inf, np.float32),
            prior_mass=np.zeros(rows),
            prior_gross=np.zeros(rows),
        )

    def probabilities(self, logits: NDArray[np.float32], priors: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute P and the prior P of logits [R, C]: float32 within [0, 1]; 0 where the logit is -infinity."""
        # Inexact rows are recomputed later; the gross mass keeps them within [0, 1] until then.
        prior_mass = np.where(self.is_prior_inexact, self.prior_gross, self.prior_mass)
        return _normalise(logits, self.peak, self.mass), _normalise(priors, self.prior_peak, prior_mass)

    @property
    def is_prior_inexact(self) -> NDArray[np.bool_]:
        """Return whether so much of the prior's mass is excluded that rounding makes the rest inexact: bool [R]."""
        return self.prior_mass < _MIN_REMAINING * self.prior_gross


class BlockVisit(NamedTuple):
    """A block of items and the contexts to process in it.

    Attributes:
        block: Position of the first item, number of items, number of the block.
        items: Index of the items in item vectors.
        rows: int64 [r]. Rows of the contexts; None: all.
        eligible: int64 [R]. End position of each context's eligible items; 0 for contexts to skip.
    """

    block: tuple[int, int, int]
    items: slice | torch.Tensor
    rows: torch.Tensor | None
    eligible: NDArray[np.int64]


class FusedExecutor:
    """CPU executor of one module.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
        size: Items per block; None: `ITEMS_PER_BLOCK`.
    """

    def __init__(self, popularity_tensors: dict[str, torch.Tensor], item_words: torch.Tensor, size: int | None = None) -> None:
        self._popularity = {name: popularity_tensors[name].numpy() for name in popularity.TENSOR_NAMES}
        self._item_words = item_words.numpy().view(np.uint32)
        self._n_target, self._size = len(item_words), size or ITEMS_PER_BLOCK
        item, every = self._popularity["item"], int(self._popularity["every"][0])
        marks, blocks = len(self._popularity["since"]), -(-self._n_target // self._size)
        # Events by snapshot, block of items and time.
        where = np.minimum(np.arange(len(item)) // every, marks - 1) * blocks + item // self._size
        self._order = np.argsort(where, kind="stable").astype(np.int32)
        begin = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=marks * blocks))])
        self._offset = begin[np.arange(marks)[:, None] * blocks + np.arange(blocks + 1)]
        self._half_lives = np.array([days * DAY_US for days, _ in popularity.DECAYED_COUNTS.values()])
        self._added = np.array([added for _, added in popularity.DECAYED_COUNTS.values()], np.float32)
        self._entries: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}

    @property
    def max_rows(self) -> int:
        """Return the best number of contexts per call."""
        return MAX_CONTEXTS

    @staticmethod
    def supports(mixture: Mixture, component: str, draws: int = 0) -> bool:
        """Return whether the executor supports the component's estimators and the number of draws."""
        used = [estimator for name, estimator in mixture.estimators.items() if mixture.calibration[component][name] != 0]
        return draws <= MAX_DRAWS and all(has_product_score(estimator) or estimator is frequency for estimator in used)

    def draw(self, request: SampleRequest, mixture: Mixture, contexts: Contexts, batch: ContextBatch) -> Draws:
        """Draw as `sampling.sample_topk` does in float32; the batch must be in the order of ``event_time``."""
        encoded = mixture.encode(batch, request.components)
        best = min(request.k + 1 + EXTRA_CANDIDATES, self._n_target)
        visits, share = self._visits(mixture, encoded, request)
        result = self._run_pass(
            request.temperature, best, mixture, encoded, request.component, contexts, _no_candidates(len(contexts)), visits
        )
        keys, items = torch.from_numpy(result.keys), torch.from_numpy(self._items(result.items)).long()
        words = counter_rng.key_words(contexts.noise_key)
        order, needs_float64 = self._sort_exactly(request, mixture, encoded, (keys, items), words)
        valid, items = (keys > -torch.inf).gather(1, order), items.gather(1, order)
        p, q = (torch.where(valid, x.gather(1, order), 0) for x in result.probabilities(result.logits, result.priors))
        p, q = rescale_to_catalogue(request, share, p, q)
        needs_float64 |= valid.any(1) & torch.from_numpy(result.is_prior_inexact)
        needs_float64 |= is_near_min_lift(request, mixture, encoded, valid, items, p, q)
        return Draws(torch.where(valid & (p >= request.min_lift * q), items, NO_ITEM), p, q, needs_float64)

    def score(
        self, mixture: Mixture, contexts: Contexts, batch: ContextBatch, candidates: NDArray[np.int32], component: str
    ) -> CandidateScores:
        """Compute P and the prior P of candidates, int32 [B, C]. The batch must be in the order of ``event_time``.

        A result is inexact if much of the prior's mass is excluded.
        """
        encoded = mixture.encode(batch, tuple(dict.fromkeys(("popularity", component))))
        outputs = (np.ascontiguousarray(self._positions(candidates)), *np.full((2, *candidates.shape), -np.inf, np.float32))
        visits, _ = self._visits(mixture, encoded, None)
        result = self._run_pass(1.0, 0, mixture, encoded, component, contexts, outputs, visits)
        p, q = result.probabilities(*outputs[1:])
        valid = torch.from_numpy(outputs[1]) > -torch.inf
        p, q = (torch.where(valid, x, 0) for x in (p, q))
        return CandidateScores(p.numpy(), q.numpy(), result.is_prior_inexact & valid.any(1).numpy())

    def _sort_exactly(
        self,
        request: SampleRequest,
        mixture: Mixture,
        encoded: EncodedBatch,
        ranking: tuple[torch.Tensor, torch.Tensor],
        words: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sort the k best candidates in float64 where rounding may change their order.

        Returns:
            int64 [B, k]: positions of the k best in ``ranking``; bool [B]: see `Draws.needs_float64`.
        """
        keys, items = ranking
        any_bound = mixture.rounding_bound(encoded, request.component)
        order = torch.arange(keys.shape[1]).repeat(len(keys), 1)
        close, beyond = self._mark_close(request, keys, any_bound, any_bound[:, 0])
        rows = (close | beyond).nonzero()[:, 0]
        if len(rows):  # tighter: with bounds of the candidates instead of a bound for all items
            item_bounds = mixture.rounding_bound(encoded.take(rows), request.component, items[rows])
            close[rows], beyond[rows] = self._mark_close(request, keys[rows], item_bounds, any_bound[rows, 0])
            rows = close.nonzero()[:, 0]
        if len(rows):
            valid = keys[rows] > -torch.inf
            order[rows] = float64_order(request, mixture, encoded, rows, (items[rows], valid), words, self._words())
        return order[:, : request.k], beyond

    def _mark_close(
        self, request: SampleRequest, keys: torch.Tensor, bounds: torch.Tensor, any_bound: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where rounding may decide the order of the k best keys, and where it may decide which items they are: bool [B] each.

        Args:
            request: Parameters of the draw.
            keys: float64 [B, K], descending; -infinity: no item.
            bounds: [B, K] or [B, 1]. Bound of the error of their logits.
            any_bound: [B]. Bound of the error of all other items' logits.
        """
        valid, k = keys > -torch.inf, min(request.k, keys.shape[1])
        error = 1.01 * bounds / request.temperature + _KEY_ROUNDING * (1 + keys.abs())
        lower, upper = (torch.where(valid, limit, -torch.inf) for limit in (keys - error, keys + error))
        reach = upper.flip(1).cummax(1).values.flip(1)  # largest upper bound of this key and all that follow
        close = (valid[:, 1:] & (reach[:, 1:] >= lower[:, :-1]))[:, :k].any(1)
        beyond_upper = keys[:, -1] + 1.01 * any_bound / request.temperature + _KEY_ROUNDING * (1 + keys[:, -1].abs())
        beyond = valid[:, -1] & (beyond_upper >= lower[:, :k].amin(1)) & (keys.shape[1] < self._n_target)
        return close, beyond

    def _run_pass(
        self,
        temperature: float,
        best: int,
        mixture: Mixture,
        encoded: EncodedBatch,
        component: str,
        contexts: Contexts,
        candidates: tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]],
        visits: Iterable[BlockVisit],
    ) -> BlockPassResult:
        batch, n_rows = encoded.batch, len(contexts)
        result = BlockPassResult.empty(n_rows, best)
        time = np.minimum(batch.time.numpy(), self._popularity["end"])
        position = np.searchsorted(self._popularity["time"], time)
        snapshot = np.minimum(position // self._popularity["every"], len(self._popularity["since"]) - 1)
        exclude = np.sort(self._positions(contexts.exclude_matrix()), axis=1)
        low, high = (word[:, 0].numpy().view(np.uint32) for word in counter_rng.key_words(contexts.noise_key))
        weights = encoded.feature_weights[component].float().numpy()
        # Always copy: a read-only array is another type for numba, which would compile the kernel again.
        own_weights = np.array(np.broadcast_to(weights, (n_rows, weights.shape[-1])), order="C")
        c = mixture.calibration[component]
        used = [name for name in mixture.estimators if c[name] != 0]
        dense = [
            ((c[name] * encoded.user_vectors[name]).float(), mixture.estimators[name].vectors(mixture.parameters[name]))
            for name in used
            if name in encoded.user_vectors and not has_log_score(mixture.estimators[name])
        ]
        logarithms = [
            (c[name], encoded.user_vectors[name].float(), mixture.estimators[name].vectors(mixture.parameters[name]))
            for name in used
            if name in encoded.user_vectors and has_log_score(mixture.estimators[name])
        ]
        excluded = np.zeros(n_rows, np.int64)
        arguments = (
            (
                self._popularity["since"],
                self._half_lives,
                self._added,
                *(self._popularity[f"{name}_marked"] for name in popularity.COUNT_NAMES),
            ),
            (
                self._popularity["item"],
                self._popularity["time"],
                *(self._popularity[name] for name in popularity.COUNT_NAMES),
                self._order,
                self._offset,
            ),
            (own_weights, encoded.feature_weights["popularity"].float().numpy()),
            self._frequency_entries(mixture, component, batch),
            (low, high, self._item_words),
            (float(temperature), *candidates),
            tuple(vars(result).values()),
        )
        logits, products, selected_logits = torch.empty(3, n_rows, self._size)
        buffers: dict[int, torch.Tensor] = {}
        for visit in visits:
            (_, count, _), items, rows = visit.block, visit.items, visit.rows
            all_rows = rows is None
            block_logits = logits if rows is None else selected_logits[: len(rows)]
            valid_logits = block_logits[:, :count]
            for users, vectors in dense[:1]:
                torch.mm(users if all_rows else users[rows], _select(vectors, items, buffers).T, out=valid_logits)
            for users, vectors in dense[1:]:
                valid_logits.addmm_(users if all_rows else users[rows], _select(vectors, items, buffers).T)
            if not dense:
                block_logits.zero_()
            for weight, users, vectors in logarithms:
                block_products = products[: len(block_logits)]
                torch.mm(users if all_rows else users[rows], _select(vectors, items, buffers).T, out=block_products[:, :count])
                item_block.add_log_products(block_logits.numpy(), block_products.numpy(), count, np.float32(weight))
            if not all_rows:
                logits[rows, :count] = valid_logits
            item_block.score_block(
                visit.block, logits.numpy(), (time, position, snapshot, visit.eligible, exclude, excluded), *arguments
            )
        return result

    def _visits(
        self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest | None
    ) -> tuple[Iterator[BlockVisit], dict[str, torch.Tensor]]:
        """Return the blocks to process, in order, and `shortlist.ShortlistSelection.catalogue_share`."""
        del mixture, request
        return self._visit_all(encoded.batch.eligible.numpy()), {}

    def _visit_all(self, eligible: NDArray[np.int64]) -> Iterator[BlockVisit]:
        last = int(eligible.max(initial=0))
        for number, first in enumerate(range(0, last, self._size)):
            count = min(self._size, last - first)
            yield BlockVisit((first, count, number), slice(first, first + count), None, eligible)

    def _positions(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the positions of items, any shape; `NO_ITEM` stays."""
        return items

    def _items(self, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the items at positions, any shape."""
        return positions

    def _by_position(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of items, [N], in the order of positions."""
        return values

    def _words(self) -> torch.Tensor:
        """Return the items' hash words in the order of items: int32 [N]."""
        return torch.from_numpy(self._item_words.view(np.int32))

    def _frequency_entries(self, mixture: Mixture, component: str, batch: ContextBatch) -> tuple[Any, ...]:
        """Return the argument ``frequency`` of `item_block.score_block`: the estimator's table, and each context's entries in it."""
        weight = mixture.calibration[component].get("frequency", 0.0)
        if weight == 0:
            no_entries = np.zeros((len(batch.time), 0), np.int64)
            empty = np.zeros(0, np.float32)
            return (
                empty,
                empty,
                np.float32(0),
                np.zeros(0, np.int32),
                empty,
                no_entries,
                no_entries,
                no_entries.astype(np.float32),
            )
        parameters = mixture.parameters["frequency"]
        history, history_weight, rest = frequency.history_weights(parameters, batch, torch.float32)
        start = parameters["start"].numpy()
        item, share = self._sorted_entries(parameters)
        items = np.ascontiguousarray(history.numpy())
        prior = self._by_position(mixture.popularity["prior"].exp().numpy())
        entry_weight = np.ascontiguousarray(history_weight.numpy())
        return rest[:, 0].numpy(), prior, np.float32(weight), item, share, start[items], start[items + 1], entry_weight

    def _sorted_entries(self, parameters: dict[str, torch.Tensor]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the table's entries, sorted by position of the target item within each source item; cached."""
        key = parameters["item"].data_ptr()
        if key not in self._entries:
            start, item = parameters["start"].numpy(), self._positions(parameters["item"].numpy())
            order = np.lexsort((item, np.repeat(np.arange(len(start) - 1), np.diff(start))))
            self._entries[key] = item[order], parameters["share"].numpy()[order]
        return self._entries[key]


def _select(vectors: torch.Tensor, items: slice | torch.Tensor, buffers: dict[int, torch.Tensor]) -> torch.Tensor:
    """Select item vectors: a view for a slice, else a copy in a buffer that the next call with as many columns reuses."""
    if isinstance(items, slice):
        return vectors[items]
    columns = vectors.shape[1]
    if columns not in buffers or len(buffers[columns]) < len(items):  # reused: allocating new pages costs more than the copy
        buffers[columns] = torch.empty(len(items), columns)
    return torch.index_select(vectors, 0, items, out=buffers[columns][: len(items)])


def _normalise(logits: NDArray[np.float32], peak: NDArray[np.float32], mass: NDArray[np.float64]) -> torch.Tensor:
    """Compute e^(logit - peak) / mass of logits [R, C] that are at most the peak: float32; 0 in rows without mass."""
    has_mass = mass > 0
    offset = np.where(has_mass, peak, 0).astype(np.float64)[:, None]
    shares = np.exp(np.where(has_mass[:, None], logits, -np.inf) - offset) / np.where(has_mass, mass, 1)[:, None]
    return torch.from_numpy(shares.astype(np.float32))


def _no_candidates(rows: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    empty = np.empty((rows, 0), np.float32)
    return empty.astype(np.int32), empty, empty
