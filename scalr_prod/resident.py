# SPDX-License-Identifier: Apache-2.0
"""How much memory this process has held at most."""

from __future__ import annotations

import sys

__all__ = ["peak_mb"]


def peak_mb() -> int | None:
    """The peak of this process's resident memory since it began, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))
