# SPDX-License-Identifier: Apache-2.0
"""Export of a training set to other tools: RecBole's atomic files, or CSV."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from pyarrow.dataset import Dataset


__all__ = ["DatasetFormat", "ExportReport", "export_training_set"]

DatasetFormat = Literal["csv", "recbole"]
#: Columns with their RecBole types. Times are seconds since 1970 (UTC).
_COLUMNS: Final = {
    "user_id": "token",
    "item_id": "token",
    "timestamp": "float",
    "label": "float",
    "weight": "float",
    "is_synthetic": "float",
}
#: Characters that an atomic file cannot hold: separators and quotes.
_BREAKS: Final = '[\t\r\n"]'


@dataclass(frozen=True)
class ExportReport(Jsonable):
    """Result of an export.

    Attributes:
        path: The file (csv), or the folder of the data set (recbole).
        format: ``csv`` or ``recbole``.
        version: Version of the training set.
        rows: Number of rows.
        synthetic: Number of synthetic rows.
    """

    path: str
    format: str
    version: int
    rows: int
    synthetic: int


def export_training_set(dataset: Dataset, version: int, target: Path, file_format: DatasetFormat) -> ExportReport:
    """Export every row in order: user, item, time, label, weight, and whether it is synthetic. Memory holds one batch.

    Args:
        dataset: Rows of a training set.
        version: Its version.
        target: ``csv``: the file; ``recbole``: the data set's folder; the file in it has the same name.
        file_format: ``csv`` (with a header, quoted where needed) or ``recbole`` (``NAME/NAME.inter``).

    Raises:
        TrainingSetError: The target exists, or an atomic file cannot hold an id; nothing is written.
    """
    if target.exists():
        raise _taken(target)
    unfinished = target.with_name(
        f".{target.name}.{uuid.uuid4().hex}.unfinished"
    )  # unique: two processes may write to one target
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        if file_format == "recbole":
            unfinished.mkdir(exist_ok=True)
            rows, synthetic = _write(dataset, unfinished / f"{target.name}.inter", tabs=True)
        else:
            rows, synthetic = _write(dataset, unfinished, tabs=False)
        if target.exists():
            raise _taken(target)
        unfinished.rename(target)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
    return ExportReport(str(target), file_format, version, rows, synthetic)


def _write(dataset: Dataset, path: Path, *, tabs: bool) -> tuple[int, int]:
    """Write the file; return its number of rows, and of synthetic rows."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    options = csv.WriteOptions(
        include_header=False, delimiter="\t" if tabs else ",", quoting_style="none" if tabs else "needed"
    )
    names = [f"{name}:{kind}" if tabs else name for name, kind in _COLUMNS.items()]
    rows = synthetic = 0
    with path.open("wb") as file:
        file.write((("\t" if tabs else ",").join(names) + "\n").encode())
        columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP, "label", "weight", "is_synthetic"]
        for batch in dataset.to_batches(columns=columns):
            if tabs:
                _refuse_breaks(batch, path)
            micros = batch.column(EVENT_TIMESTAMP).cast(pa.int64())
            marked = batch.column("is_synthetic")
            values = [
                batch.column(USER_ID).cast(pa.string()),
                batch.column(ITEM_ID).cast(pa.string()),
                pc.divide(micros.cast(pa.float64(), safe=False), 1e6),
                batch.column("label").cast(pa.float32()),
                batch.column("weight"),
                marked.cast(pa.int8()),
            ]
            csv.write_csv(pa.RecordBatch.from_arrays(values, names=list(_COLUMNS)), file, options)
            rows, synthetic = rows + batch.num_rows, synthetic + (pc.sum(marked).as_py() or 0)
    return rows, synthetic


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
                f"the {name} {broken[0].as_py()!r} holds a tab, a line break or a quote, which an atomic file cannot hold",
                where=path.name,
                next_step="export as csv, which quotes it, or rename the id in the log",
            )


def _taken(target: Path) -> TrainingSetError:
    return TrainingSetError("the target already exists", where=str(target), next_step="name another target")
