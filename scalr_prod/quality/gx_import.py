# SPDX-License-Identifier: Apache-2.0
"""Import of Great Expectations without what its expectations on distributions need, which takes two fifths of its import time."""

from __future__ import annotations

from scalr_prod.core.import_hook import defer_import


def prepare_gx_import() -> None:
    """Defer scipy's statistics and the charts of altair until they are used; to be called before Great Expectations is imported."""
    defer_import("scipy.stats")
    defer_import("altair")
