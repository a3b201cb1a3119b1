# SPDX-License-Identifier: Apache-2.0
"""Registry of translator versions: each version is an immutable folder ``<home>/models/translator/<N>/``.

It holds the tensors (``translator.safetensors``), their description and metrics (``manifest.json``), the vocabularies (two Parquet files),
and the source of each estimator of another package (``estimator_*.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.hashing import file_sha256
from scalr_prod.core.id_index import IdIndex
from scalr_prod.errors import TranslatorError, TranslatorNotFound
from scalr_prod.workspace import move_into_place, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from scalr_prod.config import Settings


WEIGHTS_FILE: Final = "translator.safetensors"
MANIFEST_FILE: Final = "manifest.json"
SOURCE_ITEMS_FILE: Final = "source_items.parquet"
TARGET_ITEMS_FILE: Final = "target_items.parquet"


@dataclass(frozen=True)
class ItemVocabulary:
    """Vocabularies of both domains: item ids, and the indices that `TranslatorModule` uses.

    Attributes:
        source_ids: [n_source]. Source item ids by index, from index 1.
        all_target_ids: [n_target]. Target item ids by index, from index 0, in order of first appearance.
        first_seen: int64 [n_target], ascending. Time of each item's first event, microseconds since the epoch.
        count: int64 [n_target]. Number of each item's target events in training.
        value: float64 [n_target]. The catalogue's value of each item; its count if the catalogue has no values.
    """

    source_ids: pa.Array
    all_target_ids: pa.Array
    first_seen: NDArray[np.int64]
    count: NDArray[np.int64]
    value: NDArray[np.float64]

    def source_index(self, ids: pa.Array | Sequence[int | str] | NDArray[Any]) -> NDArray[np.int32]:
        """Return the index of each source item id: int32 [N], 0 for unknown ids."""
        return self._source_index.positions(ids) + np.int32(1)

    def target_index(self, ids: pa.Array | Sequence[int | str] | NDArray[Any]) -> NDArray[np.int32]:
        """Return the index of each target item id: int32 [N], -1 for unknown ids."""
        return self._target_index.positions(ids)

    @cached_property
    def _source_index(self) -> IdIndex:
        return IdIndex(self.source_ids)

    @cached_property
    def _target_index(self) -> IdIndex:
        return IdIndex(self.all_target_ids)

    def target_ids(self, index: NDArray[np.int32]) -> pa.Array:
        """Return the ids of target indices, int32 [N]: [N], null for -1."""
        import pyarrow as pa

        return self.all_target_ids.take(pa.array(index, mask=np.asarray(index) < 0))


@dataclass(frozen=True)
class TranslatorVersion:
    """A version without its weights.

    Attributes:
        version: Number of the version.
        path: Folder of the version.
        sha256: Checksum of the weights' file.
        trained_until: End of the training data, exclusive: no later event, and none that was known only later, was used (UTC).
        folds: Number of folds, each of which has a parameter set in addition to set ``-1``.
        manifest: Content of ``manifest.json``.
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
            TranslatorError: A file is missing or unreadable.
        """
        import pyarrow.parquet as pq

        try:
            source = pq.read_table(self.path / SOURCE_ITEMS_FILE)
            target = pq.read_table(self.path / TARGET_ITEMS_FILE)
        except OSError as error:
            raise TranslatorError(
                f"the version's vocabulary cannot be read: {error}",
                where=str(self.path),
                next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
            ) from error
        return ItemVocabulary(
            source_ids=source["item_id"].combine_chunks(),
            all_target_ids=target["item_id"].combine_chunks(),
            **{name: target[name].to_numpy() for name in ("first_seen", "count", "value")},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest and the folder."""
        return self.manifest | {"path": str(self.path)}


def models_dir(home: Path) -> Path:
    """Return the folder of all versions."""
    return home / "models" / "translator"


def load_version(settings: Settings, version: int | None = None) -> TranslatorVersion:
    """Load a version without its weights.

    Args:
        settings: The project's settings.
        version: Number of the version; default: the latest.

    Raises:
        TranslatorNotFound: The version does not exist, or there is none; lists the existing ones.
        TranslatorError: The manifest is unreadable; or the version contains the source code of an estimator, which would run when it is
            loaded, and the ledger has no record that this project trained it.
    """
    numbers = version_numbers(settings.home)
    if not numbers:
        raise TranslatorNotFound(
            "no translator has been trained yet", where=str(models_dir(settings.home)), next_step="run: scalr translator train"
        )
    version = numbers[-1] if version is None else version
    if version not in numbers:
        raise TranslatorNotFound(
            f"translator version {version} does not exist; existing versions: {', '.join(map(str, numbers))}",
            where=str(models_dir(settings.home)),
            next_step="pass an existing version with --version",
        )
    loaded = _read_version(models_dir(settings.home) / str(version))
    if not _is_trusted(settings, loaded):
        raise TranslatorError(
            f"version {version} carries the source of an estimator, which would run when it is loaded, but the ledger has no record "
            "that it was trained here",
            where=str(loaded.path),
            next_step="train again: scalr translator train; or use the ledger that the version was recorded in",
        )
    return loaded


