# SPDX-License-Identifier: Apache-2.0
"""Memory of this process: its peak, and the release of unused memory to the system."""

from __future__ import annotations

import ctypes
import resource
import sys


def release_memory() -> None:
    """Return free memory to the system: that of Arrow, of torch on a GPU, and of glibc. Takes milliseconds.

    glibc keeps freed memory below a block in use. After a log was read and sorted that is hundreds of MB, in gaps that are too small for
    later arrays. Resident pages of mapped arrays are released too.
    """
    # Looked up like the others, not imported: a DAG, or a command that only reads the ledger, must not import numpy.
    mapped = sys.modules.get("scalr_prod.core.memmap")
    if mapped is not None:
        mapped.drop_pages()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_memory_mb() -> int:
    """Return the peak resident memory of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))
