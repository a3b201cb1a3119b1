# SPDX-License-Identifier: Apache-2.0
"""Torch data sets of a training set: rows in memory for any sampler, or a stream for larger sets.

A row is a dictionary of tensors: ``user``, ``item`` (int64, vocabulary numbers), ``label``, ``weight`` (float32), ``event_time`` (int64,
microseconds), ``target_history`` (int64 [L], latest last, left-padded with 0), ``target_ages`` (float32 [L], days before the label; 0 for
padding) and ``numeric`` (float32 [5], see `NUMERIC_FEATURES`). With ``[training_set] source_history`` there are ``source_history`` and
``source_ages`` too. Only the weight can distinguish a synthetic row from a real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import TrainingSetError
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from scalr_prod.training_set.vocabulary import IdKind, IdVocabulary

    Batch = dict[str, "NDArray[Any]"]
    Group = tuple[Path, int, int]  # a file, the number of a row group in it, and its rows


#: Columns of ``numeric``, in order: raw counts, and the item's age in days; 0 if unknown, or if the training set lacks the column.
NUMERIC_FEATURES: Final = (
    "source_user_history__event_count",
    "target_user_history__event_count",
    "target_item_stats__event_count",
    "target_item_stats__trailing_event_count",
    "target_item_stats__first_seen",
)
_HISTORIES: Final[tuple[tuple[str, IdKind], ...]] = (("source", "source_items"), ("target", "target_items"))
INPUT_COLUMNS: Final = (
    USER_ID,
    ITEM_ID,
    EVENT_TIMESTAMP,
    "label",
    "weight",
    *(f"{domain}_user_history__{name}" for domain, _ in _HISTORIES for name in ("item_ids", "event_timestamps")),
    *NUMERIC_FEATURES,
)
#: Size of a stream's shuffle buffer in rows, rounded up to row groups.
_SHUFFLED_ROWS: Final = 65_536


def encode_rows(rows: pa.Table, vocabulary: IdVocabulary, length: int) -> Batch:
    """Encode rows as arrays [N, …], see the module's docstring.

    Args:
        rows: N rows with at least `INPUT_COLUMNS`; those of the source history may be missing.
        vocabulary: Numbers of the ids.
        length: L, the number of latest events kept of a history.
    """
    label_time = _micros(rows.column(EVENT_TIMESTAMP))
    batch: Batch = {
        "user": vocabulary.encode("users", rows.column(USER_ID)).reshape(-1),
        "item": vocabulary.encode("target_items", rows.column(ITEM_ID)).reshape(-1),
        "label": rows.column("label").to_numpy().astype(np.float32),
        "weight": rows.column("weight").to_numpy().astype(np.float32),
        "event_time": label_time,
    }
    for domain, kind in _HISTORIES:
        if f"{domain}_user_history__item_ids" not in rows.column_names:
            continue
        items, stamps = (rows.column(f"{domain}_user_history__{name}") for name in ("item_ids", "event_timestamps"))
        where, flat = _last(items, length)
        history = np.zeros((rows.num_rows, length), np.int64)
        history[where] = vocabulary.encode(kind, _flatten(items))[flat]
        ages = np.zeros((rows.num_rows, length), np.float32)
        ages[where] = (label_time[where[0]] - _micros(_flatten(stamps))[flat]) / DAY_US
        batch[f"{domain}_history"], batch[f"{domain}_ages"] = history, ages
    batch["numeric"] = np.stack([_numeric(rows, name, label_time) for name in NUMERIC_FEATURES], axis=1)
    return batch


class RowDataset(Dataset):
    """All rows, encoded in memory; works with any sampler and ``DataLoader(rows, batch_size=…, shuffle=True)``."""

    def __init__(self, batch: Batch) -> None:
        self._tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}

    def __len__(self) -> int:
        return len(self._tensors["user"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self._tensors.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Return the rows of a batch, gathered in one operation."""
        chosen = torch.as_tensor(indices)
        gathered = {name: values[chosen] for name, values in self._tensors.items()}
        return [{name: values[row] for name, values in gathered.items()} for row in range(len(chosen))]


