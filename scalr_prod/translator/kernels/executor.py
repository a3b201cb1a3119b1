# SPDX-License-Identifier: Apache-2.0
"""CPU execution of sampling and scoring: one pass over blocks of items per group of contexts, by BLAS and `item_block`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from scalr_prod.translator import counter_rng
from scalr_prod.translator.data.contexts import NO_ITEM
from scalr_prod.translator.estimators import frequency, has_log_score, has_product_score, popularity
from scalr_prod.translator.kernels import encoders, item_block
from scalr_prod.translator.mixture import EncoderBackend
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
    from scalr_prod.translator.sample_request import SampleRequest

__all__ = ["MAX_DRAWS", "BlockVisit", "FusedExecutor"]

#: Items per block: a block of logits fits the processor's cache.
ITEMS_PER_BLOCK: Final = 2048
#: Contexts at a time: each needs a block of logits.
MAX_CONTEXTS: Final = 256
#: Maximum draws per context; the reference, which sorts, handles more.
MAX_DRAWS: Final = 256
#: Minimum fraction of the prior's mass that must remain after subtracting excluded items.
_MIN_REMAINING: Final = 2.0**-4
#: Rounding error of a key in float64, besides that of its logit, relative to the key.
_KEY_ROUNDING: Final = 2.0**-48
#: Compiled encoders of histories.
_COMPILED: Final = EncoderBackend(encoders.compute_traits, encoders.USER_ENCODERS)
_US_A_DAY: Final = 86_400_000_000.0


@dataclass(frozen=True)
class BlockPassResult:
    """Result of a pass for R contexts: the K best keys, the normalisers, and the logits of given candidates."""

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
        # Cancelled rows are recomputed later; the gross mass keeps them within [0, 1] until then.
        prior_mass = np.where(self.is_prior_inexact, self.prior_gross, self.prior_mass)
        return _normalise(logits, self.peak, self.mass), _normalise(priors, self.prior_peak, prior_mass)

    @property
    def is_prior_inexact(self) -> NDArray[np.bool_]:
        """Return where so much of the prior's mass is excluded that the rest is inexact: bool [R]."""
        return self.prior_mass < _MIN_REMAINING * self.prior_gross


class BlockVisit(NamedTuple):
    """A block of items and the contexts to process in it.

    Attributes:
        block: Position of the first item, number of items, number of the block.
        items: The items, as an index.
        rows: int64 [r]. The contexts; None: all.
        eligible: int64 [R]. For each context, the end position of eligible items; 0 for contexts to skip.
    """

    block: tuple[int, int, int]
    items: slice | torch.Tensor
    rows: torch.Tensor | None
    eligible: NDArray[np.int64]


