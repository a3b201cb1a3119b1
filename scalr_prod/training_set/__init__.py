# SPDX-License-Identifier: Apache-2.0
"""Training sets: real and synthetic target events with point-in-time features, as versioned Parquet folders.

`build_training_set` builds a version; `TrainingSet` reads it into Arrow, pandas, Polars, sparse matrices or a torch
``DataLoader``; `IdVocabulary` maps ids to rows, columns and embedding numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.training_set.build import TrainingSetReport, build_training_set, layout_reason, rebuild_reason
    from scalr_prod.training_set.export import ExportReport
    from scalr_prod.training_set.manifest import list_versions
    from scalr_prod.training_set.reader import TrainingSet
    from scalr_prod.training_set.row_weights import confidence_multipliers, discount_popularity, real_to_synthetic
    from scalr_prod.training_set.splits import count_rows, ensure_run_fits_splits
    from scalr_prod.training_set.vocabulary import IdVocabulary

__all__ = [
    "ExportReport",
    "IdVocabulary",
    "TrainingSet",
    "TrainingSetReport",
    "build_training_set",
    "confidence_multipliers",
    "count_rows",
    "discount_popularity",
    "ensure_run_fits_splits",
    "layout_reason",
    "list_versions",
    "real_to_synthetic",
    "rebuild_reason",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ExportReport": "export",
        "IdVocabulary": "vocabulary",
        "TrainingSet": "reader",
        "TrainingSetReport": "build",
        "build_training_set": "build",
        "confidence_multipliers": "row_weights",
        "count_rows": "splits",
        "discount_popularity": "row_weights",
        "ensure_run_fits_splits": "splits",
        "layout_reason": "build",
        "list_versions": "manifest",
        "real_to_synthetic": "row_weights",
        "rebuild_reason": "build",
    },
)
