# SPDX-License-Identifier: Apache-2.0
"""Export of a training set to other tools: CSV, RecBole's atomic files, or a folder of Parquet files.

A reader that multiplies its loss by a weight gets the weights as a column. For any other reader, rows are sampled by weight: a row of
weight w is written floor(w) times, and once more with probability w - floor(w). The expected number of its copies is w, so the expected
sum of a loss over the file is its weighted sum over the training set.
"""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from scalr_prod.core.atomic_io import write_json
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.row_groups import iter_batches
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray


DatasetFormat = Literal["csv", "recbole", "parquet"]
WeightsMode = Literal["column", "sample"]
#: Columns with their RecBole types. Times are seconds since 1970 (UTC).
_TYPES: Final = {
    "user_id": "token",
    "item_id": "token",
    "timestamp": "float",
    "label": "float",
    "weight": "float",
    "is_synthetic": "float",
    "epoch": "float",
}
_COLUMNS_READ: Final = (USER_ID, ITEM_ID, EVENT_TIMESTAMP, "label", "weight", "is_synthetic")
#: Characters that an atomic file cannot hold: separators and quotes.
_BREAKS: Final = '[\t\r\n"]'
#: Rows read, or written, at a time: a batch of rows with large weights is written in several steps.
_ROWS_AT_ONCE: Final = 131_072


@dataclass(frozen=True)
class ExportOptions:
    """How a training set is exported.

    Attributes:
        format: ``csv`` (with a header, quoted where needed), ``recbole`` (``NAME/NAME.inter`` and ``NAME/NAME.yaml``), or ``parquet``
            (``NAME/data/SPLIT-*.parquet`` with every column, and a card, ``NAME/README.md``).
        weights: ``column``: every row once, with its weight; ``sample``: rows sampled by weight. None: ``sample`` for ``recbole``, whose
            losses read no weight, else ``column``.
        epochs: Independent draws of a sample, written one after the other; more than 1 adds a column ``epoch``.
        seed: Seed of the draws. A draw depends on the version of the training set, the seed and its epoch alone.
    """

    format: DatasetFormat
    weights: WeightsMode | None = None
    epochs: int = 1
    seed: int = 0

    @property
    def mode(self) -> WeightsMode:
        """``weights``, or the format's default."""
        return self.weights or ("sample" if self.format == "recbole" else "column")

    def columns(self, *, has_negatives: bool) -> list[str]:
        """List the columns of the file.

        Args:
            has_negatives: Whether there are rows of label 0.
        """
        columns = ["user_id", "item_id", "timestamp"]
        # Some of RecBole's models take every further column as a feature.
        if has_negatives or self.mode == "column" or self.format == "csv":
            columns += ["label"]
        if self.mode == "column":
            columns += ["weight"]
        if self.mode == "column" or self.format == "csv":
            columns += ["is_synthetic"]
        return [*columns, "epoch"] if self.epochs > 1 else columns

    def check(self) -> None:
        """Ensure that the options are valid and fit together.

        Raises:
            TrainingSetError: The seed is negative; there is no epoch, or several without a sample; or a sample of Parquet files.
        """
        if self.format == "parquet" and self.mode == "sample":
            raise TrainingSetError(
                "Parquet files are exported as they are, with weights",
                where="weights",
                next_step="export a sample as csv or recbole",
            )
        if self.epochs < 1:
            raise TrainingSetError(f"{self.epochs} epochs", where="epochs", next_step="choose 1 or more")
        if self.seed < 0:
            raise TrainingSetError(f"the seed is {self.seed}", where="seed", next_step="choose 0 or more")
        if self.epochs > 1 and self.mode == "column":
            raise TrainingSetError(
                f"{self.epochs} epochs of rows that are not sampled",
                where="epochs",
                next_step="sample by weight: weights = sample",
            )


@dataclass(frozen=True)
class EpochDraw(Jsonable):
    """One draw of all rows.

    Attributes:
        epoch: Its number, from 1.
        rows: Rows written.
        synthetic: Of these, synthetic rows.
        left_out: Rows of the training set without a copy.
        left_out_synthetic: Of these, synthetic rows.
    """

    epoch: int
    rows: int
    synthetic: int
    left_out: int
    left_out_synthetic: int


@dataclass(frozen=True)
class SampleReport(Jsonable):
    """How rows were sampled by weight.

    Attributes:
        seed: Seed of the draws.
        expected_rows: Expected rows of a draw: the total weight of the training set.
        expected_synthetic: Of these, synthetic rows: their total weight.
        draws: One for each epoch.
    """

    seed: int
    expected_rows: float
    expected_synthetic: float
    draws: tuple[EpochDraw, ...]


