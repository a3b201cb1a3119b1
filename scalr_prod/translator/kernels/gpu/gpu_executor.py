# SPDX-License-Identifier: Apache-2.0
"""GPU executor of sampling and scoring: a float32 pass of `sampling_kernel` over all items, then float64 for few candidates.

The pass computes the normalisers and, for each context, the best key of every `ITEMS_PER_KEY` items. Only the items with the best of these
keys can be drawn. Their logits, and those of the items that the pass skips for the context, are computed in float64, so that the draws and
their order equal the reference's. If rounding may have hidden another item, the row is marked `Draws.needs_float64` and drawn again by the
reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.translator import counter_rng
from scalr_prod.translator.data.contexts import NO_ITEM, ConsumedItems
from scalr_prod.translator.estimators import frequency, has_log_score, has_product_score, popularity, scores
from scalr_prod.translator.kernels.gpu.sampling_kernel import CONTEXTS_PER_TILE, ITEMS_PER_BLOCK, ITEMS_PER_KEY, sampling_pass
from scalr_prod.translator.kernels.gpu.segment_lists import (
    ItemLists,
    has_bit,
    merge_duplicates,
    pack_bits,
    table_entries,
    table_mass,
)
from scalr_prod.translator.sampling import EXTRA_CANDIDATES, CandidateScores, Draws, is_near_min_lift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.requests import SampleRequest


#: Maximum draws per context; the reference handles more.
MAX_DRAWS: Final = 256
#: Maximum contexts per call, and maximum elements per count of the states of their tiles.
_MAX_ROWS: Final = 4096
_MAX_STATE_ELEMENTS: Final = 2**22
#: Maximum events between a tile's state and the time of its last context.
_MAX_EVENTS_PER_TILE: Final = 512
#: Target number of programs: items are split into segments accordingly.
_PROGRAMS: Final = 512
#: Vectors are zero-padded to a multiple of this many columns.
_DEPTH: Final = 32
#: Warps per program: with fewer warps, or more contexts per tile, registers run out.
_WARPS: Final = 8
#: Precision of dot products, and their error relative to float32 in any order: ``tf32x3`` splits each factor in two.
_PRECISION: Final = "tf32x3"
_PRECISION_LOSS: Final = 4.0
#: Error of a key besides that of its logit: logarithm of the variate, and rounding of the sum.
_KEY_ROUNDING: Final = 2.0**-16
#: Maximum size of a [rows, candidates, columns] tensor of float64 products.
_CHUNK: Final = 2**25


@dataclass(frozen=True)
class GpuPassResult:
    """Result of a pass for R contexts.

    Attributes:
        keys: float32 [R, W]. Best key of each `ITEMS_PER_KEY` items; empty if no keys were requested.
        lists: The contexts' item lists.
        logits: float64 [R, S]. Logits of the listed items; -infinity if ineligible.
        normaliser: float64 [R]. Logarithm of the sum of e^logit over eligible items.
        prior_normaliser: float64 [R]. Likewise, of the prior.
    """

    keys: torch.Tensor
    lists: ItemLists
    logits: torch.Tensor
    normaliser: torch.Tensor
    prior_normaliser: torch.Tensor


class GpuExecutor:
    """GPU executor of one module, on the device of its tensors.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
    """

    def __init__(self, popularity_tensors: dict[str, torch.Tensor], item_words: torch.Tensor) -> None:
        self._popularity, self._item_words = popularity_tensors, item_words
        self._device, self._n_target = item_words.device, len(item_words)
        # On the CPU, so that computing the tiles does not synchronise with the device.
        self._time, self._item = (popularity_tensors[name].cpu().numpy() for name in ("time", "item"))
        self._end = int(popularity_tensors["end"][0])
        self._half_lives = np.array([days * DAY_US for days, _ in popularity.DECAYED_COUNTS.values()])
        self._added = torch.tensor([added for _, added in popularity.DECAYED_COUNTS.values()], device=self._device)
        self._stacked: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def max_rows(self) -> int:
        """Return the best number of contexts per call."""
        return min(_MAX_ROWS, max(1, _MAX_STATE_ELEMENTS // self._n_target) * CONTEXTS_PER_TILE)

    @staticmethod
    def supports(mixture: Mixture, component: str, draws: int = 0) -> bool:
        """Return whether the executor supports the component's estimators and the number of draws."""
        used = [estimator for name, estimator in mixture.estimators.items() if mixture.calibration[component][name] != 0]
        logarithms = sum(has_product_score(estimator) and has_log_score(estimator) for estimator in used)
        supported = all(has_product_score(estimator) or estimator is frequency for estimator in used)
        return draws <= MAX_DRAWS and logarithms <= 1 and supported

    def draw(self, request: SampleRequest, mixture: Mixture, contexts: Contexts, batch: ContextBatch) -> Draws:
        """Draw as `sampling.sample_topk` does; the batch must be in the order of ``event_time``."""
        encoded = mixture.encode(batch, request.components)
        words = tuple(word.to(self._device) for word in counter_rng.key_words(contexts.noise_key))
        result = self._run_pass(mixture, encoded, request.component, contexts, words, 1 / request.temperature, with_keys=True)
        n_segments = min(request.k + EXTRA_CANDIDATES, result.keys.shape[1])
        highest, segments = result.keys.topk(min(n_segments + 1, result.keys.shape[1]), dim=1)
        candidates = (
            segments[:, :n_segments, None] * ITEMS_PER_KEY + torch.arange(ITEMS_PER_KEY, device=self._device)
        ).flatten(1)
        is_computed = self._is_eligible(candidates, batch) & ~has_bit(result.lists.special, candidates)
        safe_items = candidates.clamp(max=self._n_target - 1)
        logits = self._float64_logits(mixture, encoded, request.component, safe_items, None).masked_fill_(
            ~is_computed, -torch.inf
        )
        items = torch.cat([safe_items, result.lists.items.clamp(max=self._n_target - 1)], 1)
        logits = torch.cat([logits, result.logits], 1)
        variates = counter_rng.exponential(words, self._item_words[items], torch.float64).log_()
        k = min(request.k, self._n_target)
        keys, order = (logits / request.temperature - variates).topk(min(k, items.shape[1]), dim=1)
        valid, chosen, chosen_logits = keys > -torch.inf, items.gather(1, order), logits.gather(1, order)
        p = _normalise(chosen_logits, result.normaliser, valid)
        q = _normalise(self._prior_logits(encoded, chosen), result.prior_normaliser, valid)
        needs_float64 = torch.zeros(len(keys), dtype=torch.bool, device=self._device)
        if highest.shape[1] > n_segments:
            error = 1.01 * _PRECISION_LOSS * mixture.rounding_bound(encoded, request.component)[:, 0] / request.temperature
            next_key = highest[:, -1].double()
            needs_float64 = highest[:, -1] + error + _KEY_ROUNDING * (1 + next_key.abs()) >= keys[:, -1]
            needs_float64 &= highest[:, -1] > -torch.inf
        needs_float64 |= is_near_min_lift(request, mixture, encoded, valid, chosen, p, q)
        return Draws(torch.where(valid & (p >= request.min_lift * q), chosen, NO_ITEM), p, q, needs_float64)

    def score(
        self, mixture: Mixture, contexts: Contexts, batch: ContextBatch, candidates: NDArray[np.int32], component: str
    ) -> CandidateScores:
        """Compute P and the prior P of candidates, int32 [B, C]. The batch must be in the order of ``event_time``; none is inexact."""
        encoded = mixture.encode(batch, tuple(dict.fromkeys(("popularity", component))))
        words = tuple(word.to(self._device) for word in counter_rng.key_words(contexts.noise_key))
        result = self._run_pass(mixture, encoded, component, contexts, words, 1.0, with_keys=False)
        items = torch.from_numpy(candidates).to(self._device, torch.int64)
        valid = (items >= 0) & self._is_eligible(items, batch)
        safe_items = items.clamp(min=0)
        valid &= ~has_bit(result.lists.excluded, safe_items)
        logits = self._float64_logits(mixture, encoded, component, safe_items, table_mass(result.lists, safe_items))
        p = _normalise(logits, result.normaliser, valid)
        q = _normalise(self._prior_logits(encoded, safe_items), result.prior_normaliser, valid)
        return CandidateScores(p.cpu().numpy(), q.cpu().numpy(), np.zeros(len(candidates), bool))

    def _is_eligible(self, items: torch.Tensor, batch: ContextBatch) -> torch.Tensor:
        """Return which items, int64 [R, C], had been seen before the event: bool [R, C]."""
        return items < batch.eligible[:, None].clamp(max=self._n_target)

    def _prior_logits(self, encoded: EncodedBatch, items: torch.Tensor) -> torch.Tensor:
        """Compute the prior's logits in float64."""
        weights = encoded.feature_weights["popularity"]
        return popularity.weighted_item_features(self._popularity, encoded.batch.time, weights, items, torch.float64)

    def _float64_logits(
        self, mixture: Mixture, encoded: EncodedBatch, component: str, items: torch.Tensor, mass: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the logits of items, int64 [R, C], in float64; ``mass``, float64 [R, C], is their mass in `frequency`'s table."""
        max_width = max((user.shape[1] for user in encoded.user_vectors.values()), default=1)
        step = max(1, _CHUNK // max(1, max_width * items.shape[1]))
        parts = []
        for start in range(0, len(items), step):
            rows = torch.arange(start, min(start + step, len(items)), device=self._device)
            rows_mass = None if mass is None else mass[rows]
            parts.append(self._float64_logits_chunk(mixture, encoded.take(rows), component, items[rows], rows_mass))
        return torch.cat(parts) if parts else torch.empty(items.shape, dtype=torch.float64, device=self._device)

    def _float64_logits_chunk(
        self, mixture: Mixture, encoded: EncodedBatch, component: str, items: torch.Tensor, mass: torch.Tensor | None
    ) -> torch.Tensor:
        batch, log_prior = encoded.batch, mixture.popularity["prior"].double()
        total = popularity.weighted_item_features(
            self._popularity, batch.time, encoded.feature_weights[component], items, torch.float64
        )
        for name, estimator in mixture.estimators.items():
            weight, parameters = mixture.calibration[component][name], mixture.parameters[name]
            if weight == 0:
                continue
            if has_product_score(estimator):
                total += weight * scores(estimator, parameters, batch, log_prior, user=encoded.user_vectors[name], items=items)
            else:
                rest = frequency.history_weights(parameters, batch, torch.float64).rest
                probability = rest * log_prior.exp()[items]
                total += weight * (probability if mass is None else probability + mass).log()
        return total

    def _run_pass(
        self,
        mixture: Mixture,
        encoded: EncodedBatch,
        component: str,
        contexts: Contexts,
        words: tuple[torch.Tensor, ...],
        slope: float,
        *,
        with_keys: bool,
    ) -> GpuPassResult:
        batch, rows = encoded.batch, len(contexts)
        time = np.minimum(contexts.event_time, self._end)
        before = np.searchsorted(self._time, time)
        tiles = _tiles(before)
        of_tile = np.repeat(tiles, np.diff([*tiles, rows]))
        lists = self._skipped_items(mixture, encoded, component, before, before[of_tile])
        c = mixture.calibration[component]
        used = [name for name in mixture.estimators if c[name] != 0]
        products = [name for name in used if name in encoded.user_vectors and not has_log_score(mixture.estimators[name])]
        logarithm = next(
            (name for name in used if name in encoded.user_vectors and has_log_score(mixture.estimators[name])), None
        )
        users = _concatenate_padded([(c[name] * encoded.user_vectors[name]).float() for name in products], rows, self._device)
        vectors = self._item_vectors(mixture, products)
        log_users = _concatenate_padded([encoded.user_vectors[logarithm].float()] if logarithm else [], rows, self._device)
        log_vectors = self._item_vectors(mixture, [logarithm] if logarithm else [])
        weight = c.get("frequency", 0.0)
        rest = batch.time.new_zeros((1, 1), dtype=torch.float64)
        if weight:
            rest = frequency.history_weights(mixture.parameters["frequency"], batch, torch.float64).rest
        decay = np.exp2(-(time - time[of_tile])[:, None] / self._half_lives).astype(np.float32)
        weights = encoded.feature_weights[component].float().expand(rows, -1).contiguous()
        width, n_blocks = -(-self._n_target // ITEMS_PER_KEY), -(-self._n_target // ITEMS_PER_BLOCK)
        n_segments = min(n_blocks, max(1, _PROGRAMS // max(1, len(tiles))))
        keys = torch.full((rows, width if with_keys else 0), -torch.inf, device=self._device)
        peak, prior_peak = torch.empty(2, rows, n_segments, device=self._device)
        mass, prior_mass = torch.empty(2, rows, n_segments, dtype=torch.float64, device=self._device)
        if rows:
            sampling_pass[len(tiles), n_segments](
                self._to_device(tiles.astype(np.int32)),
                self._to_device(np.diff([*tiles, rows]).astype(np.int32)),
                users,
                vectors,
                log_users,
                log_vectors,
                c[logarithm] if logarithm else 0.0,
                rest.log().float().flatten(),
                mixture.popularity["prior"],
                weight,
                self._states(batch.time[self._to_device(tiles)]),
                self._to_device(decay),
                self._added,
                weights,
                encoded.feature_weights["popularity"].float().contiguous(),
                batch.eligible.clamp(max=self._n_target).int(),
                lists.special,
                words[0].flatten(),
                words[1].flatten(),
                self._item_words,
                slope,
                keys,
                peak,
                mass,
                prior_peak,
                prior_mass,
                self._n_target,
                -(-n_blocks // n_segments),
                width=users.shape[1],
                log_width=log_users.shape[1],
                with_frequency=bool(weight),
                with_keys=with_keys,
                rows=CONTEXTS_PER_TILE,
                items=ITEMS_PER_BLOCK,
                each=ITEMS_PER_KEY,
                depth=_DEPTH,
                precision=_PRECISION,
                num_warps=_WARPS,
            )
        safe_items = lists.items.clamp(max=self._n_target - 1)
        valid = self._is_eligible(lists.items, batch) & ~has_bit(lists.excluded, safe_items)
        logits = self._float64_logits(mixture, encoded, component, safe_items, lists.mass).masked_fill_(~valid, -torch.inf)
        prior_logits = self._prior_logits(encoded, safe_items).masked_fill_(~valid, -torch.inf)
        return GpuPassResult(
            keys=keys,
            lists=lists,
            logits=logits,
            normaliser=torch.cat([mass.log() + peak, logits], 1).logsumexp(1),
            prior_normaliser=torch.cat([prior_mass.log() + prior_peak, prior_logits], 1).logsumexp(1),
        )

    def _states(self, time: torch.Tensor) -> torch.Tensor:
        """Compute all items' decayed counts as of each tile's time: float32 [J, 4, N]."""
        items = torch.arange(self._n_target, device=self._device).expand(len(time), -1)
        logs = popularity.log_counts(self._popularity, time, torch.float64, items)
        added = {name: added for name, (_, added) in popularity.DECAYED_COUNTS.items()}
        return torch.stack([(logs[name].exp() - added[name]).clamp(min=0).float() for name in popularity.COUNT_NAMES], 1)

    def _skipped_items(
        self, mixture: Mixture, encoded: EncodedBatch, component: str, before: NDArray[np.int64], begin: NDArray[np.int64]
    ) -> ItemLists:
        """Collect the items of `frequency`'s table, items chosen since the tile's state, and excluded items."""
        batch, absent = encoded.batch, self._n_target
        longest = int((before - begin).max(initial=0))
        position = begin[:, None] + np.arange(longest)
        changed = np.where(position < before[:, None], self._item[np.minimum(position, len(self._item) - 1)], absent)
        items = self._to_device(changed.astype(np.int64))
        mass = torch.zeros(items.shape, dtype=torch.float64, device=self._device)
        if mixture.calibration[component].get("frequency", 0.0):
            table_items, table_item_mass = table_entries(mixture.parameters["frequency"], batch, absent)
            items, mass = torch.cat([items, table_items], 1), torch.cat([mass, table_item_mass], 1)
        items, mass = merge_duplicates(items, mass, absent)
        exclude = batch.exclude.to_matrix() if isinstance(batch.exclude, ConsumedItems) else batch.exclude
        excluded_items = np.empty((len(items), 0), np.int64) if exclude is None else exclude.astype(np.int64)
        safe_items = self._to_device(np.where(excluded_items < 0, absent, excluded_items))
        safe_items, _ = merge_duplicates(
            safe_items, torch.zeros(safe_items.shape, dtype=torch.float64, device=self._device), absent
        )
        excluded, listed = (pack_bits(indices, absent) for indices in (safe_items, items))
        return ItemLists(items, mass, excluded, excluded | listed)

    def _item_vectors(self, mixture: Mixture, names: list[str]) -> torch.Tensor:
        """Concatenate the item vectors of some estimators: float32 [N, columns]; cached if they are tables of a parameter set."""
        tables = [mixture.estimators[name].vectors(mixture.parameters[name]) for name in names]
        key = tuple(table.data_ptr() for table in tables)
        if key in self._stacked:
            return self._stacked[key]
        stacked = _concatenate_padded(tables, self._n_target, self._device)
        pointers = [tensor.data_ptr() for name in names for tensor in mixture.parameters[name].values()]
        if all(pointer in pointers for pointer in key):  # else the estimator computes its vectors on each call
            self._stacked[key] = stacked
        return stacked

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


def _tiles(before: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split contexts in order of time into tiles, by the number of events before each: first context of each tile, int64 [J]."""
    firsts = []
    first = 0
    while first < len(before):
        firsts.append(first)
        first += int(
            np.searchsorted(before[first : first + CONTEXTS_PER_TILE], before[first] + _MAX_EVENTS_PER_TILE, side="right")
        )
    return np.array(firsts, dtype=np.int64)


def _concatenate_padded(tables: list[torch.Tensor], rows: int, device: torch.device) -> torch.Tensor:
    """Concatenate tables, zero-padded to a multiple of `_DEPTH` columns: float32 [rows, columns]."""
    columns = sum(table.shape[1] for table in tables)
    return torch.cat([*tables, torch.zeros(rows, -columns % _DEPTH, device=device)], 1).contiguous()


def _normalise(logits: torch.Tensor, normaliser: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Compute e^(logit - normaliser) where ``valid``, else 0: float32 [R, C]."""
    return torch.where(valid, (logits - normaliser[:, None]).exp(), 0.0).float()
