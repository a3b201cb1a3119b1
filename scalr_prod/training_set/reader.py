# SPDX-License-Identifier: Apache-2.0
"""A version of a training set, opened: Arrow, pandas, Polars, sparse matrices, or torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import ITEM_ID, TRAIN, USER_ID
from scalr_prod.training_set.manifest import MANIFEST_FILE, check_file, list_versions, read_manifest, rows_files, verify_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    import pyarrow.dataset as ds
    from scipy import sparse

    from scalr_prod.training_set.export import DatasetFormat, ExportReport, WeightsMode
    from scalr_prod.training_set.vocabulary import IdVocabulary


@dataclass(frozen=True)
class TrainingSet:
    """One version on disk.

    Attributes:
        path: Folder of the version.
        manifest: What it was made from, its columns, counts and checksums.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None, *, check: bool = False) -> TrainingSet:
        """Open a version.

        Args:
            folder: Folder of a training set (``<home>/datasets/<name>``) or of one of its versions.
            version: Which one; default: the latest.
            check: Also compare every file with its checksum.

        Returns:
            The version; rows are read when they are asked for.

        Raises:
            TrainingSetError: There is no such version, or a file is not the one that the manifest names.
        """
        path = Path(folder)
        if not (path / MANIFEST_FILE).is_file():
            path = _version_folder(path, version)
        elif version is not None and read_manifest(path).get("version") != version:
            path = _version_folder(path.parent, version)
        manifest = read_manifest(path)
        if check:
            verify_files(path, manifest)
        return cls(path, manifest)

    @property
    def version(self) -> int:
        """Its version."""
        return int(self.manifest["version"])

    @property
    def files(self) -> list[Path]:
        """The Parquet files, in the order of the rows."""
        return [self.path / name for name in rows_files(self.manifest["files"])]

    @property
    def features(self) -> list[str]:
        """Columns that a model may read: point-in-time features, no label, no provenance."""
        return list(self.manifest["features"])

    @property
    def splits(self) -> list[str]:
        """Names of its splits by time, in order; none without ``[training_set] splits``."""
        return list(self.manifest.get("splits", ()))

    def split(self, name: str) -> TrainingSet:
        """Return one split of the set, with all of its readers.

        Rows and columns of its matrices, and the numbers of its ids, are those of the whole set (`vocabulary`), so that a model trained on
        one split can be tested on another. `seen` counts the real events of this split only.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Returns:
            The same version, restricted to the split.

        Raises:
            TrainingSetError: There is no such split.

        Example:
            >>> rows = project.training_set()  # doctest: +SKIP
            >>> model.fit(rows.split("train").matrix())  # doctest: +SKIP
            >>> relevant = rows.split("test").seen()  # doctest: +SKIP
        """
        splits = self.manifest.get("splits", {})
        if name not in splits:
            raise TrainingSetError(
                f"there is no split {name!r}"
                + (f"; there are {', '.join(splits)}" if splits else ": the set was built without splits"),
                where=str(self.path),
                next_step="name one of them" if splits else "set [training_set] splits, then run: scalr dataset build",
            )
        split, files = splits[name], self.manifest["files"]
        counts = {key: split[key] for key in ("rows", "real", "synthetic", "negatives")}
        return replace(
            self,
            manifest=self.manifest
            | counts
            | {"files": {file: files[file] for file in split["files"]}, "splits": {name: split}},
        )

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def dataset(self) -> ds.Dataset:
        """The files as a pyarrow dataset, lazily read."""
        import pyarrow.dataset as ds

        return ds.dataset([str(path) for path in self.files], format="parquet")

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Every row, in order; all columns, or some.

        A read that leaves out ``weight`` warns if a model could be trained on it: users and items, or labels and features, of real and
        synthetic rows. A read with ``is_synthetic`` does not warn.

        Args:
            columns: Their names; default: all.

        Returns:
            A row for each label.
        """
        return self.dataset().to_table(columns=self._chosen(columns))

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """Every row, in order, as a pandas frame.

        Args:
            columns: Their names; default: all.

        Returns:
            A ``pandas.DataFrame``.
        """
        return self.dataset().to_table(columns=self._chosen(columns)).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """Every row, in order, as a Polars frame.

        Args:
            columns: Their names; default: all.

        Returns:
            A ``polars.DataFrame``.

        Raises:
            TrainingSetError: Polars is not installed.
        """
        try:
            import polars as pl
        except ImportError as error:
            raise TrainingSetError(
                "Polars is not installed", where="to_polars", next_step="pip install 'scalr-prod[polars]'"
            ) from error
        return pl.read_parquet(self.files, glob=False, columns=self._chosen(columns))

    def export(
        self,
        target: str | Path,
        form: DatasetFormat = "csv",
        *,
        weights: WeightsMode | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> ExportReport:
        """Write the rows as files of other tools: user, item, time and label, or every column as Parquet.

        A tool that multiplies its loss by a weight gets every row once, with the columns ``weight`` and ``is_synthetic``. For other
        tools, rows are sampled: a row of weight w is written floor(w) times, and once more with probability w - floor(w). The expected
        loss over the file is then the weighted loss.

        Args:
            target: ``csv``: the file; ``recbole``: the folder of the data set, with ``NAME.inter``, RecBole's settings ``NAME.yaml``,
                and this report as ``export.json``; ``parquet``: the folder for ``datasets.load_dataset``, with the splits of the set and
                a card, ``README.md``.
            form: ``csv``, ``recbole`` or ``parquet``.
            weights: ``column`` or ``sample``. Default: ``sample`` for recbole, whose losses read no weight, else ``column``.
            epochs: Number of independent draws of a sample, written one after the other; more than 1 adds a column ``epoch``.
            seed: Seed of a sample. The same version, seed and epoch give the same rows.

        Returns:
            Where it was written, its rows, and for a sample the expected and the drawn number of rows.

        Raises:
            TrainingSetError: Something is there already, a file of rows is damaged, an id cannot stand in such a file, or epochs are
                requested without a sample; nothing is written then.
        """
        from scalr_prod.training_set.export import ExportOptions, export_dataset_folder, export_training_set

        options = ExportOptions(form, weights, epochs, seed)
        for name in rows_files(self.manifest["files"]):
            check_file(self.path, self.manifest, name)
        if form == "parquet":
            splits = {name: self.split(name).files for name in self.splits} or {TRAIN: self.files}
            return export_dataset_folder(splits, self.manifest, Path(target), options)
        has_negatives = bool(self.manifest.get("negatives"))
        return export_training_set(self.files, self.version, Path(target), options, has_negatives=has_negatives)

    def matrix(self, vocabulary: IdVocabulary | None = None) -> sparse.csr_matrix:
        """Summed weights of real and synthetic events: what a model of implicit feedback learns from.

        A cell is the sum of the column ``weight`` over the user's events of the item: real events count fully, synthetic ones by their
        confidence times λ. Negatives (label 0) and events of weight 0 are no cells, so a set for ``classification`` gives the same
        matrix as one for ``ranking``.

        **Do not filter recommendations by this matrix**: it would take away the items of the synthetic events, which the user has
        never had. Filter by `seen`.

        The library `implicit` takes a cell's value × alpha as its confidence, and an unobserved cell has confidence 1. A light cell
        would weigh less than an unobserved one, so pass 1 + α·w: ``confidence = matrix.copy(); confidence.data = 1 + alpha * matrix.data``.

        Args:
            vocabulary: Of another training set, so that rows and columns agree with its matrix; events of ids that it does not hold
                are left out. Default: the set's own.

        Returns:
            ``scipy.sparse.csr_matrix``, float32 [users, items]. Rows and columns are in the order of ``vocabulary.users`` and
            ``vocabulary.target_items``; `IdVocabulary.index` gives the position of an id.

        Example:
            >>> rows = project.training_set()  # doctest: +SKIP
            >>> model.fit(rows.matrix())  # doctest: +SKIP
            >>> user = rows.vocabulary().index("users", ["user-17"])  # doctest: +SKIP
            >>> items, scores = model.recommend(user, rows.seen()[user])  # doctest: +SKIP
        """
        found = self._events_matrix(vocabulary, seen=False)
        found.eliminate_zeros()
        return found

    def seen(self, vocabulary: IdVocabulary | None = None) -> sparse.csr_matrix:
        """How often each user had each item, by real events only: what to filter out of recommendations.

        An event counts 1 whatever it weighs. Synthetic events and negatives do not count. Events before ``[training_set] start`` or
        from the cutoff on are not in the set, and so not here.

        Args:
            vocabulary: Of another training set, such as the one that the model was trained on, so that rows and columns agree with
                its matrix; events of ids that it does not hold are left out. Default: the set's own.

        Returns:
            ``scipy.sparse.csr_matrix``, float32 [users, items], rows and columns as in `matrix`.

        Example:
            >>> users = np.arange(len(rows.vocabulary().users))  # doctest: +SKIP
            >>> items, scores = model.recommend(users, rows.seen(), N=20)  # doctest: +SKIP
        """
        return self._events_matrix(vocabulary, seen=True)

    def _chosen(self, columns: Sequence[str] | None) -> list[str] | None:
        """Return the columns to read; warn the caller's caller if a model trained on them would not see the weight of synthetic rows."""
        if columns is None:
            return None
        chosen = set(columns)
        trainable = {USER_ID, ITEM_ID} <= chosen or ("label" in chosen and len(chosen) > 1)
        synthetic = self.manifest.get("synthetic", 0)
        if synthetic and trainable and not chosen & {"weight", "is_synthetic"}:
            warnings.warn(
                f"this read leaves out the column weight, without which each of the {synthetic} synthetic rows counts as a whole event: "
                "read weight, too, and multiply the loss of each row by it. For a library that takes no weights, use "
                'TrainingSet.export(…, weights="sample"). To keep real rows alone, read is_synthetic',
                UserWarning,
                stacklevel=3,
            )
        return list(columns)

    def _events_matrix(self, vocabulary: IdVocabulary | None, *, seen: bool) -> sparse.csr_matrix:
        """Counts of real events (``seen``), or weights of all positive ones, summed by user and item."""
        import numpy as np
        import pyarrow.dataset as ds
        from scipy import sparse

        numbers = vocabulary or self.vocabulary()
        wanted = ds.field("label") == 1
        if seen:
            wanted &= ~ds.field("is_synthetic")
        events = self.dataset().to_table(columns=[USER_ID, ITEM_ID, "weight"], filter=wanted)
        user = numbers.encode("users", events.column(USER_ID)) - 1
        item = numbers.encode("target_items", events.column(ITEM_ID)) - 1
        value = np.ones(len(events), np.float32) if seen else events.column("weight").to_numpy()
        known = (user >= 0) & (item >= 0)
        shape = numbers.size("users") - 1, numbers.size("target_items") - 1
        return sparse.csr_matrix((value[known], (user[known], item[known])), shape, dtype=np.float32)

    def vocabulary(self) -> IdVocabulary:
        """The ids of its users and items: rows and columns of its matrices, numbers for embedding tables."""
        from scalr_prod.training_set.vocabulary import IdVocabulary

        return IdVocabulary.read(self.path)

    def torch(
        self,
        *,
        history_length: int | None = None,
        vocabulary: IdVocabulary | None = None,
        stream: bool = False,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> Any:
        """A torch data set for a ``DataLoader``; `scalr_prod.training_set.torch_data` describes a row.

        Args:
            history_length: L, the latest events of a history that are kept; default: all that were stored.
            vocabulary: Of another training set, so that numbers agree; default: its own.
            stream: Read row groups as they are needed, shared out among workers, instead of holding every row in memory
                (then a ``Dataset`` with random access, where sampler and batches are the ``DataLoader``'s).
            batch_size: Only for a stream: yield whole batches, for ``DataLoader(…, batch_size=None)``; default: single rows.
            shuffle: Only for a stream: mix the rows; `set_epoch` mixes them differently.
            seed: Only for a stream: of the shuffle.

        Returns:
            A ``Dataset`` with random access, or an ``IterableDataset`` with ``stream=True``.

        Raises:
            TrainingSetError: An argument of a stream without ``stream=True``.
        """
        from scalr_prod.training_set.torch_data import INPUT_COLUMNS, RowDataset, StreamDataset, encode_rows

        length = history_length or int(self.manifest["history_length"])
        numbers = vocabulary or self.vocabulary()
        if stream:
            return StreamDataset(self.files, numbers, length, batch_size=batch_size, shuffle=shuffle, seed=seed)
        if batch_size is not None or shuffle:
            raise TrainingSetError(
                "batches and their order are the DataLoader's for rows in memory",
                where="TrainingSet.torch",
                next_step="give batch_size and shuffle to the DataLoader, or set stream=True",
            )
        existing = set(self.dataset().schema.names)
        rows = self.to_arrow([name for name in INPUT_COLUMNS if name in existing])
        return RowDataset(encode_rows(rows, numbers, length))


def _version_folder(folder: Path, version: int | None) -> Path:
    found = list_versions(folder)
    if not found:
        raise TrainingSetError("there is no training set here", where=str(folder), next_step="build it: scalr dataset build")
    if version is None:
        return found[max(found)]
    if version not in found:
        raise TrainingSetError(
            f"there is no version {version}; there are {', '.join(map(str, found))}",
            where=str(folder),
            next_step="open one of them",
        )
    return found[version]
