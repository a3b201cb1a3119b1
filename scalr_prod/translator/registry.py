# SPDX-License-Identifier: Apache-2.0
"""Registry of translator versions: a version is the folder ``<home>/models/translator/<N>/``, written once and never changed.

``translator.safetensors`` holds every tensor, ``manifest.json`` what it is, two Parquet files the vocabularies, and ``estimator_*.py`` the
source of each estimator that is not ours.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.id_index import index_in
from scalr_prod.errors import TranslatorError, TranslatorNotFound
from scalr_prod.workspace import move_into_place, staging_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from scalr_prod.config import Settings

__all__ = [
    "ItemVocabulary",
    "TranslatorVersion",
    "find_by_fingerprint",
    "load_version",
    "models_dir",
    "resolve_version",
    "version_numbers",
    "write_version",
]

WEIGHTS_FILE: Final = "translator.safetensors"
MANIFEST_FILE: Final = "manifest.json"
SOURCE_ITEMS_FILE: Final = "source_items.parquet"
TARGET_ITEMS_FILE: Final = "target_items.parquet"


@dataclass(frozen=True)
class ItemVocabulary:
    """Item ids and the indices that the module knows them by.

    Attributes:
        source_ids: [n_source], index 1 first.
        all_target_ids: [n_target], index 0 first, in order of first appearance.
        first_seen: int64 [n_target]. Microseconds since the epoch, ascending.
        count: int64 [n_target]. Target events known in training.
        value: float64 [n_target]. The catalogue's value of each item; where the catalogue gives none, its count.
    """

    source_ids: pa.Array
    all_target_ids: pa.Array
    first_seen: NDArray[np.int64]
    count: NDArray[np.int64]
    value: NDArray[np.float64]

    def source_index(self, ids: pa.Array | Sequence[int | str] | NDArray[Any]) -> NDArray[np.int32]:
        """Index of each source item id: int32 [N], 0 where it is unknown."""
        return index_in(ids, self.source_ids) + np.int32(1)

    def target_index(self, ids: pa.Array | Sequence[int | str] | NDArray[Any]) -> NDArray[np.int32]:
        """Index of each target item id: int32 [N], -1 where it is unknown."""
        return index_in(ids, self.all_target_ids)

    def target_ids(self, index: NDArray[np.int32]) -> pa.Array:
        """Ids of target indices; null for -1."""
        import pyarrow as pa

        return self.all_target_ids.take(pa.array(index, mask=np.asarray(index) < 0))


@dataclass(frozen=True)
class TranslatorVersion:
    """What is known of a version without loading its weights.

    Attributes:
        version: Its number.
        path: Its folder.
        sha256: Of its weights' file.
        trained_until: Nothing from this instant on, or known only later, has shaped it (UTC).
        folds: Parameter sets besides ``-1``.
        manifest: All of manifest.json.
    """

    version: int
    path: Path
    sha256: str
    trained_until: datetime
    folds: int
    manifest: dict[str, Any] = field(repr=False)

    def vocabulary(self) -> ItemVocabulary:
        """Read the vocabularies.

        Raises:
            TranslatorError: Their files are not there, or cannot be read.
        """
        import pyarrow.parquet as pq

        try:
            source = pq.read_table(self.path / SOURCE_ITEMS_FILE)
            target = pq.read_table(self.path / TARGET_ITEMS_FILE)
        except OSError as error:
            raise TranslatorError(
                f"a vocabulary cannot be read: {error}",
                where=str(self.path),
                next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
            ) from error
        return ItemVocabulary(
            source_ids=source["item_id"].combine_chunks(),
            all_target_ids=target["item_id"].combine_chunks(),
            **{name: target[name].to_numpy() for name in ("first_seen", "count", "value")},
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest, with the folder."""
        return self.manifest | {"path": str(self.path)}


def models_dir(settings: Settings) -> Path:
    """Folder of all versions."""
    return settings.home / "models" / "translator"


