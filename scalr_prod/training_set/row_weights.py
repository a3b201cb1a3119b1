# SPDX-License-Identifier: Apache-2.0
"""Weights of synthetic rows. λ (`synthetic_weight`) is the target for their total weight, as a share of that of the real rows.

A synthetic row weighs confidence × λ × R / S, where R is the total weight of the real rows and S the total confidence of the synthetic
rows of the set. Rounding R / S moves the actual share by up to 9 %. λ × R / S is capped at 1; where the cap applies, the share is lower.
λ therefore means the same for every log, number of events per user, and length of the log.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from scalr_prod.config import SegmentWeights
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable

    from scalr_prod.training_set.label_window import LabelWindow


#: Steps of R / S per factor of two. Rounding it keeps the rows of earlier days as they are when a day is added.
_STEPS: Final = 4


def real_to_synthetic(real: float, synthetic: float) -> float:
    """Return R / S, rounded to a quarter of a factor of two; 1 if there is no real or no synthetic row.

    Args:
        real: Total weight of the real rows.
        synthetic: Total confidence of the synthetic rows.
    """
    if real <= 0 or synthetic <= 0:
        return 1.0
    return float(2.0 ** (round(math.log2(real / synthetic) * _STEPS) / _STEPS))


def confidence_multipliers(segment_weights: SegmentWeights, ratio: float) -> SegmentWeights:
    """Return what the confidence of a cold, sparse and dense user's synthetic rows is multiplied by.

    It is λ × R / S, and at most 1, so that no synthetic row weighs more than a real one.

    Args:
        segment_weights: λ of cold, sparse and dense users.
        ratio: R / S, as returned by `real_to_synthetic`.
    """
    return SegmentWeights(*(min(1.0, weight * ratio) for weight in segment_weights))


def measure_real_to_synthetic(opened: Mapping[Table, DeltaTable], window: LabelWindow) -> float:
    """Return R / S of the rows of a window that are known by its cutoff.

    Args:
        opened: The event tables, at the versions that the set is built from.
        window: The labels.
    """
    real = _total_weight(opened[Table.TARGET_EVENTS], window)
    synthetic = _total_weight(opened[Table.SYNTHETIC_TARGET_EVENTS], window)
    return real_to_synthetic(real, synthetic)


def _total_weight(table: DeltaTable, window: LabelWindow) -> float:
    """Return the total weight of a window's rows that are known by its cutoff."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from scalr_prod.core.delta_log import files_dataset
    from scalr_prod.publication import REWRITE_SCAN_OPTIONS

    wanted = (ds.field(EVENT_TIMESTAMP) < window.cutoff) & (ds.field(CREATED_TIMESTAMP) <= window.cutoff)
    if window.start is not None:
        wanted &= ds.field(EVENT_TIMESTAMP) >= window.start
    total = 0.0
    for batch in files_dataset(table).to_batches(columns=["weight"], filter=wanted, **REWRITE_SCAN_OPTIONS):
        total += pc.sum(batch["weight"]).as_py() or 0.0
    return total