class StreamDataset(IterableDataset):
    """Row groups read in sequence, divided among the workers of a ``DataLoader`` and the ranks of a process group.

    Each row occurs exactly once per epoch. Memory holds a few row groups per worker.

    Args:
        files: Parquet files of the training set.
        vocabulary: Numbers of the ids.
        length: L of histories.
        batch_size: Yield batches of this many rows (then use ``DataLoader(stream, batch_size=None)``); None: single rows.
        shuffle: Shuffle row groups, and rows within a few of them.
        seed: Seed of the shuffle; seed and epoch decide the order.
    """

    def __init__(
        self,
        files: Sequence[Path],
        vocabulary: IdVocabulary,
        length: int,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        import pyarrow.parquet as pq

        if batch_size is not None and batch_size < 1:
            raise TrainingSetError(f"a batch of {batch_size} rows", where="batch_size", next_step="choose 1 or more")
        self._groups = []
        for path in files:
            metadata = pq.read_metadata(path)
            self._groups += [(path, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        self._vocabulary, self._length = vocabulary, length
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        # Shared memory, so that persistent workers see a new epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Change the shuffle from the next iteration on."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = np.random.default_rng([self._seed, int(self._epoch)])
        groups = self._groups
        if self._shuffle:
            groups = [groups[position] for position in rng.permutation(len(groups))]
        shard, shards = _shard()
        rest: Batch | None = None
        for batch in self._read(_share(groups, shard, shards), np.random.default_rng([self._seed, int(self._epoch), shard])):
            joined = batch if rest is None else {name: np.concatenate([rest[name], batch[name]]) for name in batch}
            size = self._batch_size or 1
            full = len(joined["user"]) // size * size
            yield from self._cut(joined, 0, full)
            rest = {name: values[full:] for name, values in joined.items()}
        if rest is not None and len(rest["user"]):
            yield from self._cut(rest, 0, len(rest["user"]))

    def _read(self, groups: Sequence[Group], rng: np.random.Generator) -> Iterator[Batch]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for together in _together(groups, _SHUFFLED_ROWS if self._shuffle else 1):
            tables = []
            for path, group, _ in together:
                with pq.ParquetFile(path) as file:
                    columns = [name for name in file.schema_arrow.names if name in INPUT_COLUMNS]
                    tables.append(file.read_row_group(group, columns=columns))
            batch = encode_rows(pa.concat_tables(tables), self._vocabulary, self._length)
            if self._shuffle:
                order = rng.permutation(len(batch["user"]))
                batch = {name: values[order] for name, values in batch.items()}
            yield batch

    def _cut(self, batch: Batch, start: int, stop: int) -> Iterator[dict[str, torch.Tensor]]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
        if self._batch_size is None:
            for row in range(start, stop):
                yield {name: values[row] for name, values in tensors.items()}
        else:
            for begin in range(start, stop, self._batch_size):
                yield {name: values[begin : begin + self._batch_size] for name, values in tensors.items()}


def _share(groups: Sequence[Group], shard: int, shards: int) -> list[Group]:
    """Return a worker's row groups: assign each to the worker with the fewest rows so far, because group sizes vary."""
    assigned, mine = [0] * shards, []
    for group in groups:
        least = assigned.index(min(assigned))
        assigned[least] += group[2]
        if least == shard:
            mine.append(group)
    return mine


def _together(groups: Sequence[Group], rows: int) -> Iterator[list[Group]]:
    """Yield lists of consecutive row groups with at least ``rows`` rows each."""
    waiting: list[Group] = []
    for group in groups:
        waiting.append(group)
        if sum(size for _, _, size in waiting) >= rows:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _shard() -> tuple[int, int]:
    """Return this worker's number among all workers of all ranks, and their total."""
    worker = get_worker_info()
    number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    rank, ranks = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank * workers + number, ranks * workers


def _flatten(lists: pa.ChunkedArray) -> pa.Array:
    import pyarrow.compute as pc

    return pc.list_flatten(lists).combine_chunks()


def _last(lists: pa.ChunkedArray, length: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Return positions of each list's last ``length`` elements in a left-padded matrix, and in the flattened lists."""
    import pyarrow.compute as pc

    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    kept = np.minimum(sizes, length)
    rows = np.repeat(np.arange(len(sizes)), kept)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    columns = length - np.repeat(kept, kept) + nth
    flat = np.repeat(np.cumsum(sizes) - kept, kept) + nth
    return (rows, columns), flat


def _micros(stamps: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    import pyarrow as pa

    # Copy: torch rejects read-only memory such as Arrow's.
    return np.array(stamps.cast(pa.int64()).to_numpy(), np.int64)


def _numeric(rows: pa.Table, name: str, label_time: NDArray[np.int64]) -> NDArray[np.float32]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in rows.column_names:
        return np.zeros(rows.num_rows, np.float32)
    column = rows.column(name)
    if pa.types.is_timestamp(column.type):
        found = pc.is_valid(column).to_numpy()
        seen = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
        return np.where(found, (label_time - seen) / DAY_US, 0).astype(np.float32)
    return pc.fill_null(column, 0).to_numpy().astype(np.float32)  # type: ignore[no-any-return]  # pyarrow is untyped
