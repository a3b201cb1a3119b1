"""Feast's functions with their types checked, worked out once for all processes.

Feast has typeguard check the arguments of its classes' functions. For each of them typeguard parses, changes and compiles the whole
module again, which is over half of what it costs to import Feast: 2.5 of 4.5 seconds of processor time. Here the code that comes of it
is kept beside the bytecode, by the module's source, so that the same checks are made.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import marshal
import os
import sys
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FOLDER", "instrument_once"]

FOLDER = Path(__file__).parent / "__pycache__" / "typeguard"


def instrument_once() -> None:
    """From now on, in this process; nothing where this is done. Of what is imported later."""
    from typeguard import _decorators

    work_out: Callable[[Any], Any] = _decorators.instrument
    if hasattr(work_out, "__wrapped__"):
        return
    of_this_python = f"{sys.implementation.cache_tag} {importlib.metadata.version('typeguard')}"

    @functools.wraps(work_out)
    def instrument(function: Any) -> Any:
        if not isinstance(function, FunctionType) or not function.__module__.startswith("feast."):
            return work_out(function)
        source = _source(function.__module__)
        named = f"{of_this_python} {function.__code__.co_filename} {function.__qualname__} {function.__code__.co_firstlineno} {source}"
        path = FOLDER / f"{hashlib.sha256(named.encode()).hexdigest()}.code"
        if path.exists():
            return _with(function, marshal.loads(path.read_bytes()))  # noqa: S302 - written below
        made = work_out(function)
        # Another code that encloses more than the function does would need what typeguard looks up in its callers.
        if isinstance(made, FunctionType) and made.__closure__ == function.__closure__ and not sys.dont_write_bytecode:
            _keep(path, made.__code__)
        return made

    _decorators.instrument = instrument  # type: ignore[assignment]


@functools.cache
def _source(module: str) -> str:
    return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()


def _with(function: FunctionType, code: CodeType) -> FunctionType:
    """The same function with other code, as typeguard makes it."""
    made = FunctionType(code, function.__globals__, function.__name__, closure=function.__closure__)
    for name in ("__module__", "__qualname__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__"):
        setattr(made, name, getattr(function, name))
    return made


def _keep(path: Path, code: CodeType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_bytes(marshal.dumps(code))
    beside.replace(path)
