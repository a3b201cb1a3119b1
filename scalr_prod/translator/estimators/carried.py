# SPDX-License-Identifier: Apache-2.0
"""Estimators of other packages: their source file is part of every version that is trained with them.

So a version scores the same wherever it is loaded: in this process, in a worker of another machine, in Triton's environment, which
has torch and numpy alone; and also after the estimator was edited or uninstalled. What training runs is that very file, loaded by itself.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import TranslatorError
from scalr_prod.plugins import ESTIMATORS, source_file
from scalr_prod.translator.estimators import SCORED, as_estimator, scored_of
from scalr_prod.translator.estimators.popularity import FEATURES
from scalr_prod.translator.estimators.protocol import Fitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Carried", "carried", "estimator_of", "unpack"]

#: What the serving environment has, beside the standard library and the parts of this package that it can import.
_THERE: Final = ("numpy", "safetensors", "torch")
_OURS: Final = ("scalr_prod", "scalr_prod.errors", "scalr_prod.translator")
#: What else has tensors or weights under a name.
_TAKEN: Final = frozenset({"mixture", "popularity", "tastes", "calibration", "first_seen", *FEATURES})
_NEXT: Final = "see 'Estimator' in docs/plugins.md"
_lock: Final = threading.Lock()


@dataclass(frozen=True)
class Carried:
    """An estimator of another package, as it travels.

    Attributes:
        name: In the settings.
        path: Of the object in its module, such as ``Mine``; empty where the module is the object.
        version: The estimator's own.
        source: The module's text.
    """

    name: str
    path: str
    version: int
    source: bytes

    @property
    def sha256(self) -> str:
        """Of the source."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def file(self) -> str:
        """Name of its file in a version's folder."""
        return f"estimator_{self.sha256[:16]}.py"

    def described(self) -> dict[str, Any]:
        """What the version's weights say of it; see `unpack`."""
        return {"file": self.file, "path": self.path, "version": self.version, "sha256": self.sha256}


def estimator_of(name: str) -> Any:
    """An estimator, by its name or place; of another package as its source file gives it at this moment.

    Raises:
        TranslatorError: There is no such estimator, it lacks a part, or it cannot travel.
    """
    if name in SCORED:
        return as_estimator(ESTIMATORS.load(name, Fitted), name)
    return _found(name)[1]


def carried(names: Iterable[str]) -> dict[str, Carried]:
    """Those of the named estimators that are not ours, by name.

    Raises:
        TranslatorError: As `estimator_of`.
    """
    return {name: _found(name)[0] for name in scored_of(names) if name not in SCORED}


def unpack(folder: Path, described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The estimators that travelled with a version, by name.

    Args:
        folder: The version's.
        described: Name → `Carried.described`.

    Raises:
        ValueError: A file is not the one that was written, or does not load.
        OSError: It cannot be read.
    """
    found = {}
    for name, facts in described.items():
        file = folder / facts["file"]
        source = file.read_bytes()
        if hashlib.sha256(source).hexdigest() != facts["sha256"]:
            raise ValueError(f"{facts['file']}, the source of the estimator {name}, is not the file that was written")
        try:
            found[name] = as_estimator(_part(_module(source, str(file)), facts["path"]), name)
        except Exception as error:  # code of another package, which may raise anything
            raise ValueError(f"{facts['file']}, the source of the estimator {name}, does not load: {error}") from error
    return found


def _found(name: str) -> tuple[Carried, Any]:
    """An installed estimator of another package, and the object that its source gives when it is loaded by itself."""
    if name in _TAKEN:
        raise TranslatorError(
            f"no estimator can have the name {name!r}: a part of the translator has it",
            where=f"entry points {ESTIMATORS.entry_points}",
            next_step="name it by its place, as package.module:Class",
        )
    installed = ESTIMATORS.load(name, Fitted)
    file = source_file(installed)
    path = installed.__qualname__ if isinstance(installed, type) else ESTIMATORS.place(name).partition(":")[2]
    if file is None or "<locals>" in path:
        raise _cannot_travel(name, "it was not written at the top of a file")
    source = file.read_bytes()
    missing = sorted(set(_imported(ast.parse(source))))
    if missing:
        raise _cannot_travel(name, f"{file} imports {', '.join(missing)} where it is loaded")
    try:
        found = as_estimator(_part(_module(source, str(file)), path), name)
    except TranslatorError:
        raise
    except Exception as error:  # code of another package, which may raise anything
        raise _cannot_travel(name, f"{file} does not load by itself: {type(error).__name__}: {error}") from error
    return Carried(name, path, int(found.version), source), found


def _cannot_travel(name: str, reason: str) -> TranslatorError:
    return TranslatorError(
        f"the estimator {name} cannot travel with a version of the translator: {reason}",
        where=ESTIMATORS.setting,
        next_step="write it in one file that needs only torch, numpy and scalr_prod.translator to be loaded, and import "
        f"other libraries inside share and fit; {_NEXT}",
    )


def _module(source: bytes, file: str) -> ModuleType:
    """The module of a source file, loaded once for each content; nothing is written beside it."""
    name = f"scalr_prod_estimator_{hashlib.sha256(source).hexdigest()[:16]}"
    with _lock:
        if name not in sys.modules:
            module = ModuleType(name)
            module.__file__ = file
            sys.modules[name] = module  # dataclasses look their module up
            try:
                exec(compile(source, file, "exec"), vars(module))  # noqa: S102 - the user's own estimator, by its checksum
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]


def _part(module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in filter(None, path.split(".")):
        found = getattr(found, part)
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports as it is loaded, and the serving environment lacks. What stands in ``try`` may be absent."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if not _is_there(alias.name))
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            names = [f"{name}.{alias.name}" for alias in node.names] if name == "scalr_prod" else [name]
            yield from (one for one in names if not _is_there(one))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try):
            yield from _imported(node)


def _is_there(name: str) -> bool:
    root = name.partition(".")[0]
    if root == "scalr_prod":
        return name in _OURS or name.startswith("scalr_prod.translator.")
    return root in _THERE or root in sys.stdlib_module_names
