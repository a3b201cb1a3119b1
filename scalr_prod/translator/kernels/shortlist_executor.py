# SPDX-License-Identifier: Apache-2.0
"""The CPU execution restricted to the blocks of shortlists: items are in the order of `shortlist.ShortlistIndex`."""

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
    from scalr_prod.translator.sample_request import SampleRequest
    from scalr_prod.translator.shortlist import ShortlistIndex

__all__ = ["ShortlistExecutor"]

#: Contexts at a time: each block is on the shortlists of some of them.
MAX_CONTEXTS: Final = 1024
#: With more blocks than this, half as many contexts at a time.
_BLOCKS: Final = 2048


class ShortlistExecutor(FusedExecutor):
    """CPU executor of one module that samples from shortlists.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        numbers: int32 [N], hash words of the items' ids for `counter_rng`.
        lists: The blocks of items.
    """

    def __init__(self, popularity_tensors: dict[str, torch.Tensor], numbers: torch.Tensor, lists: ShortlistIndex) -> None:
        self._lists, self._numbers_by_item = lists, numbers
        self._item_order = lists.item_order.numpy()
        self._place = np.empty(len(numbers), np.int32)
        self._place[self._item_order] = np.arange(len(numbers), dtype=np.int32)
        marked = {
            name: popularity_tensors[name][:, lists.item_order].contiguous()
            for name in (f"{x}_marked" for x in popularity.COUNT_NAMES)
        }
        item = torch.from_numpy(self._place)[popularity_tensors["item"].long()]
        super().__init__(popularity_tensors | marked | {"item": item}, numbers[lists.item_order], lists.block_size)

    @property
    def max_rows(self) -> int:
        """Return the best number of contexts per call."""
        return MAX_CONTEXTS if self._lists.n_blocks <= _BLOCKS else MAX_CONTEXTS // 2

    def _visits(
        self, mixture: Mixture, summary: EncodedBatch, request: SampleRequest | None
    ) -> tuple[Iterator[BlockVisit], dict[str, torch.Tensor]]:
        eligible = summary.batch.eligible.numpy()
        if request is None or request.shortlist is None:
            return self._chosen_visits(torch.ones(len(eligible), self._lists.n_blocks, dtype=torch.bool), eligible), {}
        lists = self._lists.select(mixture, summary, request)
        return self._chosen_visits(lists.blocks, eligible), lists.catalogue_share

    def _chosen_visits(self, chosen: torch.Tensor, eligible: NDArray[np.int64]) -> Iterator[BlockVisit]:
        """Yield the blocks that are on some shortlist, bool [R, blocks]."""
        for number in chosen.any(0).nonzero()[:, 0].tolist():
            first = number * self._size
            items = self._item_order[first : first + self._size]
            rows = chosen[:, number].nonzero()[:, 0]
            until = np.zeros(len(eligible), np.int64)
            until[rows.numpy()] = first + np.searchsorted(items, eligible[rows.numpy()])
            yield BlockVisit((first, len(items), number), torch.from_numpy(items), rows, until)

    def _places(self, items: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(items >= 0, self._place[items], items)

    def _items(self, places: NDArray[np.int32]) -> NDArray[np.int32]:
        items: NDArray[np.int32] = self._item_order[places].astype(np.int32)
        return items

    def _by_place(self, of_items: NDArray[Any]) -> NDArray[Any]:
        ordered: NDArray[Any] = of_items[self._item_order]
        return ordered

    def _words(self) -> torch.Tensor:
        return self._numbers_by_item
