# SPDX-License-Identifier: Apache-2.0
"""Weights of synthetic rows. λ (`synthetic_weight`) is the target for their total weight, as a share of that of the real rows.

A synthetic row weighs confidence × λ × R / S, where R is the total weight of the real rows and S the total confidence of the synthetic
rows of the set. Rounding R / S moves the actual share by up to 9 %. λ × R / S is capped at 1; where the cap applies, the share is lower.
λ therefore means the same for every log, number of events per user, and length of the log.

With ``[training_set] popularity_discount``, a row's confidence is first divided by its item's popularity to that power (inverse propensity
weighting, tempered). S is the sum of the results, and no row weighs more than a real one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.config import SegmentWeights
from scalr_prod.generation import LIFT_SQL
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deltalake import DeltaTable
    from numpy.typing import NDArray

    from scalr_prod.training_set.label_window import LabelWindow


#: Steps of R / S per factor of two. Rounding it keeps the rows of earlier days as they are when a day is added.
_STEPS: Final = 4
#: Least popularity; its precision is limited by that of the confidence.
_LEAST_PRIOR: Final = 1e-9


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


def discount_popularity(confidence: NDArray[np.float32], prior: NDArray[np.float64], discount: float) -> NDArray[np.float32]:
    """Divide confidences by the popularity of their items to a power.

    Args:
        confidence: float32 [M].
        prior: float64 [M]. The items' probabilities by popularity alone.
        discount: The power; 0 returns the confidences.
    """
    if not discount:
        return confidence
    return (confidence / np.maximum(prior, _LEAST_PRIOR) ** discount).astype(np.float32)


def weight_sql(multiplier: str, discount: float) -> str:
    """Return SQL of a synthetic row's weight, from its columns ``weight`` (the confidence) and ``probability``.

    Args:
        multiplier: SQL of what `confidence_multipliers` gives the row's user.
        discount: See `discount_popularity`.
    """
    if not discount:
        return f"weight * {multiplier}"
    prior = f"greatest(probability::DOUBLE / greatest({LIFT_SQL}, 1e-30), {_LEAST_PRIOR!r})"
    return f"least(weight::DOUBLE / pow({prior}, {discount!r}) * {multiplier}, 1.0)"


def measure_real_to_synthetic(opened: Mapping[Table, DeltaTable], window: LabelWindow, discount: float = 0.0) -> float:
    """Return R / S of the rows of a window that are known by its cutoff.

    Args:
        opened: The event tables, at the versions that the set is built from.
        window: The labels.
        discount: See `discount_popularity`.
    """
    synthetic = _total_weight(opened[Table.SYNTHETIC_TARGET_EVENTS], window, discount)
    real = _total_weight(opened[Table.TARGET_EVENTS], window) if synthetic else 0.0
    return real_to_synthetic(real, synthetic)


def _total_weight(table: DeltaTable, window: LabelWindow, discount: float = 0.0) -> float:
    """Return the total weight of a window's rows that are known by its cutoff."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from scalr_prod.core.delta_log import files_dataset
    from scalr_prod.publication import REWRITE_SCAN_OPTIONS

    wanted = (ds.field(EVENT_TIMESTAMP) < window.cutoff) & (ds.field(CREATED_TIMESTAMP) <= window.cutoff)
    if window.start is not None:
        wanted &= ds.field(EVENT_TIMESTAMP) >= window.start
    total = 0.0
    columns = ["weight", "probability"] if discount else ["weight"]
    for batch in files_dataset(table).to_batches(columns=columns, filter=wanted, **REWRITE_SCAN_OPTIONS):
        if discount:
            confidence, probability = (batch[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in columns)
            prior = probability * np.maximum(1 - confidence, 1e-8) / np.maximum(confidence, 1e-30)
            total += float(discount_popularity(confidence.astype(np.float32), prior, discount).sum(dtype=np.float64))
        else:
            total += pc.sum(batch["weight"]).as_py() or 0.0
    return total
