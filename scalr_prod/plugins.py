# SPDX-License-Identifier: Apache-2.0
"""Registry of plug-ins: built-in and third-party estimators, gate rules, downstream models, log readers and stage hooks.

The settings name a plug-in by its name or as ``module:object``. Names come from `PluginGroup.builtin`, which needs no installed metadata
(the serving environment may run this package from a plain folder), and from the entry points ``scalr_prod.<group>`` of the installed
distributions. Nothing is imported, and no metadata read, before a plug-in is used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import EvaluationError, QualityError, ScalrError, TranslatorError, UnreadableInput

if TYPE_CHECKING:
    from collections.abc import Mapping


_NAME: Final = re.compile(r"[A-Za-z_][\w.-]*")
_PLACE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class PluginGroup:
    """Plug-ins of one kind.

    Attributes:
        name: The group; its entry points are ``scalr_prod.<name>``.
        kind: The kind's name in messages.
        setting: The settings key that names them.
        error: The error to raise where one cannot be used.
        builtin: Built-in ones: name → ``module:object``, or ``module`` where the module is the object.
    """

    name: str
    kind: str
    setting: str
    error: type[ScalrError]
    builtin: Mapping[str, str]

    @property
    def entry_points(self) -> str:
        """The entry-point group."""
        return f"scalr_prod.{self.name}"

    def names(self) -> list[str]:
        """List all names: built-in ones first, then those of other packages."""
        return [*self.builtin, *sorted(set(self._others()) - set(self.builtin))]

    def find_problem(self, name: str) -> str | None:
        """Return why the settings cannot use this name, in a sentence, or None if they can. Imports nothing."""
        if _PLACE.fullmatch(name) or name in self.builtin or (":" not in name and name in self._others()):
            return None
        return f"there is no {self.kind} {name!r}; there are: {', '.join(self.names())}, or name one as module:object"

    def object_reference(self, name: str) -> str:
        """Return where a plug-in is defined, as ``module:object`` or ``module``.

        Raises:
            ScalrError: No plug-in, or more than one, has this name.
        """
        if ":" in name:
            return name
        found = [*([self.builtin[name]] if name in self.builtin else []), *self._others().get(name, ())]
        if not found:
            raise self.error(
                f"there is no {self.kind} {name!r}; there are: {', '.join(self.names())}",
                where=self.setting,
                next_step="name one of those, or one of your own as package.module:Class",
            )
        if len(found) > 1:
            raise self.error(
                f"{len(found)} plug-ins have the name {name!r}: {' and '.join(found)}",
                where=f"entry points {self.entry_points}",
                next_step="rename or uninstall all but one of them",
            )
        return found[0]

    def load(self, name: str, protocol: type) -> Any:
        """Import a plug-in and return its object, usually a class.

        Args:
            name: A name or ``module:object``, as in the settings.
            protocol: The protocol that it must implement.

        Raises:
            ScalrError: No plug-in, or more than one, has this name; it cannot be imported; or it lacks a member of the protocol.
        """
        module, colon, path = self.object_reference(name).partition(":")
        try:
            found = importlib.import_module(module)
            for part in path.split(".") if colon else ():
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise self.error(
                f"there is no {self.kind} {name!r} ({error}); those with a name are: {', '.join(self.names())}",
                where=self.setting,
                next_step="name one of those, or one of your own as package.module:Class, on the Python path",
            ) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # code of another package, which may raise anything, SystemExit too
            raise self.error(
                f"the {self.kind} {name} cannot be imported: {type(error).__name__}: {error}",
                where=module,
                next_step="correct the module, or leave it out",
            ) from error
        self.check_protocol(found, name, protocol)
        return found

    def check_protocol(self, found: Any, name: str, protocol: type) -> None:
        """Check that a plug-in has every member of a protocol.

        Raises:
            ScalrError: It lacks one; the message names it.
        """
        for member, signature in _members(protocol).items():
            value = getattr(found, member, None)
            if value is None or (signature.endswith(")") and not callable(value)):
                kind = "method" if signature.endswith(")") else "attribute"
                raise self.error(
                    f"the {self.kind} {name} has no {kind} {signature}",
                    where=self.setting,
                    next_step=f"give it all parts of {protocol.__module__}.{protocol.__name__}: see docs/guides/plugins.md",
                )

    def _others(self) -> Mapping[str, tuple[str, ...]]:
        return _registered(self.entry_points, tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _registered(group: str, _path: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Read the entry points of a group: name → object references. Cached per Python path (10 ms, and 40 ms for the import)."""
    from importlib.metadata import entry_points

    found: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group=group):
        if not _NAME.fullmatch(point.name):  # not usable in settings
            continue
        found[point.name] = (*found.get(point.name, ()), point.value.partition("[")[0].strip())
    return found


