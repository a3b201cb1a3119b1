# SPDX-License-Identifier: Apache-2.0
"""How much memory this process has held at most, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back", "peak_mb"]


def give_back() -> None:
    """Give memory that is free to the system, Arrow's, torch's on a GPU, and the C library's where that is glibc; in milliseconds.

    glibc keeps what was freed below a block that is in use. After a log was read and put in order that is hundreds of MB, which
    arrays that come after it are too large for. What was read of arrays on disk goes as well.
    """
    # Looked up, as the others are: a DAG, or a command that reads a ledger, imports no numpy.
    mapped = sys.modules.get("scalr_prod.mapped")
    if mapped is not None:
        mapped.let_go()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_mb() -> int | None:
    """The peak of this process's resident memory since it began, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))
