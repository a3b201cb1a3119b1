"""Versions, manifests, chunks, vocabulary and torch rows, on small files made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.training_set_folder import write_version
from torch.utils.data import DataLoader

from scalr_prod.core.delta_log import UNBOUNDED
from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import TrainingSetError
from scalr_prod.training_set import TrainingSet
from scalr_prod.training_set.input_changes import InputChanges
from scalr_prod.training_set.manifest import compute_fingerprint, verify_files
from scalr_prod.training_set.periods import Period, merge_periods, uncovered_spans, utc_day
from scalr_prod.training_set.previous_version import (
    DatasetPartition,
    PartitionStatistics,
    PreviousVersion,
    group_days,
    reusable,
)
from scalr_prod.training_set.torch_data import _share, _together

STAMP = pa.timestamp("us", tz="UTC")
DAY = 86_400_000_000
NOW = 1_700_000_000_000_000


def rows(count: int, *, seed: int = 0) -> pa.Table:
    """Rows with the columns of a training set; some histories are null, some empty, some long."""
    rng = np.random.default_rng(seed)
    label = NOW + np.arange(count) * DAY

    def history(prefix: str) -> tuple[list, list, list]:
        ids, stamps, counts = [], [], []
        for position in range(count):
            size = int(rng.integers(0, 8))
            if position % 5 == 4:
                ids.append(None), stamps.append(None), counts.append(None)
                continue
            ids.append([f"{prefix}{n}" for n in rng.integers(0, 9, size)])
            stamps.append([int(label[position]) - (size - n) * DAY for n in range(size)])
            counts.append(size)
        return ids, stamps, counts

    source, target = history("s"), history("t")
    return pa.table(
        {
            "user_id": pa.array([f"u{n % 7}" for n in range(count)]),
            "item_id": pa.array([f"t{n % 11}" for n in range(count)]),
            "event_timestamp": pa.array(label, STAMP),
            "label": pa.array([n % 2 for n in range(count)], pa.int8()),
            "weight": pa.array(np.linspace(0.1, 1, count), pa.float32()),
            "is_synthetic": pa.array([n % 3 == 0 for n in range(count)]),
            "run_id": pa.array(["run_0" if n % 3 == 0 else None for n in range(count)]),
            **{
                f"{domain}_user_history__{name}": pa.array(values, kind)
                for domain, lists in (("source", source), ("target", target))
                for name, values, kind in zip(
                    ("item_ids", "event_timestamps", "event_count"),
                    lists,
                    (pa.list_(pa.string()), pa.list_(STAMP), pa.int64()),
                    strict=True,
                )
            },
            "target_item_stats__first_seen": pa.array([int(t) - 3 * DAY for t in label], STAMP),
            "target_item_stats__event_count": pa.array(np.arange(count)),
            "target_item_stats__trailing_event_count": pa.array([None, *range(count - 1)], pa.int64()),
        }
    )


@pytest.fixture
def made(tmp_path):
    """A training set with one version of 100 rows in two parts, as the builder lays it."""

    def make(version: int = 1, count: int = 100, group: int = 16) -> TrainingSet:
        return write_version(tmp_path / "set", rows(count), version=version, row_group_size=group)

    return make


def test_the_latest_version_is_opened_by_number_not_by_name(made, tmp_path):
    for version in (2, 10, 9):
        made(version, count=4)
    assert TrainingSet.open(tmp_path / "set").version == 10
    assert TrainingSet.open(tmp_path / "set", 2).version == 2
    assert TrainingSet.open(tmp_path / "set" / "v10").version == 10
    assert TrainingSet.open(tmp_path / "set" / "v10", 9).version == 9
    with pytest.raises(TrainingSetError, match="no version 3; there are 2, 9, 10"):
        TrainingSet.open(tmp_path / "set", 3)


def test_a_folder_without_a_manifest_is_no_version(tmp_path):
    (tmp_path / "set" / "v1").mkdir(parents=True)
    with pytest.raises(TrainingSetError, match="no training set here") as caught:
        TrainingSet.open(tmp_path / "set")
    assert "scalr dataset build" in str(caught.value)


def test_a_changed_missing_or_added_file_is_found(made):
    opened = made()
    verify_files(opened.path, opened.manifest)
    first = opened.files[0]
    kept = first.read_bytes()

    changed = bytearray(kept)
    changed[len(changed) // 2] ^= 1
    first.write_bytes(changed)
    with pytest.raises(TrainingSetError, match="SHA-256 differs") as caught:
        TrainingSet.open(opened.path, check=True)
    assert caught.value.where == str(first)

    first.unlink()
    with pytest.raises(TrainingSetError, match="missing"):
        TrainingSet.open(opened.path, check=True)

    first.write_bytes(kept)
    (opened.path / "rows" / "part-00002.parquet").write_bytes(kept)
    with pytest.raises(TrainingSetError, match="does not list"):
        TrainingSet.open(opened.path, check=True)


def test_every_reader_gives_the_same_rows_in_the_same_order(made):
    opened = made()
    table = opened.to_arrow()
    assert table.equals(rows(100).cast(table.schema))
    assert opened.to_pandas()["weight"].tolist() == table["weight"].to_pylist()
    frame = opened.to_polars(["item_id", "event_timestamp"])
    assert frame["item_id"].to_list() == table["item_id"].to_pylist()
    assert str(frame.schema["event_timestamp"]) == "Datetime(time_unit='us', time_zone='UTC')"
    assert len(opened) == 100


def test_vocabulary_numbers_every_id_and_nothing_else(made):
    vocabulary = made().vocabulary()
    assert vocabulary.users.to_pylist() == [f"u{n}" for n in range(7)]
    assert vocabulary.encode("users", ["u0", "u6", "stranger", None]).tolist() == [1, 7, 0, 0]
    assert vocabulary.size("users") == 8
    assert set(vocabulary.target_items.to_pylist()) == {f"t{n}" for n in range(11)}, "labels and histories"
    assert set(vocabulary.source_items.to_pylist()) == {f"s{n}" for n in range(9)}


def test_rows_hold_left_padded_histories_and_ages_in_days(made):
    opened = made()
    table, vocabulary = opened.to_arrow().to_pylist(), opened.vocabulary()
    data = opened.torch(history_length=4)
    assert len(data) == 100
    for position in range(100):
        row, want = data[position], table[position]
        assert row["user"] == vocabulary.encode("users", [want["user_id"]])[0]
        assert row["item"] == vocabulary.encode("target_items", [want["item_id"]])[0]
        assert row["label"] == want["label"]
        assert row["weight"] == pytest.approx(want["weight"])
        assert row["event_time"] == to_micros(want["event_timestamp"])
        for domain, kind in (("source", "source_items"), ("target", "target_items")):
            ids = (want[f"{domain}_user_history__item_ids"] or [])[-4:]
            stamps = (want[f"{domain}_user_history__event_timestamps"] or [])[-4:]
            ages = [(want["event_timestamp"] - stamp) / timedelta(days=1) for stamp in stamps]
            padding = [0] * (4 - len(ids))
            assert row[f"{domain}_history"].tolist() == padding + vocabulary.encode(kind, pa.array(ids, pa.string())).tolist()
            assert row[f"{domain}_ages"].tolist() == pytest.approx(padding + ages)
        trailing = want["target_item_stats__trailing_event_count"]
        assert row["numeric"].tolist()[3:] == [trailing or 0, 3.0]


def test_a_row_tells_nothing_of_where_it_came_from(made):
    assert set(made().torch()[0]) == {
        "user", "item", "label", "weight", "event_time", "numeric",
        "source_history", "source_ages", "target_history", "target_ages",
    }  # fmt: skip


def test_a_set_without_source_histories_has_none_in_its_batches(tmp_path):
    table = rows(10)
    target_only = table.drop_columns([name for name in table.column_names if name.startswith("source_user_history")])
    opened = write_version(tmp_path / "set", target_only, version=1, row_group_size=16)
    assert len(opened.vocabulary().source_items) == 0
    for row in (opened.torch()[3], next(iter(opened.torch(stream=True)))):
        assert not {"source_history", "source_ages"} & set(row)
        assert row["numeric"].shape == (5,)
        assert row["numeric"][0] == 0


def start_method(workers: int) -> str | None:
    """How a loader starts its workers: not by forking this process, in which other tests have left threads."""
    return "forkserver" if workers else None


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_in_memory_go_through_a_data_loader(made, workers):
    opened = made()
    options = {"num_workers": workers, "multiprocessing_context": start_method(workers)}
    loader = DataLoader(opened.torch(), batch_size=32, shuffle=True, **options)
    batches = list(loader)
    assert [len(batch["user"]) for batch in batches] == [32, 32, 32, 4]
    assert batches[0]["source_history"].shape == (32, 5)
    times = torch.cat([batch["event_time"] for batch in batches])
    assert sorted(times.tolist()) == [NOW + n * DAY for n in range(100)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 24])
def test_a_stream_gives_each_row_once_whatever_the_workers(made, workers, batch_size):
    stream = made().torch(stream=True, batch_size=batch_size, shuffle=True, seed=3)
    options = {"num_workers": workers, "multiprocessing_context": start_method(workers)}
    loader = DataLoader(stream, batch_size=None if batch_size else 10, **options)
    times = torch.cat([batch["event_time"] for batch in loader]).tolist()
    assert times != sorted(times)
    assert sorted(times) == [NOW + n * DAY for n in range(100)]


def test_a_stream_keeps_the_order_unless_shuffled(made):
    times = [int(row["event_time"]) for row in made().torch(stream=True)]
    assert times == [NOW + n * DAY for n in range(100)]


def test_seed_and_epoch_decide_the_order(made):
    opened = made()

    def order(stream) -> list[int]:
        return [int(row["event_time"]) for row in stream]

    stream = opened.torch(stream=True, shuffle=True, seed=1)
    first = order(stream)
    assert order(stream) == first
    assert order(opened.torch(stream=True, shuffle=True, seed=1)) == first
    assert order(opened.torch(stream=True, shuffle=True, seed=2)) != first
    stream.set_epoch(1)
    assert order(stream) != first


def test_workers_that_persist_see_a_new_epoch(made):
    stream = made().torch(stream=True, shuffle=True)
    options = {"num_workers": 1, "multiprocessing_context": start_method(1)}
    loader = DataLoader(stream, batch_size=100, persistent_workers=True, **options)
    first = next(iter(loader))["event_time"].tolist()
    stream.set_epoch(1)
    assert next(iter(loader))["event_time"].tolist() != first


def test_stream_and_memory_hold_the_same_rows(made):
    opened = made()
    memory = opened.torch()
    for position, row in enumerate(opened.torch(stream=True)):
        assert row.keys() == memory[position].keys()
        assert all(torch.equal(row[name], memory[position][name]) for name in row)


def test_arguments_of_a_stream_need_a_stream(made):
    opened = made()
    with pytest.raises(TrainingSetError, match="DataLoader"):
        opened.torch(batch_size=3)
    with pytest.raises(TrainingSetError, match="0 rows"):
        opened.torch(stream=True, batch_size=0)


def test_another_set_is_numbered_by_the_first_ones_vocabulary(made):
    known = made().vocabulary()
    small = made(2, count=6)
    assert len(small.vocabulary().users) == 6
    assert small.torch(vocabulary=known)[5]["user"] == 6
    assert small.torch(vocabulary=known)[5]["item"] == known.encode("target_items", ["t5"])[0]


def day(text: str) -> Period:
    return utc_day(to_micros(datetime.fromisoformat(f"{text}T05:00+00:00")))


def until(text: str) -> int:
    return to_micros(datetime.fromisoformat(f"{text}T00:00+00:00"))


def test_old_months_and_years_are_one_part_where_they_are_small():
    rows = {day(text): 10 for text in ("2022-01-01", "2022-12-31", "2023-02-03", "2023-02-28", "2024-03-01", "2024-04-30")}
    rows[day("2023-05-05")] = rows[day("2023-05-06")] = 30

    def starts(cutoff: str, limit: int) -> list[str]:
        return [period.name for period in merge_periods(rows, cutoff=until(cutoff), limit=limit)]

    assert starts("2024-05-01", 50) == [
        "2022-01-01", "2023-02-01", "2023-05-05", "2023-05-06", "2024-03-01", "2024-04-30",
    ], "March is the month before the last one: it is cut by day, since late events still come"  # fmt: skip
    assert starts("2024-05-02", 50)[-2:] == ["2024-03-01", "2024-04-30"]
    assert starts("2024-05-02", 80)[1] == "2023-01-01", "a whole year"
    assert starts("2022-12-31", 80)[:2] == ["2022-01-01", "2022-12-31"], "no year that has not ended"
    assert merge_periods(rows, cutoff=until("2024-05-02"), limit=80)[0] == Period(until("2022-01-01"), until("2023-01-01"))


def test_a_cut_of_kept_parts_and_days_is_the_cut_of_days_alone():
    draw = np.random.default_rng(4)
    days = sorted({utc_day(until("2021-06-01") + int(number) * DAY) for number in draw.integers(0, 1000, 300)})
    rows = {period: int(count) for period, count in zip(days, draw.integers(1, 30, len(days)), strict=True)}
    earlier = {period: count for period, count in rows.items() if period.end <= until("2023-08-11")}
    former = merge_periods(earlier, cutoff=until("2023-08-11"), limit=100)
    totals = {larger: sum(count for one, count in earlier.items() if larger.contains(one)) for larger in former}
    parts = {
        period: DatasetPartition(period, PartitionStatistics(total, total, 0, period.start, period.start, 0), ())
        for period, total in totals.items()
    }
    changed = (until("2022-05-05"), until("2022-05-07"))
    changes = InputChanges((changed,), UNBOUNDED[1])
    kept = reusable(PreviousVersion(Path(), {}, parts), changes, cutoff=until("2024-03-01"), limit=100)
    assert len(former) > len(kept) > 20
    assert not any(period.overlaps(*changed) for period in kept)
    spans = uncovered_spans(kept, UNBOUNDED[0], until("2024-03-01"))
    staged = {
        one: PartitionStatistics(rows[one], rows[one], 0, one.start, one.start, 1)
        for one in days
        if any(a <= one.start < b for a, b in spans)
    }
    found = group_days(staged, kept, cutoff=until("2024-03-01"), limit=100)
    assert sorted([*kept, *found]) == merge_periods(rows, cutoff=until("2024-03-01"), limit=100)
    for period in found:
        inside = [one for one in days if period.contains(one)]
        assert (found[period].rows, found[period].digest) == (sum(rows[one] for one in inside), len(inside))


def test_small_groups_are_shared_out_by_their_rows():
    groups = [(Path("a"), number, size) for number, size in enumerate([8, 8, 1, 1, 1, 5, 8])]
    shares = [_share(groups, shard, 3) for shard in range(3)]
    assert sorted(group for share in shares for group in share) == groups
    assert [sum(size for _, _, size in share) for share in shares] == [16, 8, 8]
    assert [[size for _, _, size in held] for held in _together(groups, 9)] == [[8, 8], [1, 1, 1, 5, 8]]


def test_the_fingerprint_depends_on_content_not_on_order():
    assert compute_fingerprint({"a": 1, "b": [2]}) == compute_fingerprint({"b": [2], "a": 1})
    assert compute_fingerprint({"a": 1}) != compute_fingerprint({"a": 2})


def test_micros_are_exact():
    moment = datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=UTC)
    assert to_micros(moment) == 9_223_372_036_854_775
