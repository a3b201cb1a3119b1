# SPDX-License-Identifier: Apache-2.0
"""Decorators that compile functions with numba: without the GIL, and cached on disk if `compile_cache` has a folder.

Helpers are always inlined. A call to one would run its copy in the process that compiled it, but the copy within the kernel where the
kernel comes from the cache; both round differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numba
from numba.core import types
from numba.extending import intrinsic

from scalr_prod.translator.kernels import compile_cache

if TYPE_CHECKING:
    from collections.abc import Callable


if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def compiled(function: _Function) -> _Function:
    """Compile a kernel. Sums may be reordered, as in the reference; infinities are preserved."""
    flags = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "nnan"}, "error_model": "numpy"}
    cache_folder, previous = compile_cache.folder(), numba.config.CACHE_DIR
    if cache_folder is None:
        return numba.njit(**flags)(function)  # type: ignore[no-any-return]
    numba.config.CACHE_DIR = str(cache_folder)  # numba reads it in njit
    try:
        return numba.njit(cache=True, **flags)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = previous


def helper(function: _Function) -> _Function:
    """Compile a function that kernels call, with the same floating-point flags."""
    flags = {"contract", "reassoc", "nsz", "nnan"}
    return numba.njit(fastmath=flags, error_model="numpy", forceinline=True)(function)  # type: ignore[no-any-return]


def strict_helper(function: _Function) -> _Function:
    """Compile a formula whose operations must not be reordered; only fused multiply-add is allowed."""
    return numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)(function)  # type: ignore[no-any-return]


@intrinsic
def float_to_bits(_context: Any, x: Any) -> Any:
    """Return the bits of a float32 as an int32."""
    return types.int32(x), lambda _, builder, signature, arguments: builder.bitcast(arguments[0], _llvm(signature))


@intrinsic
def bits_to_float(_context: Any, x: Any) -> Any:
    """Return the float32 with these 32 bits."""
    return types.float32(x), lambda _, builder, signature, arguments: builder.bitcast(arguments[0], _llvm(signature))


def _llvm(signature: Any) -> Any:
    """Return the LLVM type of the result."""
    from llvmlite import ir

    return ir.FloatType() if signature.return_type == types.float32 else ir.IntType(32)
