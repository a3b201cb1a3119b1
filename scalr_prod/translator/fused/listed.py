# SPDX-License-Identifier: Apache-2.0
"""The CPU execution restricted to the blocks of shortlists: items are in the order of `shortlist.Shortlists`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.translator.estimators import popularity
from scalr_prod.translator.fused.passes import Fused, Visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scalr_prod.translator.mixture import Mixture, Summary
    from scalr_prod.translator.sample_request import Race
    from scalr_prod.translator.shortlist import Shortlists

__all__ = ["Listed"]

#: Contexts at a time: each block is on the shortlists of some of them.
ROWS: Final = 1024
#: With more blocks than this, half as many contexts at a time.
_BLOCKS: Final = 2048


class Listed(Fused):
    """CPU executor of one module that samples from shortlists.

    Args:
        popularity_tensors: The tensors of `popularity.fit`.
        numbers: int32 [N], the items' words for `noise`.
        lists: The blocks of items.
    """

    def __init__(self, popularity_tensors: dict[str, torch.Tensor], numbers: torch.Tensor, lists: Shortlists) -> None:
        self._lists, self._numbers_by_item = lists, numbers
        self._item_order = lists.order.numpy()
        self._place = np.empty(len(numbers), np.int32)
        self._place[self._item_order] = np.arange(len(numbers), dtype=np.int32)
        marked = {
            name: popularity_tensors[name][:, lists.order].contiguous() for name in (f"{x}_marked" for x in popularity.COUNTS)
        }
        item = torch.from_numpy(self._place)[popularity_tensors["item"].long()]
        super().__init__(popularity_tensors | marked | {"item": item}, numbers[lists.order], lists.size)

    @property
    def most_rows(self) -> int:
        """Return the best number of contexts per call."""
        return ROWS if self._lists.blocks <= _BLOCKS else ROWS // 2

    def _visits(
        self, mixture: Mixture, summary: Summary, request: Race | None
    ) -> tuple[Iterator[Visit], dict[str, torch.Tensor]]:
        eligible = summary.batch.eligible.numpy()
        if request is None or request.shortlist is None:
            return self._chosen_visits(torch.ones(len(eligible), self._lists.blocks, dtype=torch.bool), eligible), {}
        lists = self._lists.chosen(mixture, summary, request)
        return self._chosen_visits(lists.blocks, eligible), lists.share

    def _chosen_visits(self, chosen: torch.Tensor, eligible: NDArray[np.int64]) -> Iterator[Visit]:
        """Yield the blocks that are on some shortlist, bool [R, blocks]."""
        for number in chosen.any(0).nonzero()[:, 0].tolist():
            first = number * self._size
            items = self._item_order[first : first + self._size]
            rows = chosen[:, number].nonzero()[:, 0]
            until = np.zeros(len(eligible), np.int64)
            until[rows.numpy()] = first + np.searchsorted(items, eligible[rows.numpy()])
            yield Visit((first, len(items), number), torch.from_numpy(items), rows, until)

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