def source_file(found: Any) -> Path | None:
    """Return the source file of a plug-in (a class, an instance of one, or a module), or None if it has none."""
    home = found if inspect.ismodule(found) or isinstance(found, type) else type(found)
    module = home if inspect.ismodule(home) else sys.modules.get(home.__module__)
    file = getattr(module, "__file__", None)
    return Path(file) if file is not None and file.endswith(".py") else None


def source_digest(found: Any) -> str:
    """Return the SHA-256 of a plug-in's source file, in hex; that of no bytes if there is none."""
    file = source_file(found)
    return hashlib.sha256(file.read_bytes() if file is not None and file.is_file() else b"").hexdigest()


def _members(protocol: type) -> dict[str, str]:
    """Return the public members of a protocol with their signatures, such as ``score(users)``."""
    signatures: dict[str, str] = {}
    for base in reversed(protocol.__mro__):
        signatures |= {name: name for name in inspect.get_annotations(base) if not name.startswith("_")}
        for name, member in vars(base).items():
            if not name.startswith("_") and inspect.isfunction(member):
                arguments = [name for name in inspect.signature(member).parameters if name != "self"]
                signatures[name] = f"{name}({', '.join(arguments)})"
    return signatures


ESTIMATORS: Final = PluginGroup(
    "estimators",
    "estimator",
    "[translator] estimators",
    TranslatorError,
    {
        "frequency": "scalr_prod.translator.estimators.frequency",
        "topics": "scalr_prod.translator.estimators.topics",
        "linear": "scalr_prod.translator.estimators.linear",
        "factorisation": "scalr_prod.translator.estimators.factorisation",
        "sequential": "scalr_prod.translator.estimators.sequential",
    },
)
RULES: Final = PluginGroup(
    "rules",
    "gate rule",
    "[quality] rules",
    QualityError,
    {
        "rows": "scalr_prod.quality.rules:RowRules",
        "runs": "scalr_prod.quality.rules:RunRules",
        "information": "scalr_prod.quality.information:InformationRules",
        "calibration": "scalr_prod.quality.calibration:CalibrationRules",
        "drift": "scalr_prod.quality.drift:DriftRules",
        "privacy": "scalr_prod.quality.privacy_rules:PrivacyRules",
    },
)
MODELS: Final = PluginGroup(
    "models",
    "model",
    "[downstream] models",
    EvaluationError,
    {
        "als": "scalr_prod.evaluation.models.als:ImplicitAls",
        "sasrec": "scalr_prod.evaluation.models.sasrec:SasRec",
        "two_tower": "scalr_prod.evaluation.models.two_tower:TwoTower",
        "feature_ranker": "scalr_prod.evaluation.models.feature_ranker:FeatureRanker",
        "stacked_ranker": "scalr_prod.evaluation.models.stacked_ranker:StackedRanker",
    },
)
READERS: Final = PluginGroup(
    "readers",
    "log reader",
    "[domains.*] format",
    UnreadableInput,
    {
        "parquet": "scalr_prod.ingest.sources.files:PARQUET",
        "csv": "scalr_prod.ingest.sources.files:CSV",
        "jsonl": "scalr_prod.ingest.sources.files:JSON_LINES",
        "delta": "scalr_prod.ingest.sources.lakehouse:Delta",
        "iceberg": "scalr_prod.ingest.sources.lakehouse:Iceberg",
    },
)
STAGE_HOOKS: Final = PluginGroup(
    "stage_hooks",
    "stage hook",
    "entry points scalr_prod.stage_hooks",
    ScalrError,
    {
        "lineage": "scalr_prod.integrations.lineage:LineageHook",
        "metrics": "scalr_prod.integrations.metrics.exporter:MetricsHook",
    },
)
