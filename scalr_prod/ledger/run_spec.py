# SPDX-License-Identifier: Apache-2.0
"""Specification of a run: everything that determines its rows, and the id derived from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import LedgerError, RunNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


#: Folders of a run that are useless once it has ended or the tables that it is pinned to are gone. Its spec, metrics and verdict stay, and
#: so do the accepted rows: a run that was rolled back may be published again.
#: ``asked`` is the name of ``shards`` in earlier versions.
STAGING_FOLDERS: Final = ("shards", "asked", "parts", "candidates")

_RUN_ID: Final = re.compile(r"run_[0-9a-f]{16}")
_INSTANTS: Final = ("start", "end", "as_of", "translator_trained_until")


@dataclass(frozen=True)
class RunWindow:
    """The window of a run.

    Attributes:
        start: Its first instant (UTC).
        end: The instant after its last (UTC).
        as_of: Nothing that became known later is read (UTC).
    """

    start: datetime
    end: datetime
    as_of: datetime


@dataclass(frozen=True)
class TranslatorPin:
    """The version of the translator that a run uses.

    Attributes:
        version: Its number.
        sha256: Checksum of its weights.
        trained_until: The last instant in its training data (UTC).
    """

    version: int
    sha256: str
    trained_until: datetime


@dataclass(frozen=True)
class RunSpec(Jsonable):
    """Everything that determines the rows of a run; created by `create`, which derives the id.

    Attributes:
        run_id: ``run_`` and 16 hex digits of the SHA-256 of the other fields' canonical JSON.
        mode: ``causal`` or ``backfill``.
        start: The window's first instant (UTC).
        end: The instant after the window's last (UTC).
        as_of: Nothing that became known later is read (UTC).
        seed: Random seed of the sampling.
        translator_version: Version of the translator.
        translator_sha256: Checksum of its weights.
        translator_trained_until: The last instant in its training data (UTC).
        table_versions: Delta version of every table that is read.
        settings: The sections of the settings that affect rows.
    """

    run_id: str
    mode: Literal["causal", "backfill"]
    start: datetime
    end: datetime
    as_of: datetime
    seed: int
    translator_version: int
    translator_sha256: str
    translator_trained_until: datetime
    table_versions: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        *,
        mode: Literal["causal", "backfill"],
        window: RunWindow,
        seed: int,
        translator: TranslatorPin,
        table_versions: Mapping[str, int],
        settings: Mapping[str, Any],
    ) -> Self:
        """Create a spec and derive its id. ``settings`` holds plain JSON values; timestamps are time-zone aware.

        Raises:
            ValueError: A naive timestamp, or an empty window.
        """
        spec = cls(
            run_id="",
            mode=mode,
            start=_utc(window.start),
            end=_utc(window.end),
            as_of=_utc(window.as_of),
            seed=int(seed),
            translator_version=int(translator.version),
            translator_sha256=translator.sha256,
            translator_trained_until=_utc(translator.trained_until),
            table_versions=dict(table_versions),
            settings=json.loads(json.dumps(dict(settings))),
        )
        if spec.start >= spec.end:
            raise ValueError(f"the window [{spec.start}, {spec.end}) is empty")
        digest = hashlib.sha256(spec.canonical_json().encode()).hexdigest()
        return cls.from_json(spec.to_json() | {"run_id": f"run_{digest[:16]}"})

    def canonical_json(self) -> str:
        """Return the JSON text that the id is a hash of: every field but the id, sorted keys, times in UTC."""
        content = self.to_json()
        del content["run_id"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; times as ISO 8601 in UTC."""
        return super().to_json() | {name: getattr(self, name).astimezone(UTC).isoformat() for name in _INSTANTS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Parse the result of `to_json`.

        Raises:
            LedgerError: A field is missing, unknown or of the wrong type.
        """
        values = dict(content)
        try:
            for name in _INSTANTS:
                values[name] = _utc(datetime.fromisoformat(values[name]))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"invalid run specification ({error})",
                where=str(values.get("run_id", "run.json")),
                next_step="plan the run again: scalr generate",
            ) from error


def check_run_id(run_id: str) -> str:
    """Return the id if it is well-formed, and so safe in paths and SQL predicates.

    Raises:
        RunNotFound: The id is malformed.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise RunNotFound(
            f"{run_id[:80]!r} is not a run id (run_ and 16 hex digits)",
            where="run id",
            next_step="list the runs: scalr runs list",
        )
    return run_id


def run_folder(home: Path, run_id: str) -> Path:
    """Return ``<home>/runs/<run_id>``: shards/, parts/, candidates/, accepted/, run.json, gate.json."""
    return home / "runs" / check_run_id(run_id)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC)
