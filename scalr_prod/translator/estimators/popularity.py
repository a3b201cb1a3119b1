"""The prior: smoothed counts of target events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["fit"]

#: Events added to every item, so that the least known one can still be proposed.
SMOOTHING: Final = 0.5


def fit(pairs: Pairs) -> Parameters:
    """``log_prior`` float32 [n_target]: log of each item's share of the training users' events."""
    import numpy as np

    counts = np.asarray(pairs.target_matrix().sum(axis=0), dtype=np.float64).ravel() + SMOOTHING
    return {"log_prior": torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))}
