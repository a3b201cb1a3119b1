# SPDX-License-Identifier: Apache-2.0
"""Dot products of user and item vectors, and bounds of their rounding error in float32.

The user vector is computed in float64 and rounded once, so the only other error is that of the product itself: for any order of summation
at most d units of the absolute sum of the d terms, which is at most the product of the two norms.
"""

from __future__ import annotations

from typing import Any, Final

import torch

#: Unit roundoff of float32: half the distance from 1 to the next number.
UNIT_ROUNDOFF: Final = 2.0**-24


def dot_product_scores(
    user: torch.Tensor, vectors: torch.Tensor, dtype: Any, items: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute dot products of user and item vectors: [B, N], or [B, C] for given items.

    Args:
        user: float64 [B, d].
        vectors: float32 [N, d].
        dtype: dtype of the computation and the result.
        items: int64 [B, C]. Default: all.
    """
    user = user.to(dtype)
    if items is None:
        return user @ vectors.T.to(dtype)
    return (vectors[items].to(dtype) @ user[:, :, None])[:, :, 0]


def norm_bounds(vectors: torch.Tensor) -> torch.Tensor:
    """Return an upper bound of the norm of each item's vector: float32 [N]."""
    return torch.linalg.vector_norm(vectors, dim=1) * (1 + (vectors.shape[1] + 2) * UNIT_ROUNDOFF)


def rounding_bound(dim: int) -> float:
    """Bound the error of a float32 dot product, relative to the product of the two norms."""
    return (dim + 2) * UNIT_ROUNDOFF
