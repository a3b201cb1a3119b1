# SPDX-License-Identifier: Apache-2.0
"""Erasure of users, and of target items, from everything a project stores: current and old table versions, runs, training sets, reports.

Erased ids are put on the suppression list, so that logs and runs do not bring them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.operations.erasure.orchestrate import ErasureReport, erase_items, erase_users
    from scalr_prod.operations.erasure.trained_models import AffectedModel, models_to_retrain

__all__ = ["AffectedModel", "ErasureReport", "erase_items", "erase_users", "models_to_retrain"]

__getattr__ = lazy_exports(
    __name__,
    {
        "AffectedModel": "trained_models",
        "ErasureReport": "orchestrate",
        "erase_items": "orchestrate",
        "erase_users": "orchestrate",
        "models_to_retrain": "trained_models",
    },
)
