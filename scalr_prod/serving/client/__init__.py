# SPDX-License-Identifier: Apache-2.0
"""Clients of the translator: over Triton, or in this process.

Names are imported on first use: `wire` also runs inside the server, which has neither tritonclient nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.serving.client.factory import open_scorer
    from scalr_prod.serving.client.local import LocalScorer
    from scalr_prod.serving.client.retry import Deadline, RequestLimits, RetryPolicy
    from scalr_prod.serving.client.scorer import Scorer
    from scalr_prod.serving.client.triton import TritonScorer

__all__ = ["Deadline", "LocalScorer", "RequestLimits", "RetryPolicy", "Scorer", "TritonScorer", "open_scorer"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Deadline": "retry",
        "RequestLimits": "retry",
        "LocalScorer": "local",
        "RetryPolicy": "retry",
        "Scorer": "scorer",
        "TritonScorer": "triton",
        "open_scorer": "factory",
    },
)