@dataclass(frozen=True)
class ExportReport(Jsonable):
    """Result of an export.

    Attributes:
        path: The file (csv), or the folder of the data set (recbole, parquet).
        format: ``csv``, ``recbole`` or ``parquet``.
        version: Version of the training set.
        rows: Number of rows written.
        synthetic: Number of synthetic rows written.
        weights: ``column``: the reader must multiply its loss by ``weight``; ``sample``: weights are in the number of rows.
        sample: The draws; None for ``column``.
    """

    path: str
    format: str
    version: int
    rows: int
    synthetic: int
    weights: WeightsMode
    sample: SampleReport | None = None


def export_training_set(
    files: Sequence[Path], version: int, target: Path, options: ExportOptions, *, has_negatives: bool = False
) -> ExportReport:
    """Export a training set, in order of time. Memory holds a few batches.

    Args:
        files: Parquet files of a training set, in order.
        version: Its version.
        target: ``csv``: the file; ``recbole``: the data set's folder; the files in it have the same name.
        options: Format, and how weights are handed over.
        has_negatives: Whether there are rows of label 0.

    Raises:
        TrainingSetError: The target exists, an atomic file cannot hold an id, or the options do not fit together; nothing is written.
    """
    options.check()
    with _unfinished(target) as unfinished:
        is_recbole = options.format == "recbole"
        if is_recbole:
            unfinished.mkdir(exist_ok=True)
        file = unfinished / f"{target.name}.inter" if is_recbole else unfinished
        writer = _Writer(file, options.columns(has_negatives=has_negatives), tabs=is_recbole)
        sample = None
        if options.mode == "sample":
            sample = _write_sample(files, writer, options)
        else:
            writer.write(_read(files))
        report = ExportReport(str(target), options.format, version, writer.rows, writer.synthetic, options.mode, sample)
        if is_recbole:
            settings = _recbole_settings(target, report, has_negatives=has_negatives)
            (unfinished / f"{target.name}.yaml").write_text(settings, encoding="utf-8")
            write_json(unfinished / "export.json", report.to_json())
    return report


def export_dataset_folder(
    splits: Mapping[str, Sequence[Path]], manifest: Mapping[str, Any], target: Path, options: ExportOptions
) -> ExportReport:
    """Export Parquet files by split, with a card that describes them.

    Args:
        splits: Name → Parquet files of each split, in order.
        manifest: Manifest of the version.
        target: The folder to write.
        options: Format ``parquet``.

    Raises:
        TrainingSetError: The target exists, or the options do not fit together; nothing is written.
    """
    from scalr_prod.training_set.dataset_card import write_dataset_folder

    options.check()
    with _unfinished(target) as unfinished:
        rows, synthetic = write_dataset_folder(splits, manifest, unfinished)
    return ExportReport(str(target), options.format, int(manifest["version"]), rows, synthetic, "column")


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Yield a path to write to, which is moved to the target at the end, or removed if that fails."""
    if target.exists():
        raise _taken(target)
    unfinished = target.with_name(
        f".{target.name}.{uuid.uuid4().hex}.unfinished"
    )  # unique: two processes may write to one target
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        if target.exists():
            raise _taken(target)
        unfinished.rename(target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)


def draw_copies(weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the number of copies of each row, [N]: floor(w), and one more with probability w - floor(w), independently.

    Args:
        weights: w, at least 0, [N].
        rng: Gives one number for each row, so that a stream of rows gets the same copies in batches of any size.
    """
    whole = np.floor(weights)
    return (whole + (rng.random(len(weights)) < weights - whole)).astype(np.int64)


