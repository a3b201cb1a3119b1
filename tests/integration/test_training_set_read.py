"""A training set as others read it: Parquet, PyTorch, Feast, Hugging Face, exported files."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.training_set_project import BOTH_ID_TYPES, LENGTH, SHARED, build

from scalr_prod.core.hashing import file_sha256
from scalr_prod.errors import TrainingSetError
from scalr_prod.features import open_feature_store
from scalr_prod.training_set import TrainingSet

pytestmark = pytest.mark.slow
#: Exports, or reads with another library, the set that the others read.
long = pytest.mark.long


@pytest.fixture
def project(request, projects):
    return projects(getattr(request, "param", "string"))


def test_rows_come_in_order_of_time_in_plain_parquet(project):
    _, report, opened = build(project, **SHARED)
    rows = opened.to_pandas()
    assert rows["event_timestamp"].is_monotonic_increasing
    frame = pd.read_parquet(opened.path / "rows")
    pd.testing.assert_frame_equal(frame, rows)
    scanned = pl.scan_parquet(opened.path / "rows").collect()
    assert scanned.equals(opened.to_polars())
    assert scanned.height == report.rows
    stamps = {name: kind for name, kind in opened.manifest["columns"].items() if "timestamp" in kind}
    assert len(stamps) == 4
    assert all("timestamp[us, tz=UTC]" in kind for kind in stamps.values()), "Spark reads microseconds, not nanoseconds"


def test_provenance_is_no_feature(project):
    _, _, opened = build(project, **SHARED)
    assert set(opened.features) == {
        *(f"{d}_user_history__{n}" for d in ("source", "target") for n in ("item_ids", "event_timestamps", "event_count")),
        *(f"target_item_stats__{n}" for n in ("first_seen", "event_count", "trailing_event_count")),
    }
    assert [*opened.manifest["columns"]][:8] == [
        "user_id", "item_id", "event_timestamp", "label", "weight", "is_synthetic", "run_id", "source_domain",
    ]  # fmt: skip


#: As in a training job: a process that has run polars, gRPC or Dask cannot be forked safely.
LOADED = """
import json, sys
from torch.utils.data import DataLoader
from scalr_prod.training_set import TrainingSet
opened = TrainingSet.open(sys.argv[1])
found = []
for data in (opened.torch(), opened.torch(stream=True, shuffle=True)):
    seen = list(DataLoader(data, batch_size=64, num_workers=2))
    found.append({
        "rows": sum(len(batch["user"]) for batch in seen),
        "labels": sum(float(batch["label"].sum()) for batch in seen),
        "history": list(seen[0]["source_history"].shape),
        "largest_item": max(int(batch["item"].max()) for batch in seen),
        "least_user": min(int(batch["user"].min()) for batch in seen),
    })
print(json.dumps(found))
"""


@BOTH_ID_TYPES
def test_a_data_loader_with_two_workers_trains_on_it(project):
    _, report, opened = build(project, **SHARED)
    command = [sys.executable, "-c", LOADED, str(opened.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels = opened.to_pandas()["label"].sum()
    for found in json.loads(done.stdout):
        assert (found["rows"], found["labels"]) == (report.rows, labels)
        assert found["history"] == [64, LENGTH]
        assert found["largest_item"] < opened.vocabulary().size("target_items")
        assert found["least_user"] > 0


def test_it_is_a_saved_dataset_of_feast(project):
    settings, report, opened = build(project, **SHARED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls saved datasets experimental
        saved = open_feature_store(settings).get_saved_dataset(f"shared_v{report.version}")
    frame = saved.to_df()
    assert len(frame) == report.rows
    assert set(opened.features) <= set(frame.columns)


def as_exported(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": rows["user_id"].astype(str),
            "item_id": rows["item_id"].astype(str),
            "timestamp": rows["event_timestamp"].map(pd.Timestamp.timestamp),
            "label": rows["label"].astype("float64"),
            "weight": rows["weight"].astype("float64"),
            "is_synthetic": rows["is_synthetic"].astype("int64"),
        }
    )


@long
@BOTH_ID_TYPES
def test_exported_files_hold_every_row_in_order(project, tmp_path):
    _, report, opened = build(project, **SHARED)
    expected = as_exported(opened.to_pandas())
    types = expected.dtypes.to_dict()
    found = opened.export(tmp_path / "rows.csv").to_json()
    assert (found["rows"], found["synthetic"]) == (report.rows, report.synthetic)
    pd.testing.assert_frame_equal(pd.read_csv(found["path"], dtype=types), expected, rtol=1e-6)
    opened.export(tmp_path / "films", "recbole", weights="column")
    rows = pd.read_csv(tmp_path / "films" / "films.inter", sep="\t", dtype=str)
    assert list(rows) == [f"{name}:{'token' if name.endswith('_id') else 'float'}" for name in expected]
    pd.testing.assert_frame_equal(rows.set_axis(expected.columns, axis=1).astype(types), expected, rtol=1e-6)
    with pytest.raises(TrainingSetError, match="the target already exists"):
        opened.export(tmp_path / "rows.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "rows.csv"]


def test_an_id_that_would_break_a_line_is_refused_and_nothing_is_left(tmp_path):
    rows = pa.table(
        {
            "user_id": ["a", "b"],
            "item_id": ["x", "two\nlines"],
            "event_timestamp": pa.array([1, 2], pa.timestamp("us", "UTC")),
            "label": pa.array([1, 1], pa.int8()),
            "weight": pa.array([1, 1], pa.float32()),
            "is_synthetic": [False, True],
        }
    )
    (tmp_path / "set" / "rows").mkdir(parents=True)
    path = tmp_path / "set" / "rows" / "0.parquet"
    pq.write_table(rows, path)
    file = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    opened = TrainingSet(tmp_path / "set", {"version": 1, "files": {"rows/0.parquet": file}})
    with pytest.raises(TrainingSetError, match=r"two\\nlines") as caught:
        opened.export(tmp_path / "out", "recbole")
    assert "csv" in caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / ".out.csv.unfinished").write_text("somebody else's")
    opened.export(tmp_path / "out.csv")
    assert (tmp_path / ".out.csv.unfinished").read_text() == "somebody else's"
    assert list(pd.read_csv(tmp_path / "out.csv")["item_id"]) == ["x", "two\nlines"]


@long
def test_hugging_face_reads_the_files_as_they_are(project, tmp_path):
    import datasets

    _, report, opened = build(project, **SHARED)
    rows = datasets.Dataset.from_parquet([str(path) for path in opened.files], cache_dir=str(tmp_path))
    assert len(rows) == report.rows
    assert set(opened.features) < set(rows.column_names)
