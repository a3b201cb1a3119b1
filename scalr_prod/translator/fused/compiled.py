# SPDX-License-Identifier: Apache-2.0
"""How functions are compiled: once for each processor, without the interpreter's lock, and kept on disk where `cache` has a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numba
from numba.core import types
from numba.extending import intrinsic

from scalr_prod.translator.fused import cache

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_float", "as_int", "compiled", "helper", "inlined"]

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def compiled(function: _Function) -> _Function:
    """A kernel. Sums may be taken in any order, as in the reference; what is infinite stays so."""
    flags = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "nnan"}, "error_model": "numpy"}
    place, before = cache.folder(), numba.config.CACHE_DIR
    if place is None:
        return numba.njit(**flags)(function)  # type: ignore[no-any-return]
    numba.config.CACHE_DIR = str(place)  # read when a function is wrapped
    try:
        return numba.njit(cache=True, **flags)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before


def helper(function: _Function) -> _Function:
    """A part of a kernel, with the kernel's freedoms."""
    flags = {"contract", "reassoc", "nsz", "nnan"}
    return numba.njit(fastmath=flags, error_model="numpy")(function)  # type: ignore[no-any-return]


def inlined(function: _Function) -> _Function:
    """A formula whose steps must stay as they are written, but for multiplications that are joined with additions."""
    return numba.njit(fastmath={"contract"}, error_model="numpy")(function)  # type: ignore[no-any-return]


@intrinsic
def as_int(_context: Any, x: Any) -> Any:
    """The bits of a float32."""
    return types.int32(x), lambda _, builder, signature, arguments: builder.bitcast(arguments[0], _llvm(signature))


@intrinsic
def as_float(_context: Any, x: Any) -> Any:
    """The float32 of 32 bits."""
    return types.float32(x), lambda _, builder, signature, arguments: builder.bitcast(arguments[0], _llvm(signature))


def _llvm(signature: Any) -> Any:
    from llvmlite import ir

    return ir.FloatType() if signature.return_type == types.float32 else ir.IntType(32)