def _read(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order."""
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as file:
            yield from iter_batches(file, _ROWS_AT_ONCE, columns=_COLUMNS_READ)


class _Writer:
    """A CSV or atomic file.

    Attributes:
        columns: Names of its columns.
        rows: Number of rows written.
        synthetic: Of these, synthetic rows.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, tabs: bool) -> None:
        self.columns, self.rows, self.synthetic = list(columns), 0, 0
        self._path, self._tabs = path, tabs
        names = [f"{name}:{_TYPES[name]}" if tabs else name for name in columns]
        path.write_bytes((("\t" if tabs else ",").join(names) + "\n").encode())

    def write(self, batches: Iterator[pa.RecordBatch], epoch: int = 1) -> None:
        """Append batches with the columns of a training set."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import csv

        options = csv.WriteOptions(
            include_header=False,
            delimiter="\t" if self._tabs else ",",
            quoting_style="none" if self._tabs else "needed",
        )
        with self._path.open("ab") as file:
            for batch in batches:
                if self._tabs:
                    _refuse_breaks(batch, self._path)
                micros = batch.column(EVENT_TIMESTAMP).cast(pa.int64())
                marked = batch.column("is_synthetic")
                values = {
                    "user_id": batch.column(USER_ID).cast(pa.string()),
                    "item_id": batch.column(ITEM_ID).cast(pa.string()),
                    "timestamp": pc.divide(micros.cast(pa.float64(), safe=False), 1e6),
                    "label": batch.column("label").cast(pa.float32()),
                    "weight": batch.column("weight"),
                    "is_synthetic": marked.cast(pa.int8()),
                    "epoch": pa.repeat(epoch, batch.num_rows),
                }
                chosen = [values[name] for name in self.columns]
                csv.write_csv(pa.RecordBatch.from_arrays(chosen, names=self.columns), file, options)
                self.rows += batch.num_rows
                self.synthetic += pc.sum(marked).as_py() or 0


class _Draw:
    """One draw of all rows, in batches.

    Attributes:
        weight: Total weight of the rows read so far.
        synthetic_weight: Of this, the synthetic rows' weight.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self.weight = self.synthetic_weight = 0.0
        self._epoch, self._rng = epoch, np.random.default_rng([seed, epoch])
        self._rows = self._synthetic = self._left_out = self._left_out_synthetic = 0

    @property
    def report(self) -> EpochDraw:
        """Its counts."""
        return EpochDraw(self._epoch, self._rows, self._synthetic, self._left_out, self._left_out_synthetic)

    def sample(self, files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
        """Yield each row as many times as it is drawn."""
        for batch in _read(files):
            weights = batch.column("weight").to_numpy().astype(np.float64)
            synthetic = batch.column("is_synthetic").to_numpy(zero_copy_only=False)
            copies = draw_copies(weights, self._rng)
            total = int(copies.sum())
            self.weight += float(weights.sum())
            self.synthetic_weight += float(weights[synthetic].sum())
            self._rows += total
            self._synthetic += int(copies[synthetic].sum())
            self._left_out += int((copies == 0).sum())
            self._left_out_synthetic += int((copies[synthetic] == 0).sum())
            ends = np.cumsum(copies)
            for start in range(0, total, _ROWS_AT_ONCE):
                yield batch.take(np.searchsorted(ends, np.arange(start, min(start + _ROWS_AT_ONCE, total)), side="right"))


def _write_sample(files: Sequence[Path], writer: _Writer, options: ExportOptions) -> SampleReport:
    """Write one draw after the other."""
    draws = [_Draw(options.seed, epoch) for epoch in range(1, options.epochs + 1)]
    for epoch, draw in enumerate(draws, start=1):
        writer.write(draw.sample(files), epoch)
    return SampleReport(options.seed, draws[0].weight, draws[0].synthetic_weight, tuple(draw.report for draw in draws))


def _recbole_settings(target: Path, report: ExportReport, *, has_negatives: bool) -> str:
    """Return the RecBole settings that read the exported files."""
    loaded = [*_TYPES][:3] + (["label"] if has_negatives else []) + (["weight"] if report.weights == "column" else [])
    mode = "labeled" if has_negatives else "full"
    lines = [
        "# Rows are sampled by weight, so a row may be there several times."
        if report.sample is not None
        else "# RecBole's losses do not read the column weight: to them, a synthetic row is a whole event.",
        f"data_path: {json.dumps(str(target.parent.resolve()))} # the folder that holds the folder {target.name}",
        f"load_col: {{inter: [{', '.join(loaded)}]}}",
        "rm_dup_inter: ~",
        "# All rows are for training: no synthetic row may be in validation or test.",
        f"eval_args: {{split: {{RS: [1, 0, 0]}}, group_by: none, order: RO, mode: {mode}}}",
    ]
    if has_negatives:
        lines += ["# Rows of label 0 are the negatives, for pointwise models.", "train_neg_sample_args: ~"]
    if report.sample is not None and len(report.sample.draws) > 1:
        lines.append(f"# The file holds {len(report.sample.draws)} draws: one pass over it is as many epochs.")
    return "\n".join(lines) + "\n"


def _refuse_breaks(batch: pa.RecordBatch, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in (USER_ID, ITEM_ID):
        ids = batch.column(name)
        if not pa.types.is_string(ids.type):
            continue
        broken = ids.filter(pc.match_substring_regex(ids, _BREAKS))
        if len(broken):
            raise TrainingSetError(
                f"the {name} {broken[0].as_py()!r} contains a tab, a line break or a quote, which an atomic file cannot contain",
                where=path.name,
                next_step="export as csv, which quotes it, or rename the id in the log",
            )


def _taken(target: Path) -> TrainingSetError:
    return TrainingSetError("the target already exists", where=str(target), next_step="name another target")
