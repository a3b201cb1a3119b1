# SPDX-License-Identifier: Apache-2.0
"""Scores that are products of a user's vector and the items' vectors, and how far rounding to float32 may move them.

The user's vector is worked out in float64 and rounded once, so that all that rounding adds is what the product adds: for any order of
summation at most d units of the d terms' absolute sum, which is at most the product of the two vectors' lengths.
"""

from __future__ import annotations

from typing import Any, Final

import torch

__all__ = ["UNIT", "lengths", "products", "rounding"]

#: Half the distance from 1 to the next float32.
UNIT: Final = 2.0**-24


def products(user: torch.Tensor, vectors: torch.Tensor, dtype: Any, items: torch.Tensor | None = None) -> torch.Tensor:
    """Products of users' vectors, float64 [B, d], and items' vectors, float32 [N, d]: [B, N], or [B, C] of named items.

    Args:
        user: A vector for each row.
        vectors: One for each item.
        dtype: That it is worked out in.
        items: int64 [B, C]. Default: all.
    """
    user = user.to(dtype)
    if items is None:
        return user @ vectors.T.to(dtype)
    return (vectors[items].to(dtype) @ user[:, :, None])[:, :, 0]


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    """The length of each item's vector, not less than it is: float32 [N]."""
    return torch.linalg.vector_norm(vectors, dim=1) * (1 + (vectors.shape[1] + 2) * UNIT)


def rounding(dim: int) -> float:
    """How far a product in float32 may be from one in float64, in units of the two lengths' product."""
    return (dim + 2) * UNIT