def resolve_version(settings: Settings, version: int | None) -> TranslatorVersion:
    """Load a version as `load_version` does; if this project lacks it, name the projects that have it in the error.

    Raises:
        TranslatorNotFound: The version does not exist, or there is none.
        TranslatorError: The manifest is unreadable, or the version is not trusted.
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
    """Return the latest trusted version that was trained from the same inputs, or None."""
    matches = (version for version in _versions(settings) if version.manifest.get("fingerprint") == fingerprint)
    return next((version for version in matches if _is_trusted(settings, version)), None)


def find_trained_between(settings: Settings, after: datetime, until: datetime) -> list[TranslatorVersion]:
    """Return the trusted versions that were trained until a time in ``(after, until]``, the latest time first, then the latest version."""
    found = [
        version for version in _versions(settings) if after < version.trained_until <= until and _is_trusted(settings, version)
    ]
    return sorted(found, key=lambda version: version.trained_until, reverse=True)


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
        tensors: Tensors by name.
        metadata: Metadata of the weights' file.
        manifest: Content of ``manifest.json`` without ``version`` and ``sha256``, which are added.
        vocabulary: Vocabularies of both domains.
        sources: File name → source code of estimators of other packages.

    Returns:
        The new version; the existing one if another process has trained the same inputs meanwhile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock
    from safetensors.torch import save_file

    from scalr_prod.translator.module import METADATA_KEY

    root = models_dir(settings.home)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"), staging_folder(settings, "translator") as staged:
        existing = find_by_fingerprint(settings, manifest["fingerprint"])
        if existing is not None:
            return existing
        folder = staged / "version"
        folder.mkdir()
        # A single entry: safetensors writes several in arbitrary order, but the same training must give the same bytes.
        file_metadata = {METADATA_KEY: json.dumps(metadata, sort_keys=True)}
        save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, folder / WEIGHTS_FILE, file_metadata)
        for name, source in sources.items():
            (folder / name).write_bytes(source)
        sha256 = file_sha256(folder / WEIGHTS_FILE)
        pq.write_table(pa.table({"item_id": vocabulary.source_ids}), folder / SOURCE_ITEMS_FILE)
        columns = {"item_id": vocabulary.all_target_ids} | {
            name: getattr(vocabulary, name) for name in ("first_seen", "count", "value")
        }
        pq.write_table(pa.table(columns), folder / TARGET_ITEMS_FILE)
        version = max([*version_numbers(settings.home), *_recorded_checksums(settings)], default=0) + 1
        content = {"version": version, **manifest, "sha256": sha256}
        (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        move_into_place(folder, root / str(version))
    return _read_version(root / str(version))


def _versions(settings: Settings) -> Iterator[TranslatorVersion]:
    """Read the versions, the latest first."""
    folder = models_dir(settings.home)
    return (_read_version(folder / str(number)) for number in reversed(version_numbers(settings.home)))


def _is_trusted(settings: Settings, version: TranslatorVersion) -> bool:
    """Return whether a version has no bundled source code, or the ledger has the checksum of its weights.

    The metadata in the weights' file include the checksums of the sources.
    """
    return not version.manifest.get("carried") or _recorded_checksums(settings).get(version.version) == version.sha256


def _recorded_checksums(settings: Settings) -> dict[int, str]:
    """Return the checksum of the weights of each version in the ledger."""
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        return {row.version: row.sha256 for row in ledger.models.find()}


def version_numbers(home: Path) -> list[int]:
    """Return the numbers of the complete versions, ascending."""
    root = models_dir(home)
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal() and (path / MANIFEST_FILE).is_file())


def _read_version(folder: Path) -> TranslatorVersion:
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
            f"the version's manifest cannot be read: {error}",
            where=str(folder / MANIFEST_FILE),
            next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
        ) from error


def record_version(settings: Settings, version: TranslatorVersion, *, only_if_missing: bool = False) -> None:
    """Record a version in the ledger.

    Args:
        settings: The project's settings.
        version: The version.
        only_if_missing: Leave a record of this number as it is.

    Raises:
        LedgerError: Another version is recorded under this number.
    """
    from scalr_prod.ledger import Ledger

    with Ledger.open(settings) as ledger:
        if only_if_missing and any(known.version == version.version for known in ledger.models.find()):
            return
        ledger.models.record(
            version.version,
            path=str(version.path),
            sha256=version.sha256,
            fingerprint=version.manifest["fingerprint"],
            trained_until=version.trained_until,
            metrics=version.manifest["metrics"],
        )
