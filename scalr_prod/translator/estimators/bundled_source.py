# SPDX-License-Identifier: Apache-2.0
"""Source files of third-party estimators, bundled with every version trained with them.

So a version scores the same wherever it is loaded: in this process, on a worker, and in Triton's environment, which has only torch
and numpy; also after the estimator was edited or uninstalled. Training runs that same file, loaded on its own.
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
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS, as_estimator, scored_estimators
from scalr_prod.translator.estimators.popularity import FEATURES
from scalr_prod.translator.estimators.protocol import FittableEstimator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path


#: Packages of the serving environment, besides the standard library and the modules of this package that it can import.
_AVAILABLE: Final = ("numpy", "safetensors", "torch")
_IMPORTABLE: Final = ("scalr_prod", "scalr_prod.errors", "scalr_prod.translator")
#: Names that tensors or calibration weights already use.
_RESERVED: Final = frozenset({"mixture", "popularity", "tastes", "calibration", "first_seen", *FEATURES})
_SEE_DOCS: Final = "see 'Estimator' in docs/guides/plugins.md"
_lock: Final = threading.Lock()


@dataclass(frozen=True)
class BundledSource:
    """The source of a third-party estimator.

    Attributes:
        name: Its name in the settings.
        qualified_name: The object's qualified name in its module, such as ``Mine``; empty if the module itself is the estimator.
        version: The estimator's own version.
        source: The module's source text.
    """

    name: str
    qualified_name: str
    version: int
    source: bytes

    @property
    def sha256(self) -> str:
        """Return the checksum of the source."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def file_name(self) -> str:
        """Return the name of its file in a version's folder."""
        return f"estimator_{self.sha256[:16]}.py"

    def load(self) -> Any:
        """Load the estimator from this source."""
        return as_estimator(_resolve(_load_module(self.source, self.file_name), self.qualified_name), self.name)

    def to_metadata(self) -> dict[str, Any]:
        """Return the entry of the weights file's metadata that `load_bundled_estimators` reads."""
        return {"file": self.file_name, "path": self.qualified_name, "version": self.version, "sha256": self.sha256}


class LoadedEstimators(dict[str, Any]):
    """Estimators by name. Pickled as names, and as sources if they belong to another package, so that a worker need not have it."""

    @classmethod
    def from_names(cls, names: Iterable[str], sources: Mapping[str, BundledSource] | None = None) -> LoadedEstimators:
        """Load estimators.

        Args:
            names: Names, or ``module:object`` paths.
            sources: Sources of third-party estimators; default: the installed ones.

        Raises:
            TranslatorError: As `load_estimator`.
        """
        sources = sources or {}
        return cls({name: sources[name].load() if name in sources else load_estimator(name) for name in names})

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_names, (list(self), bundle_sources(self))


def load_estimator(name: str) -> Any:
    """Load an estimator by its name or ``module:object`` path; a third-party one from its current source file.

    Raises:
        TranslatorError: There is no such estimator, it does not implement the protocol, or it cannot be bundled.
    """
    if name in BUILTIN_ESTIMATORS:
        return as_estimator(ESTIMATORS.load(name, FittableEstimator), name)
    return _load_installed(name)[1]


def bundle_sources(names: Iterable[str]) -> dict[str, BundledSource]:
    """Collect the sources of the third-party estimators among the names given.

    Raises:
        TranslatorError: As `load_estimator`.
    """
    return {name: _load_installed(name)[0] for name in scored_estimators(names) if name not in BUILTIN_ESTIMATORS}


def load_bundled_estimators(folder: Path, metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Load the estimators bundled with a version, by name.

    Args:
        folder: The version's folder.
        metadata: Name → `BundledSource.to_metadata`.

    Raises:
        ValueError: A file's checksum differs, or the file does not load.
        OSError: A file cannot be read.
    """
    estimators = {}
    for name, facts in metadata.items():
        file = folder / facts["file"]
        source = file.read_bytes()
        if hashlib.sha256(source).hexdigest() != facts["sha256"]:
            raise ValueError(f"{facts['file']}, the source of the estimator {name}: checksum mismatch")
        try:
            estimators[name] = as_estimator(_resolve(_load_module(source, str(file)), facts["path"]), name)
        except (Exception, SystemExit) as error:  # code of another package, which may raise anything
            raise ValueError(f"{facts['file']}, the source of the estimator {name}, does not load: {error}") from error
    return estimators


def _load_installed(name: str) -> tuple[BundledSource, Any]:
    """Return the source of an installed third-party estimator, and the object that this source defines when loaded on its own."""
    if name in _RESERVED:
        raise TranslatorError(
            f"an estimator cannot be named {name!r}: the translator uses this name itself",
            where=f"entry points {ESTIMATORS.entry_points}",
            next_step="name it by its path, as package.module:Class",
        )
    installed = ESTIMATORS.load(name, FittableEstimator)
    file = source_file(installed)
    path = installed.__qualname__ if isinstance(installed, type) else ESTIMATORS.object_reference(name).partition(":")[2]
    if file is None or "<locals>" in path:
        raise _cannot_bundle(name, "it is not defined at the top level of a file")
    source = file.read_bytes()
    missing = sorted(set(_missing_imports(ast.parse(source))))
    if missing:
        raise _cannot_bundle(name, f"{file} imports {', '.join(missing)} at module level")
    try:
        estimator = as_estimator(_resolve(_load_module(source, str(file)), path), name)
    except TranslatorError:
        raise
    except (Exception, SystemExit) as error:  # code of another package, which may raise anything
        raise _cannot_bundle(name, f"{file} does not load on its own: {type(error).__name__}: {error}") from error
    return BundledSource(name, path, int(estimator.version), source), estimator


def _cannot_bundle(name: str, reason: str) -> TranslatorError:
    return TranslatorError(
        f"the estimator {name} cannot be bundled with a version of the translator: {reason}",
        where=ESTIMATORS.setting,
        next_step="write it in one file that imports only torch, numpy and scalr_prod.translator at module level, and import "
        f"other libraries inside share and fit; {_SEE_DOCS}",
    )


def _load_module(source: bytes, file: str) -> ModuleType:
    """Load a source file as a module, once for each content; no bytecode file is written."""
    name = f"scalr_prod_estimator_{hashlib.sha256(source).hexdigest()[:16]}"
    with _lock:
        if name not in sys.modules:
            module = ModuleType(name)
            module.__file__ = file
            sys.modules[name] = module  # dataclasses look up their module there
            try:
                exec(compile(source, file, "exec"), vars(module))  # noqa: S102 - the user's own estimator, identified by its checksum
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]


def _resolve(module: ModuleType, path: str) -> Any:
    value: Any = module
    for name in filter(None, path.split(".")):
        value = getattr(value, name)
    return value


def _missing_imports(tree: ast.AST) -> Iterator[str]:
    """Yield the module-level imports that the serving environment lacks. Imports inside ``try`` are optional, and skipped."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if not _is_available(alias.name))
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            names = [f"{name}.{alias.name}" for alias in node.names] if name == "scalr_prod" else [name]
            yield from (target for target in names if not _is_available(target))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _missing_imports(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try):
            yield from _missing_imports(node)


def _is_available(name: str) -> bool:
    root = name.partition(".")[0]
    if root == "scalr_prod":
        return name in _IMPORTABLE or name.startswith("scalr_prod.translator.")
    return root in _AVAILABLE or root in sys.stdlib_module_names