class FusedExecutor:
    """CPU executor of one module: samples and scores with its tensors.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        numbers: int32 [N], hash words of the items' ids for `counter_rng`.
        size: Items per block; None: `ITEMS_PER_BLOCK`.
    """

    def __init__(self, popularity_tensors: dict[str, torch.Tensor], numbers: torch.Tensor, size: int | None = None) -> None:
        self._popularity = {name: popularity_tensors[name].numpy() for name in popularity.TENSOR_NAMES}
        self._numbers = numbers.numpy().view(np.uint32)
        self._n_target, self._size = len(numbers), size or ITEMS_PER_BLOCK
        item, every = self._popularity["item"], int(self._popularity["every"][0])
        marks, blocks = len(self._popularity["since"]), -(-self._n_target // self._size)
        # Events by snapshot, block of items and time.
        where = np.minimum(np.arange(len(item)) // every, marks - 1) * blocks + item // self._size
        self._order = np.argsort(where, kind="stable").astype(np.int32)
        begin = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=marks * blocks))])
        self._offset = begin[np.arange(marks)[:, None] * blocks + np.arange(blocks + 1)]
        self._half_lives = np.array([days * _US_A_DAY for days, _ in popularity.DECAYED_COUNTS.values()])
        self._added = np.array([added for _, added in popularity.DECAYED_COUNTS.values()], np.float32)
        self._entries: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}

    @property
    def max_rows(self) -> int:
        """Return the best number of contexts per call."""
        return MAX_CONTEXTS

    @staticmethod
    def supports(mixture: Mixture, member: str, draws: int = 0) -> bool:
        """Return whether this execution supports the estimators of the member, and the number of draws."""
        weighted = [estimator for name, estimator in mixture.estimators.items() if mixture.calibration[member][name] != 0]
        return draws <= MAX_DRAWS and all(has_product_score(estimator) or estimator is frequency for estimator in weighted)

    def draw(self, request: SampleRequest, mixture: Mixture, contexts: Contexts, batch: ContextBatch) -> Draws:
        """Draw as `sampling.sample_topk` does in float32; the batch must be in the order of ``event_time``."""
        summary = mixture.encode(batch, request.components, _COMPILED)
        best = min(request.k + 1 + EXTRA_CANDIDATES, self._n_target)
        visits, share = self._visits(mixture, summary, request)
        found = self._pass(
            request.temperature, best, mixture, summary, request.component, contexts, _no_candidates(len(contexts)), visits
        )
        keys, chosen = torch.from_numpy(found.keys), torch.from_numpy(self._items(found.items)).long()
        words = counter_rng.key_words(contexts.noise_key)
        order, unsure = self._settle(request, mixture, summary, (keys, chosen), words)
        there, chosen = (keys > -torch.inf).gather(1, order), chosen.gather(1, order)
        p, q = (torch.where(there, x.gather(1, order), 0) for x in found.probabilities(found.logits, found.priors))
        p, q = rescale_to_catalogue(request, share, p, q)
        unsure |= there.any(1) & torch.from_numpy(found.is_prior_inexact)
        unsure |= is_near_min_lift(request, mixture, summary, there, chosen, p, q)
        return Draws(torch.where(there & (p >= request.min_lift * q), chosen, NO_ITEM), p, q, unsure)

    def score(
        self, mixture: Mixture, contexts: Contexts, batch: ContextBatch, candidates: NDArray[np.int32], member: str
    ) -> CandidateScores:
        """Compute P and the prior P of candidates, int32 [B, C]. The batch must be in the order of ``event_time``.

        The prior is inexact where much of its mass is excluded.
        """
        summary = mixture.encode(batch, tuple(dict.fromkeys(("popularity", member))), _COMPILED)
        outputs = (np.ascontiguousarray(self._places(candidates)), *np.full((2, *candidates.shape), -np.inf, np.float32))
        visits, _ = self._visits(mixture, summary, None)
        found = self._pass(1.0, 0, mixture, summary, member, contexts, outputs, visits)
        p, q = found.probabilities(*outputs[1:])
        there = torch.from_numpy(outputs[1]) > -torch.inf
        p, q = (torch.where(there, x, 0) for x in (p, q))
        return CandidateScores(p.numpy(), q.numpy(), found.is_prior_inexact & there.any(1).numpy())

    def _settle(
        self,
        request: SampleRequest,
        mixture: Mixture,
        summary: EncodedBatch,
        ranking: tuple[torch.Tensor, torch.Tensor],
        words: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Order the first k candidates, int64 [B, k], exactly where rounding may matter; also return `Draws.needs_float64`."""
        keys, chosen = ranking
        of_any = mixture.rounding_bound(summary, request.component)
        order = torch.arange(keys.shape[1]).repeat(len(keys), 1)
        close, beyond = self._near(request, keys, of_any, of_any[:, 0])
        rows = (close | beyond).nonzero()[:, 0]
        if len(rows):  # first with a bound for all items, now with those of the candidates
            of_each = mixture.rounding_bound(summary.take(rows), request.component, chosen[rows])
            close[rows], beyond[rows] = self._near(request, keys[rows], of_each, of_any[rows, 0])
            rows = close.nonzero()[:, 0]
        if len(rows):
            there = keys[rows] > -torch.inf
            order[rows] = float64_order(request, mixture, summary, rows, (chosen[rows], there), words, self._words())
        return order[:, : request.k], beyond

    def _near(
        self, request: SampleRequest, keys: torch.Tensor, rounding: torch.Tensor, of_any: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Find where rounding may decide the order of the first k, and which items are among them: bool [B] each.

        Args:
            request: The request.
            keys: float64 [B, K], descending; -infinity: no item.
            rounding: [B, K] or [B, 1]. Bound of the error of their logits.
            of_any: [B]. Bound of the error of all other items' logits.
        """
        there, k = keys > -torch.inf, min(request.k, keys.shape[1])
        off = 1.01 * rounding / request.temperature + _KEY_ROUNDING * (1 + keys.abs())
        least, most = (torch.where(there, bound, -torch.inf) for bound in (keys - off, keys + off))
        reach = most.flip(1).cummax(1).values.flip(1)  # largest upper bound of this key and all that follow
        close = (there[:, 1:] & (reach[:, 1:] >= least[:, :-1]))[:, :k].any(1)
        others = keys[:, -1] + 1.01 * of_any / request.temperature + _KEY_ROUNDING * (1 + keys[:, -1].abs())
        beyond = there[:, -1] & (others >= least[:, :k].amin(1)) & (keys.shape[1] < self._n_target)
        return close, beyond

    def _pass(
        self,
        temperature: float,
        best: int,
        mixture: Mixture,
        summary: EncodedBatch,
        member: str,
        contexts: Contexts,
        candidates: tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]],
        visits: Iterable[BlockVisit],
    ) -> BlockPassResult:
        batch, rows = summary.batch, len(contexts)
        found = BlockPassResult.empty(rows, best)
        time = np.minimum(batch.time.numpy(), self._popularity["end"])
        place = np.searchsorted(self._popularity["time"], time)
        mark = np.minimum(place // self._popularity["every"], len(self._popularity["since"]) - 1)
        exclude = np.sort(self._places(contexts.exclude_matrix()), axis=1)
        low, high = (word[:, 0].numpy().view(np.uint32) for word in counter_rng.key_words(contexts.noise_key))
        weights = summary.feature_weights[member].float().numpy()
        # Always copy: a read-only array has another numba type, for which everything would be compiled again.
        of_member = np.array(np.broadcast_to(weights, (rows, weights.shape[-1])), order="C")
        c = mixture.calibration[member]
        weighted = [name for name in mixture.estimators if c[name] != 0]
        dense = [
            ((c[name] * summary.user_vectors[name]).float(), mixture.estimators[name].vectors(mixture.parameters[name]))
            for name in weighted
            if name in summary.user_vectors and not has_log_score(mixture.estimators[name])
        ]
        logarithms = [
            (c[name], summary.user_vectors[name].float(), mixture.estimators[name].vectors(mixture.parameters[name]))
            for name in weighted
            if name in summary.user_vectors and has_log_score(mixture.estimators[name])
        ]
        excluded = np.zeros(rows, np.int64)
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
            (of_member, summary.feature_weights["popularity"].float().numpy()),
            self._frequency(mixture, member, batch),
            (low, high, self._numbers),
            (float(temperature), *candidates),
            tuple(vars(found).values()),
        )
        logits, products, of_some = torch.empty(3, rows, self._size)
        buffers: dict[int, torch.Tensor] = {}
        for visit in visits:
            (_, count, _), items, some = visit.block, visit.items, visit.rows
            all_rows = some is None
            part = logits if some is None else of_some[: len(some)]
            own = part[:, :count]
            for own_users, vectors in dense[:1]:
                torch.mm(own_users if all_rows else own_users[some], _select(vectors, items, buffers).T, out=own)
            for own_users, vectors in dense[1:]:
                own.addmm_(own_users if all_rows else own_users[some], _select(vectors, items, buffers).T)
            if not dense:
                part.zero_()
            for weight, own_users, vectors in logarithms:
                others = products[: len(part)]
                torch.mm(own_users if all_rows else own_users[some], _select(vectors, items, buffers).T, out=others[:, :count])
                item_block.add_log_products(part.numpy(), others.numpy(), count, np.float32(weight))
            if not all_rows:
                logits[some, :count] = own
            item_block.score_block(
                visit.block, logits.numpy(), (time, place, mark, visit.eligible, exclude, excluded), *arguments
            )
        return found

    def _visits(
        self, mixture: Mixture, summary: EncodedBatch, request: SampleRequest | None
    ) -> tuple[Iterator[BlockVisit], dict[str, torch.Tensor]]:
        """Return the blocks to process, in order, and `shortlist.ShortlistSelection.catalogue_share`."""
        del mixture, request
        return self._all(summary.batch.eligible.numpy()), {}

    def _all(self, eligible: NDArray[np.int64]) -> Iterator[BlockVisit]:
        last = int(eligible.max(initial=0))
        for number, first in enumerate(range(0, last, self._size)):
            count = min(self._size, last - first)
            yield BlockVisit((first, count, number), slice(first, first + count), None, eligible)

    def _places(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the positions of items, any shape; `NO_ITEM` stays."""
        return items

    def _items(self, places: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the items at positions, any shape."""
        return places

    def _by_place(self, of_items: NDArray[Any]) -> NDArray[Any]:
        """Reorder values of items, [N], by position."""
        return of_items

    def _words(self) -> torch.Tensor:
        """Return the items' words by item: int32 [N]."""
        return torch.from_numpy(self._numbers.view(np.int32))

    def _frequency(self, mixture: Mixture, member: str, batch: ContextBatch) -> tuple[Any, ...]:
        """Return the frequency estimator's table, and where each context's entries start."""
        weight = mixture.calibration[member].get("frequency", 0.0)
        if weight == 0:
            no_items = np.zeros((len(batch.time), 0), np.int64)
            none = np.zeros(0, np.float32)
            return none, none, np.float32(0), np.zeros(0, np.int32), none, no_items, no_items, no_items.astype(np.float32)
        parameters = mixture.parameters["frequency"]
        history, share_of, rest = frequency.history_weights(parameters, batch, torch.float32)
        start = parameters["start"].numpy()
        item, share = self._sorted_entries(parameters)
        items = np.ascontiguousarray(history.numpy())
        prior = self._by_place(mixture.popularity["prior"].exp().numpy())
        of_each = np.ascontiguousarray(share_of.numpy())
        return rest[:, 0].numpy(), prior, np.float32(weight), item, share, start[items], start[items + 1], of_each

    def _sorted_entries(self, parameters: dict[str, torch.Tensor]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the table's entries, sorted by position of the target item within each source item; cached."""
        at = parameters["item"].data_ptr()
        if at not in self._entries:
            start, item = parameters["start"].numpy(), self._places(parameters["item"].numpy())
            order = np.lexsort((item, np.repeat(np.arange(len(start) - 1), np.diff(start))))
            self._entries[at] = item[order], parameters["share"].numpy()[order]
        return self._entries[at]


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
    there = mass > 0
    above = np.where(there, peak, 0).astype(np.float64)[:, None]
    shares = np.exp(np.where(there[:, None], logits, -np.inf) - above) / np.where(there, mass, 1)[:, None]
    return torch.from_numpy(shares.astype(np.float32))


def _no_candidates(rows: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    empty = np.empty((rows, 0), np.float32)
    return empty.astype(np.int32), empty, empty
