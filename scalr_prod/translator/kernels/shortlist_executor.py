# SPDX-License-Identifier: Apache-2.0
"""CPU executor that samples from shortlists: it visits their blocks only, with items in the order of `shortlist.ShortlistIndex`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.kernels.executor import BlockVisit, FusedExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.requests import SampleRequest
    from scalr_prod.translator.shortlist import ShortlistIndex


#: Contexts per pass: each block is on the shortlists of some of them only.
MAX_CONTEXTS: Final = 1024
#: With more blocks than this, half as many contexts per pass.
_MANY_BLOCKS: Final = 2048


class ShortlistExecutor(FusedExecutor):
    """CPU executor of one module that samples from shortlists.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        item_words: int32 [N], hash words of the items' ids for `counter_rng`.
        shortlists: Index of the blocks.
    """

    def __init__(
        self, popularity_tensors: dict[str, torch.Tensor], item_words: torch.Tensor, shortlists: ShortlistIndex
    ) -> None:
        self._shortlists, self._words_by_item = shortlists, item_words
        self._item_order = shortlists.item_order.numpy()
        self._position = np.empty(len(item_words), np.int32)
        self._position[self._item_order] = np.arange(len(item_words), dtype=np.int32)
        marked = {
            name: popularity_tensors[name][:, shortlists.item_order].contiguous()
            for name in (f"{x}_marked" for x in popularity.COUNT_NAMES)
        }
        item = torch.from_numpy(self._position)[popularity_tensors["item"].long()]
        super().__init__(popularity_tensors | marked | {"item": item}, item_words[shortlists.item_order], shortlists.block_size)

    @property
    def max_rows(self) -> int:
        """Return the best number of contexts per call."""
        return MAX_CONTEXTS if self._shortlists.n_blocks <= _MANY_BLOCKS else MAX_CONTEXTS // 2

    def _visits(
        self, mixture: Mixture, encoded: EncodedBatch, request: SampleRequest | None
    ) -> tuple[Iterator[BlockVisit], dict[str, torch.Tensor]]:
        eligible = encoded.batch.eligible.numpy()
        if request is None or request.shortlist is None:
            return self._visit_selected(torch.ones(len(eligible), self._shortlists.n_blocks, dtype=torch.bool), eligible), {}
        shortlists = self._shortlists.select(mixture, encoded, request)
        return self._visit_selected(shortlists.blocks, eligible), shortlists.catalogue_share

    def _visit_selected(self, selected: torch.Tensor, eligible: NDArray[np.int64]) -> Iterator[BlockVisit]:
        """Yield the blocks that at least one context selected, bool [R, blocks]."""
        for number in selected.any(0).nonzero()[:, 0].tolist():
            first = number * self._size
            items = self._item_order[first : first + self._size]
            rows = selected[:, number].nonzero()[:, 0]
            eligible_end = np.zeros(len(eligible), np.int64)
            eligible_end[rows.numpy()] = first + np.searchsorted(items, eligible[rows.numpy()])
            yield BlockVisit((first, len(items), number), torch.from_numpy(items), rows, eligible_end)

    def _positions(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(items >= 0, self._position[items], items)

    def _items(self, places: NDArray[np.int32]) -> NDArray[np.int32]:
        items: NDArray[np.int32] = self._item_order[places].astype(np.int32)
        return items

    def _by_position(self, values: NDArray[Any]) -> NDArray[Any]:
        ordered: NDArray[Any] = values[self._item_order]
        return ordered

    def _words(self) -> torch.Tensor:
        return self._words_by_item
