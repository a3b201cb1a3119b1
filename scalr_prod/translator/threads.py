"""How many threads work on parameters."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["thread_limits"]


@contextmanager
def thread_limits(threads: int) -> Iterator[None]:
    """Inside, torch works with so many threads and BLAS with one.

    BLAS threads spin while they wait for one another: where another process wants the same cores, a factorisation
    of a second takes half a minute with two of them.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(1, "blas"):
        yield
