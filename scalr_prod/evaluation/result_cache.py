# SPDX-License-Identifier: Apache-2.0
"""Cache of evaluation results on disk, so that a repeated command resumes an interrupted evaluation.

A result is a file in the isolated home of its split, named by a digest of everything that it depends on: training events, test events,
settings, code, versions of the libraries that fit models, and the request (family, arm, hyperparameters, seed). Any change gives another
name, and the result is computed again. Files are written atomically.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
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
from scalr_prod.translator import target_weighting
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.evaluation.split import EvaluationSplit


logger = logging.getLogger(__name__)

Value = TypeVar("Value")

#: Libraries that fit or score models; another version may round differently.
_LIBRARIES: Final = ("implicit", "lightgbm", "numpy", "scipy", "torch")
#: Settings that a result depends on. Grids, models, seeds and windows select results, but do not change any of them.
_DIGESTED_SECTIONS: Final = ("histories", "translator", "generation", "quality", "training_set")
_DIGESTED_DOWNSTREAM_KEYS: Final = ("k", "seed", "sparse_below", "threads")
_DIGESTED_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_ITEMS, Table.TARGET_ITEMS)


@dataclass(frozen=True)
class CachedRecord:
    """A result as stored on disk: plain JSON values, and arrays by name."""

    facts: Any
    arrays: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Codec(Generic[Value]):
    """Conversion of one kind of result to a record and back, without loss."""

    encode: Callable[[Value], CachedRecord]
    decode: Callable[[CachedRecord], Value]


#: Plain JSON values.
JSON_CODEC: Final[Codec[Any]] = Codec(lambda facts: CachedRecord(facts, {}), lambda record: record.facts)
#: One array.
ARRAY_CODEC: Final[Codec[Any]] = Codec(
    lambda array: CachedRecord(None, {"array": array}), lambda record: record.arrays["array"]
)


def outcome_codec(evaluator: SplitEvaluator) -> Codec[Outcome]:
    """Return the codec of test outcomes; labelled rows are not stored, but taken from the evaluator."""

    def encode(outcome: Outcome) -> CachedRecord:
        probability = {} if outcome.predictions is None else {"probability": outcome.predictions.probability}
        facts = {"exposure": outcome.exposure, "negatives": outcome.negatives}
        return CachedRecord(facts, vars(outcome.ranking) | probability)

    def decode(record: CachedRecord) -> Outcome:
        facts, arrays = record.facts, record.arrays
        predictions = None
        if "probability" in arrays:
            predictions = CalibratedPredictions(evaluator.labelled_rows(facts["negatives"]), arrays["probability"])
        ranking = Ranking(**{field.name: arrays[field.name] for field in fields(Ranking)})
        return Outcome(ranking, facts["exposure"], predictions, facts["negatives"])

    return Codec(encode, decode)


class ResultCache:
    """Cached results of one split.

    Attributes:
        fingerprint: Digest of what all results depend on; empty for a cache that stores nothing.

    Args:
        folder: Folder of the files, or None if nothing is stored.
        fingerprint: See above.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint

    @classmethod
    def from_split(cls, split: EvaluationSplit) -> ResultCache:
        """Open the cache in the split's isolated home."""
        return cls(
            split.settings.home / "kept",
            _digest([_table_digests(split), _test_data_digests(split), _computation_identity(split)]),
        )

    def get_or_compute(self, key: tuple[Any, ...], compute: Callable[[], Value], codec: Codec[Value]) -> Value:
        """Return the cached result of a key, computing and storing it if needed.

        Args:
            key: The request, as plain JSON values.
            compute: Computes the result.
            codec: Conversion to and from the stored form.

        Raises:
            LakeError: The result cannot be written: no permission, or no space.
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{_digest([self.fingerprint, key])}.npz"
        record = _read_record(path)
        if record is not None:
            return codec.decode(record)
        result = compute()
        _write_record(path, codec.encode(result))
        return result


#: Stores nothing.
NULL_CACHE: Final = ResultCache(None, "")


def family_source_digest(family: str) -> str:
    """Return the digest of the module of a family's class, so that an edited custom model counts as another model."""
    return source_digest(MODELS.load(family, DownstreamModel))


def _read_record(path: Path) -> CachedRecord | None:
    """Return a file's record; None if the file is missing or unreadable."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return CachedRecord(json.loads(str(arrays.pop("facts"))), arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("the cached result %s cannot be read and is computed again: %s", path, error)
        return None


def _write_record(path: Path, record: CachedRecord) -> None:
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(record.facts)), **record.arrays}
    with translate_disk_errors(path.parent), atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _table_digests(split: EvaluationSplit) -> list[str]:
    """Return a digest of the rows of each table that was copied into the isolated home."""
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
    """Return digests of the test users, their items, and the held-out pairs that are excluded from negatives."""
    pairs = (getattr(matrix, part) for matrix in (split.relevant, split.held_out) for part in ("indptr", "indices"))
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (split.users, split.hidden, *pairs)]
    return [split.cutoff.isoformat(), *digests]


def _computation_identity(split: EvaluationSplit) -> dict[str, Any]:
    """Return the settings, code digests and library versions that results depend on."""
    settings = split.settings
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in _DIGESTED_SECTIONS}
    custom = [name for name in settings.translator.estimators if name not in {"popularity", *ESTIMATORS.builtin}]
    return {
        **sections,
        "target_events": asdict(target_weighting(settings)),
        "downstream": {name: getattr(settings.downstream, name) for name in _DIGESTED_DOWNSTREAM_KEYS},
        "estimators": {name: source_digest(ESTIMATORS.load(name, object)) for name in custom},
        "code": _package_digest(),
        "versions": {"scalr_prod": __version__} | {name: _library_version(name) for name in _LIBRARIES},
    }


@functools.cache
def _package_digest() -> str:
    """Return the digest of the package's source."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _library_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _HashingSink:
    """A writable file object that only updates a digest."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, block: Any) -> int:
        """Update the digest, and return the number of bytes."""
        self.digest.update(block)
        return len(block)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Do nothing: the digest stays readable."""
