# SPDX-License-Identifier: Apache-2.0
"""Splits of a training set by time: train, validation and test, with synthetic events in train only.

Each split equals, for its period, a training set whose cutoff is the split's end: it has the events that happened in it and were known by
its end. So ``train`` has the real and synthetic rows, and the weights, of a set whose cutoff is the first boundary. A synthetic event is
known from its run's ``as_of`` on, and its run, translator included, read nothing that became known later.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scalr_prod.core.calendar import local_to_utc
from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, SPLIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import Settings
    from scalr_prod.training_set.label_window import LabelWindow


_WHERE = "[training_set] splits"
_GUIDE = "docs/guides/training-sets.md"


def resolve_splits(settings: Settings) -> dict[str, datetime]:
    """Return the name and the first instant (UTC) of each split after ``train``, in order; empty without ``[training_set] splits``.

    Raises:
        TrainingSetError: ``test`` does not begin after ``validation``.
    """
    splits, zone = settings.training_set.splits, settings.project.timezone
    found: dict[str, datetime] = {name: local_to_utc(splits[name], zone) for name in ("validation", "test") if name in splits}
    for (first, begins), (second, ends) in pairwise(found.items()):
        if begins >= ends:
            raise TrainingSetError(
                f"{second} begins at {ends.isoformat()}, which is not after {first} ({begins.isoformat()})",
                where=_WHERE,
                next_step="order them: { validation = EARLIER, test = LATER }",
            )
    return found


def ensure_run_fits_splits(settings: Settings) -> None:
    """Ensure that the events of a run with these settings may be in ``train``.

    A causal run may be one of many days; `ensure_synthetic_in_train` judges what all of them published.

    Raises:
        TrainingSetError: The run would read events from after ``train``.
    """
    first, generation = next(iter(resolve_splits(settings).values()), None), settings.generation
    if first is None or generation.mode == "causal" or not any(settings.training_set.resolved_segment_weights):
        return
    until = generation.as_of or generation.end
    if until is None or until > first:
        read = f"up to {until.isoformat()}" if until else "to their end"
        raise _learned_too_much(f"a run reads the logs {read}, so none of its events may be in train", first)


def ensure_synthetic_in_train(synthetic: DeltaTable, window: LabelWindow) -> None:
    """Ensure that published synthetic events, if there are any, may be in ``train``.

    Raises:
        TrainingSetError: All are of runs that read events from after it.
    """
    import pyarrow.compute as pc

    from scalr_prod.core.delta_log import files_dataset

    first, total, known_from = window.train.cutoff, 0, None
    for batch in files_dataset(synthetic).to_batches(columns=[EVENT_TIMESTAMP, CREATED_TIMESTAMP]):
        if not batch.num_rows:
            continue
        created = batch.column(CREATED_TIMESTAMP)
        usable = pc.and_(pc.less(batch.column(EVENT_TIMESTAMP), first), pc.less_equal(created, first))
        if pc.any(usable).as_py():
            return
        total, earliest = total + batch.num_rows, pc.min(created).as_py()
        known_from = earliest if known_from is None else min(known_from, earliest)
    if known_from is not None:
        raise _learned_too_much(
            f"none of the {total} published synthetic events may be in train: their runs read events up to {known_from.isoformat()} "
            "or later",
            first,
        )


def _learned_too_much(found: str, first: datetime) -> TrainingSetError:
    moment = first.isoformat()
    return TrainingSetError(
        f"{found}; train ends at {moment}, and events that were learned from later ones would leak them",
        where=_WHERE,
        next_step=f'set [generation] end = "{moment}" and run again, in a home of its own ({_GUIDE}); or [training_set] '
        "synthetic_weight = 0 for real events only",
    )


def ensure_real_events(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Ensure that each split has a real event.

    Args:
        splits: The splits, as `describe_splits` returns them.

    Raises:
        TrainingSetError: A split has none.
    """
    for name, split in splits.items():
        if not split["real"]:
            raise TrainingSetError(
                f"{name} has no real event: it is from {split['start'] or 'the first event'} to {split['end']}",
                where=_WHERE,
                next_step="choose other times, or a later [training_set] cutoff",
            )


def keep_known_by_split_end(batch: pa.RecordBatch, window: LabelWindow) -> pa.RecordBatch:
    """Keep the events that were known by the end of the split in which they happened.

    Args:
        batch: Events before the window's cutoff, with event and creation time.
        window: The labels, with splits.
    """
    import pyarrow as pa

    happened, created = (
        batch.column(name).cast(pa.int64()).to_numpy(zero_copy_only=False) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)
    )
    ends = np.array([to_micros(end) for _, end in window.split_ranges.values()], np.int64)
    return batch.filter(pa.array(created <= ends[np.searchsorted(ends[:-1], happened, side="right")]))


def split_sql(window: LabelWindow) -> str:
    """Return SQL of the name of a row's split."""
    *former, last = window.split_ranges.items()
    cases = "".join(f" WHEN epoch_us({EVENT_TIMESTAMP}) < {to_micros(end)} THEN '{name}'" for name, (_, end) in former)
    return f"(CASE{cases} ELSE '{last[0]}' END)"


def describe_splits(folder: Path, files: Iterable[str], window: LabelWindow) -> dict[str, dict[str, Any]]:
    """Describe each split for the manifest: start, end, files, and the counts of its rows.

    Args:
        folder: Folder of the version.
        files: Names of its files of rows, relative to the folder, in the order of time; each holds rows of one split.
        window: The labels, with splits.
    """
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {
        name: {"start": start.isoformat() if start else None, "end": end.isoformat(), "files": []}
        for name, (start, end) in window.split_ranges.items()
    }
    for name in files:
        with pq.ParquetFile(folder / name) as file:
            split = next(file.iter_batches(batch_size=1, columns=[SPLIT])).column(0)[0].as_py()
        found[split]["files"].append(name)
    for split in found.values():
        split.update(count_rows(folder / name for name in split["files"]))
    return found


def count_rows(files: Iterable[Path]) -> dict[str, int]:
    """Count the rows of some files: ``rows``, ``real`` and ``synthetic`` positives, and ``negatives``."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counts = dict.fromkeys(("rows", "real", "synthetic", "negatives"), 0)
    for path in files:
        rows = pq.read_table(path, columns=["label", "is_synthetic"])
        positive = pc.greater(rows["label"], 0)
        positives, synthetic = (pc.sum(column).as_py() or 0 for column in (positive, pc.and_(positive, rows["is_synthetic"])))
        found = (len(rows), positives - synthetic, synthetic, len(rows) - positives)
        counts = {name: count + more for (name, count), more in zip(counts.items(), found, strict=True)}
    return counts
