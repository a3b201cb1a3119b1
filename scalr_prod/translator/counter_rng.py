# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: noise that depends only on (key, item), whatever the machine, the batch and the number of threads.

Drawing without replacement in proportion to p^(1/T) is an exponential race, or Gumbel top-k: with E ~ Exp(1) independent for each item,
the items with the k largest ``p^(1/T) / E`` are such a draw (log E is a negated Gumbel variate). E comes from a 64-bit key and a
32-bit item word through a multiply-xor-shift hash on int32 tensors, which wrap around alike on CPU and GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.core.hashing import splitmix64

if TYPE_CHECKING:
    from numpy.typing import NDArray


_HALF: Final = 2**31
_MASK_15: Final = (1 << 17) - 1
_MASK_16: Final = (1 << 16) - 1
_UNIT: Final = 2.0**-31


def _signed(word: int) -> int:
    return word - 2 * _HALF if word >= _HALF else word


_M1: Final = _signed(0x7FEB352D)
_M2: Final = _signed(0x846CA68B)
_M3: Final = _signed(0x9E3779B1)


def item_words(count: int) -> torch.Tensor:
    """Return a fixed pseudo-random word for each item index: int32 [count]."""
    words = splitmix64(np.arange(count, dtype=np.uint64))
    return torch.from_numpy((words >> np.uint64(32)).astype(np.uint32).view(np.int32).copy())


def key_words(keys: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two hash words of each key: int32 [B, 1] each."""
    words = splitmix64(np.ascontiguousarray(keys).view(np.uint64))
    low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32).copy()
    high = (words >> np.uint64(32)).astype(np.uint32).view(np.int32).copy()
    return torch.from_numpy(low)[:, None], torch.from_numpy(high)[:, None]


def exponential(words: tuple[torch.Tensor, torch.Tensor], items: torch.Tensor, dtype: Any = torch.float32) -> torch.Tensor:
    """Return standard exponential variates.

    Args:
        words: From `key_words`, int32 [B, 1] each.
        items: From `item_words`, int32 [N] (or [B, C] for chosen items).
        dtype: Dtype of the result; values agree between dtypes up to a few units in the last place.

    Returns:
        [B, N], greater than 0.
    """
    low, high = words
    bits = items ^ low
    bits.mul_(_M1)
    bits.bitwise_xor_((bits >> 15).bitwise_and_(_MASK_15))
    bits.add_(high)
    bits.mul_(_M2)
    bits.bitwise_xor_((bits >> 16).bitwise_and_(_MASK_16))
    bits.mul_(_M3)
    bits.bitwise_and_(_HALF - 1)
    # Both ends keep their relative precision: log1p(-v) that of small variates, which decide races, and the logarithm of 1 - v,
    # taken from the complement of the bits, that of large ones.
    low_end = (bits.to(dtype) + 0.5).mul_(_UNIT).neg_().log1p_()
    high_end = (bits ^ (_HALF - 1)).to(dtype).add_(0.5).mul_(_UNIT).clamp_(min=2.0**-24).log_()
    return torch.where(bits < _HALF // 2, low_end, high_end).neg_()
