"""Threads that work on parameters."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_info

from scalr_prod.translator.threads import thread_limits


def blas_threads() -> set[int]:
    np.linalg.qr(np.eye(2))  # loads BLAS
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_torch_has_as_many_as_asked_for_and_blas_one_until_the_end():
    before, torch_before = blas_threads(), torch.get_num_threads()
    try:
        with thread_limits(3):
            assert torch.get_num_threads() == 3
            assert blas_threads() == {1}
        assert blas_threads() == before
    finally:
        torch.set_num_threads(torch_before)
