# SPDX-License-Identifier: Apache-2.0
"""What an evaluation has worked out, kept on disk as it comes, so that the same command goes on from there after it was stopped.

A result is a file in the isolated home of its scene, named by a digest of everything that it depends on: the events that may be
learned from, those that judge, the settings, the code, the versions of the libraries that fit models, and what was asked (family, arm,
choice, seed). Whatever changes gives another name, and the result is worked out anew. A file appears whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import zipfile
import zlib
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np

from scalr_prod.core.atomic_io import atomic_path
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.evaluation.evaluator import Outcome, SplitEvaluator
from scalr_prod.evaluation.interactions import DownstreamModel
from scalr_prod.evaluation.probabilities import CalibratedPredictions
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.lake import Lake
from scalr_prod.plugins import ESTIMATORS, MODELS, source_digest
from scalr_prod.schemas import Table
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.evaluation.split import EvaluationSplit

__all__ = [
    "ARRAY_CODEC",
    "JSON_CODEC",
    "NULL_CACHE",
    "CachedRecord",
    "Codec",
    "ResultCache",
    "family_source_digest",
    "outcome_codec",
]

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

#: What fits or scores models; another version may round otherwise.
_LIBRARIES: Final = ("implicit", "lightgbm", "numpy", "scipy", "torch")
#: Settings that decide it. Grids, models, seeds and windows say which results are asked for, not what each of them is.
_DIGESTED_SECTIONS: Final = ("histories", "translator", "generation", "quality", "training_set")
_DIGESTED_DOWNSTREAM_KEYS: Final = ("k", "seed", "sparse_below", "threads")
_DIGESTED_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS)


@dataclass(frozen=True)
class CachedRecord:
    """A result as it lies on disk: plain JSON values, and arrays by name."""

    facts: Any
    arrays: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Codec(Generic[Value]):
    """How a kind of result becomes a record, and a record a result again; the same to the bit."""

    encode: Callable[[Value], CachedRecord]
    decode: Callable[[CachedRecord], Value]


#: Plain JSON values.
JSON_CODEC: Final[Codec[Any]] = Codec(lambda facts: CachedRecord(facts, {}), lambda record: record.facts)
#: One array.
ARRAY_CODEC: Final[Codec[Any]] = Codec(
    lambda array: CachedRecord(None, {"array": array}), lambda record: record.arrays["array"]
)


def outcome_codec(evaluator: SplitEvaluator) -> Codec[Outcome]:
    """What a judge says of one fitted model."""

    def pack(one: Outcome) -> CachedRecord:
        odds = {} if one.predictions is None else {"probability": one.predictions.probability}
        return CachedRecord({"exposure": one.exposure, "negatives": one.negatives}, vars(one.ranking) | odds)

    def unpack(record: CachedRecord) -> Outcome:
        facts, arrays = record.facts, record.arrays
        odds = (
            CalibratedPredictions(evaluator.labelled_rows(facts["negatives"]), arrays["probability"])
            if "probability" in arrays
            else None
        )
        ranking = Ranking(**{field.name: arrays[field.name] for field in fields(Ranking)})
        return Outcome(ranking, facts["exposure"], odds, facts["negatives"])

    return Codec(pack, unpack)


class ResultCache:
    """Results of one scene.

    Attributes:
        fingerprint: Of what every one of them depends on; empty where nothing is kept.

    Args:
        folder: Where they are; None: nothing is kept.
        fingerprint: See above.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    @classmethod
    def from_split(cls, split: EvaluationSplit) -> ResultCache:
        """In the scene's isolated home."""
        return cls(
            split.settings.home / "kept",
            _digest([_table_digests(split), _test_data_digests(split), _computation_identity(split)]),
        )

    def get_or_compute(self, key: tuple[Any, ...], compute: Callable[[], Value], codec: Codec[Value]) -> Value:
        """A result: found, or made and kept.

        Args:
            key: What is asked, as plain JSON values; the name of a family of models stands for its code as well.
            compute: Works it out.
            codec: How it lies on disk.

        Raises:
            LakeError: It cannot be written: no permission, or no space.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{_digest([self.fingerprint, key])}.npz"
        found = _read_record(path)
        if found is not None:
            return codec.decode(found)
        made = compute()
        _write_record(path, codec.encode(made))
        return made


#: Keeps nothing.
NULL_CACHE: Final = ResultCache(None, "")


def family_source_digest(family: str) -> str:
    """Digest of the module of a family's class: a model of your own that was edited is another model."""
    return source_digest(MODELS.load(family, DownstreamModel))


def _read_record(path: Path) -> CachedRecord | None:
    """A file's record; None where there is none, or none that can be read."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return CachedRecord(json.loads(str(arrays.pop("facts"))), arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("what was kept at %s cannot be read and is worked out anew: %s", path, error)
        return None


def _write_record(path: Path, record: CachedRecord) -> None:
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(record.facts)), **record.arrays}
    with translate_disk_errors(path.parent), atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _table_digests(split: EvaluationSplit) -> list[str]:
    """Digest of each table that the isolated home was given, row by row."""
    import pyarrow as pa

    lake, digests = Lake.open(split.settings), []
    for table in _DIGESTED_TABLES:
        sink = _HashingSink()
        rows = lake.read(table)
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), rows.schema.remove_metadata()) as stream:
            stream.write_table(rows.replace_schema_metadata(None).combine_chunks())
        digests.append(sink.digest.hexdigest())
    return digests


def _test_data_digests(split: EvaluationSplit) -> list[str]:
    """Digest of the test users and their items, and of what no negative may be."""
    pairs = (getattr(matrix, part) for matrix in (split.relevant, split.held_out) for part in ("indptr", "indices"))
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (split.users, split.hidden, *pairs)]
    return [split.cutoff.isoformat(), *digests]


def _computation_identity(split: EvaluationSplit) -> dict[str, Any]:
    """Settings, code, and versions of libraries."""
    settings = split.settings
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in _DIGESTED_SECTIONS}
    carried = [name for name in settings.translator.estimators if name not in {"popularity", *ESTIMATORS.builtin}]
    return {
        **sections,
        "downstream": {name: getattr(settings.downstream, name) for name in _DIGESTED_DOWNSTREAM_KEYS},
        "estimators": {name: source_digest(ESTIMATORS.load(name, object)) for name in carried},
        "code": _package_digest(),
        "versions": {"scalr_prod": __version__} | {name: _library_version(name) for name in _LIBRARIES},
    }


@functools.cache
def _package_digest() -> str:
    """Digest of the package."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _library_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _HashingSink:
    """A file that keeps the digest of what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, block: Any) -> int:
        """Number of bytes."""
        self.digest.update(block)
        return len(block)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The digest stays."""