def load_version(settings: Settings, version: int | None = None) -> TranslatorVersion:
    """A version's manifest.

    Args:
        settings: The project's settings.
        version: Its number; default: the latest.

    Raises:
        TranslatorNotFound: There is none, or not this one; lists those that are there.
        TranslatorError: Its manifest cannot be read; or it carries the source of an estimator, which runs when it is loaded, and the
            ledger has no record that this project trained it.
    """
    numbers = version_numbers(settings)
    if not numbers:
        raise TranslatorNotFound(
            "no translator has been trained yet", where=str(models_dir(settings)), next_step="run: scalr translator train"
        )
    version = numbers[-1] if version is None else version
    if version not in numbers:
        raise TranslatorNotFound(
            f"there is no translator version {version}; there are: {', '.join(map(str, numbers))}",
            where=str(models_dir(settings)),
            next_step="name one of those with --version",
        )
    found = _read(models_dir(settings) / str(version))
    if not _trusted(settings, found):
        raise TranslatorError(
            f"version {version} carries the source of an estimator, which runs when it is loaded, and the ledger has no record that "
            "it was trained here",
            where=str(found.path),
            next_step="train again: scalr translator train; or use the ledger that the version was recorded in",
        )
    return found


def resolve_version(settings: Settings, version: int | None) -> TranslatorVersion:
    """As `load_version`, for a driver: where this project has no such version, the error names those that have one.

    Raises:
        TranslatorNotFound: There is none, or not this one.
        TranslatorError: Its manifest cannot be read.
    """
    try:
        return load_version(settings, version)
    except TranslatorNotFound as error:
        if version is not None:
            from scalr_prod.ledger import Ledger

            with Ledger.open(settings) as ledger:
                error.found += ledger.models.describe_other_owners(version)
        raise


def find_by_fingerprint(settings: Settings, fingerprint: str) -> TranslatorVersion | None:
    """The version that was trained from the same inputs, if there is one that `load_version` would load."""
    for number in reversed(version_numbers(settings)):
        found = _read(models_dir(settings) / str(number))
        if found.manifest.get("fingerprint") == fingerprint and _trusted(settings, found):
            return found
    return None


def write_version(
    settings: Settings,
    *,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str],
    manifest: dict[str, Any],
    vocabulary: ItemVocabulary,
    sources: Mapping[str, bytes],
) -> TranslatorVersion:
    """Write the next version atomically. The caller records it in the ledger.

    Args:
        settings: The project's settings.
        tensors: By name.
        metadata: Travels in the weights' file.
        manifest: Without ``version`` and ``sha256``, which are added.
        vocabulary: Written beside it.
        sources: Likewise, files of estimators of other packages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock
    from safetensors.torch import save_file

    from scalr_prod.translator.module import METADATA_KEY

    root = models_dir(settings)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"), staging_folder(settings, "translator") as staged:
        there = find_by_fingerprint(settings, manifest["fingerprint"])
        if there is not None:  # another process trained the same one meanwhile
            return there
        folder = staged / "version"
        folder.mkdir()
        # One entry: the file's writer keeps several in no fixed order, and the same training must give the same bytes.
        described = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
        save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, folder / WEIGHTS_FILE, described)
        for name, source in sources.items():
            (folder / name).write_bytes(source)
        with (folder / WEIGHTS_FILE).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        pq.write_table(pa.table({"item_id": vocabulary.source_ids}), folder / SOURCE_ITEMS_FILE)
        columns = {"item_id": vocabulary.all_target_ids} | {
            name: getattr(vocabulary, name) for name in ("first_seen", "count", "value")
        }
        pq.write_table(pa.table(columns), folder / TARGET_ITEMS_FILE)
        version = max([*version_numbers(settings), *_recorded(settings)], default=0) + 1
        content = {"version": version, **manifest, "sha256": sha256}
        (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        move_into_place(folder, root / str(version))
    return _read(root / str(version))


def _trusted(settings: Settings, found: TranslatorVersion) -> bool:
    """Whether it carries no source, or the ledger recorded its weights' checksum, which covers the sources', when it was trained."""
    return not found.manifest.get("carried") or _recorded(settings).get(found.version) == found.sha256


def _recorded(settings: Settings) -> dict[int, str]:
    """Versions that the ledger knows → the checksum of their weights."""
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return {row.version: row.sha256 for row in ledger.models.find()}


def version_numbers(settings: Settings) -> list[int]:
    """Return the numbers of all versions in the models folder, ascending."""
    root = models_dir(settings)
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal() and (path / MANIFEST_FILE).is_file())


def _read(folder: Path) -> TranslatorVersion:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        return TranslatorVersion(
            version=int(manifest["version"]),
            path=folder,
            sha256=str(manifest["sha256"]),
            trained_until=datetime.fromisoformat(manifest["trained_until"]),
            folds=int(manifest["folds"]),
            manifest=manifest,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TranslatorError(
            f"its manifest cannot be read: {error}",
            where=str(folder / MANIFEST_FILE),
            next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
        ) from error
