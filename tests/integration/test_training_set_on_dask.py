"""Training sets built on Dask workers: the same bytes as in one process, whatever is lost on the way, and no file left behind."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.built_tables import fill_lake
from support.lost_worker import lose_a_worker
from support.object_store import BUCKET, running_store

from scalr_prod.compute import executor
from scalr_prod.errors import ComputeError, TrainingSetError
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest.sort_by_time import SORT_COLUMNS
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.quality import GateReport, range_audit, training_set, validate_training_set
from scalr_prod.schemas import Table, table_schema
from scalr_prod.training_set import build_training_set, features, grouped_join, spine_build, spine_tasks, vocabulary
from scalr_prod.training_set.manifest import read_manifest, verify_files

#: Starts worker processes.
long = pytest.mark.long

EVENTS = 2_000
#: Rows of a task that sorts, in these tests.
ROWS = 600

#: What decides in which round a row is labelled: by itself, or beside the other rows of its user.
LABELS = {
    "plain": {"negatives_per_event": 0},
    "popular negatives": {"negatives_per_event": 2, "negative_sampling": "popularity"},
    "by segment, with splits and a holdout": {
        "negatives_per_event": 1,
        "segment_weights": (1.0, 0.0, 0.5),
        "splits": {"validation": datetime(2024, 1, 12), "test": datetime(2024, 1, 17)},  # noqa: DTZ001 - of the project's zone
        "experiment": {"holdout": 0.2, "key": "a key of the company"},
        "downstream": {"sparse_below": 20},
    },
}


@pytest.fixture
def small(monkeypatch):
    """Many joins and tasks of few rows."""
    monkeypatch.setattr(features, "max_partition_rows", lambda _: 600)
    monkeypatch.setattr(grouped_join, "_TASK_ROWS", 1_500)
    monkeypatch.setattr("scalr_prod.compute.rounds._ROUND_TASKS", 6)
    monkeypatch.setattr(vocabulary, "_MERGED_FILES", 3)
    monkeypatch.setattr(spine_build, "_TASK_EVENTS", 300)
    monkeypatch.setattr(spine_build, "_DRAWS_PER_ROW", 1)
    monkeypatch.setattr(spine_tasks, "_CHUNK_ROWS", 128)
    monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", ROWS)
    monkeypatch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)
    monkeypatch.setattr(range_audit, "_TASK_ROWS", ROWS)
    monkeypatch.setattr("scalr_prod.quality.training_set.validate_training_set", validate)


#: Reports of the gate.
REPORTS: list[GateReport] = []


def validate(*arguments, **options) -> GateReport:
    """Run the gate, and keep its report."""
    REPORTS.append(validate_training_set(*arguments, **options))
    return REPORTS[-1]


def project(folder: Path, **sections):
    """A project with histories and synthetic events, ready to build training sets."""
    settings = fill_lake(folder, EVENTS, **sections)
    lake, drawn = Lake.open(settings), np.random.default_rng(1)
    build_histories(settings)
    # Files have random names, and are read in an order of their own.
    source = lake.read(Table.SOURCE_EVENTS).sort_by([(name, "ascending") for name in SORT_COLUMNS])
    source = source.take(np.linspace(0, len(source) - 1, 400, dtype=np.int64))
    schema = table_schema(Table.SYNTHETIC_TARGET_EVENTS, user="string", item="int64")
    columns = {
        "event_id": pa.array([f"event {number}" for number in range(400)]),
        "item_id": pa.array(drawn.integers(0, EVENTS // 50, 400)),
        "source_domain": pa.array(["a"] * 400),
        "source_item_id": source["item_id"],
        "source_event_timestamp": source["event_timestamp"],
        "run_id": pa.array(["run_00000000000000aa"] * 400),
        **{name: source[name] for name in ("user_id", "event_timestamp", "created_timestamp")},
        **{name: pa.array(drawn.random(400)).cast(schema.field(name).type) for name in ("probability", "weight")},
        "translator_version": pa.array([1] * 400),
    }
    lake.create(Table.SYNTHETIC_TARGET_EVENTS, schema)
    arrays = [columns[field.name].cast(field.type) for field in schema]
    lake.append(Table.SYNTHETIC_TARGET_EVENTS, pa.table(arrays, schema=schema), key="once")
    apply_feature_repo(settings)
    return settings


def build(settings, name: str, labels: dict | None = None, **compute) -> dict:
    """Build a training set, and return its manifest without what depends on the set's name and on the time."""
    options = {"negatives_per_event": 1} | (labels or {})
    sections = {section: options.pop(section) for section in ("experiment", "downstream") if section in options}
    sections |= {"training_set": options | {"name": name}, "compute": compute}
    changed = {section: getattr(settings, section).model_copy(update=values) for section, values in sections.items()}
    report = build_training_set(settings.model_copy(update=changed))
    manifest = read_manifest(Path(report.path))
    verify_files(Path(report.path), manifest)
    assert len(manifest["parts"]) > 5
    assert manifest["rows"] > 2_000
    assert not any((settings.home / "staging").iterdir())
    report = REPORTS.pop()
    assert report.rows == manifest["rows"]
    gate = {"rules": [rule.to_json() for rule in report.rules], "figures": report.figures}
    return {key: value for key, value in (manifest | gate).items() if key not in {"name", "fingerprint", "created_at"}}


def shuffle_files(settings) -> list[str]:
    return [path.name for path in Path(Lake.open(settings).uri(Table.TARGET_EVENTS)).rglob("shuffle-*")]


@pytest.fixture
def runs(monkeypatch) -> dict[str, list[int]]:
    """Number of rows that each task of the spine held, by the name of the task."""
    held: dict[str, list[int]] = {"write_events": [], "write_user_rows": [], "write_range": []}
    read, load, write = spine_tasks._read_view, spine_tasks.load_segments, spine_tasks._write_chunks

    def read_view(*arguments):
        rows = read(*arguments)
        held["write_events"].append(len(rows))
        return rows

    def load_rows(*arguments, name, **options):
        rows = load(*arguments, name=name, **options)
        held["write_user_rows"].append(rows)
        return rows

    def write_chunks(*arguments):
        chunks = write(*arguments)
        held["write_range"].append(sum(chunk.rows for chunk in chunks))
        return chunks

    monkeypatch.setattr(spine_tasks, "_read_view", read_view)
    monkeypatch.setattr(spine_tasks, "load_segments", load_rows)
    monkeypatch.setattr(spine_tasks, "_write_chunks", write_chunks)
    return held


@pytest.mark.slow
@pytest.mark.parametrize("labels", [pytest.param(labels, marks=long, id=name) for name, labels in LABELS.items()])
def test_workers_of_a_scheduler_write_the_same_bytes_and_no_task_holds_all_rows(small, here, tmp_path, runs, labels):
    settings = project(tmp_path)
    manifest = build(settings, "workers", labels, dask=here)
    assert not shuffle_files(settings)
    assert len(runs["write_events"]) > 8, "two parts of each of eight files, some without a row group"
    if "splits" in labels:
        assert sum(runs["write_events"]) < EVENTS + 400, "some events became known only after the end of their split"
    else:
        assert sum(runs["write_events"]) == EVENTS + 400
    assert max(runs["write_events"]) <= EVENTS // 4
    assert len(runs["write_range"]) >= manifest["rows"] // ROWS
    by_user = [rows for rows in runs["write_user_rows"] if rows]
    assert len(by_user) >= (0 if labels["negatives_per_event"] == 0 else EVENTS // ROWS)
    assert max([*runs["write_range"], *by_user]) <= 2 * ROWS
    assert build(settings, "alone", labels) == manifest


@long
def test_the_rows_do_not_depend_on_how_they_are_divided_among_tasks(small, tmp_path, monkeypatch):
    settings = project(tmp_path)
    divided = {name: build(settings, f"divided_{number}", labels) for number, (name, labels) in enumerate(LABELS.items())}
    monkeypatch.setattr(spine_build, "_TASK_EVENTS", 1_000_000)
    monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", 500_000)
    monkeypatch.setattr("scalr_prod.compute.rounds._ROUND_TASKS", 64)
    monkeypatch.setattr(vocabulary, "_MERGED_FILES", 16)
    whole = {name: build(settings, f"whole_{number}", labels) for number, (name, labels) in enumerate(LABELS.items())}
    assert divided == whole
    assert all(manifest["synthetic"] for manifest in whole.values())
    assert 0 < whole["by segment, with splits and a holdout"]["synthetic"] < whole["plain"]["synthetic"]


@long
def test_workers_and_driver_share_nothing_but_an_object_store(small, here, tmp_path, monkeypatch):
    with running_store(honours_conditions=True) as store:
        lake = {"lake": f"s3://{BUCKET}/lake", "storage_options": store.options}
        settings = project(tmp_path / "project", project=lake)
        expected = build(settings, "alone")
        tasks, ran = executor._Workers.map, []

        def map_elsewhere(*arguments):
            """Nothing of the home but the driver's own staged files exists while tasks run."""
            with hidden(settings.feast_repo, settings.home / "feast_registry.db"):
                for result in tasks(*arguments):
                    ran.append(result)
                    yield result

        monkeypatch.setattr(executor._Workers, "map", map_elsewhere)
        assert build(settings, "workers", dask=here) == expected
        assert len(ran) > 20
        left = store.keys()
    assert not [key for key in left if "shuffle-" in key]


@contextmanager
def hidden(*paths: Path):
    for path in paths:
        path.rename(f"{path}.hidden")
    try:
        yield
    finally:
        for path in paths:
            Path(f"{path}.hidden").rename(path)


@long
def test_an_error_of_a_task_arrives_as_it_was_raised_and_nothing_is_left(small, here, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise TrainingSetError("other rows", where="here", next_step="look")

    settings = project(tmp_path)
    monkeypatch.setattr(grouped_join, "write_tables", fail)
    with pytest.raises(TrainingSetError, match="other rows"):
        build(settings, "failed", dask=here)
    assert not shuffle_files(settings)
    assert not any((settings.home / "staging").iterdir())
    assert not list((settings.home / "datasets" / "failed").glob("v*"))
    with Ledger.open(settings) as ledger:
        assert ledger.datasets.find("failed") == []


@long
def test_an_unexpected_error_names_the_command(small, here, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no such thing")

    settings = project(tmp_path)
    monkeypatch.setattr(features, "_write_files", fail)
    with pytest.raises(ComputeError, match="ValueError: no such thing") as caught:
        build(settings, "failed", dask=here)
    assert caught.value.next_step == "fix the cause, then run: scalr dataset build"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "task"),
    [
        pytest.param(spine_build, "write_events", marks=long),
        pytest.param(spine_build, "write_user_rows", marks=long),
        pytest.param(spine_build, "write_range", marks=long),
        pytest.param(grouped_join, "_write_ranges", marks=long),
        pytest.param(grouped_join, "_join_ranges", marks=long),
        pytest.param(features, "_write_files", marks=long),
        pytest.param(vocabulary, "_write_distinct", marks=long),
        pytest.param(vocabulary, "_merge_range", marks=long),
        pytest.param(vocabulary, "_write_kind", marks=long),
        pytest.param(training_set, "judge_range", marks=long),
    ],
)
def test_a_worker_that_dies_changes_no_byte(small, tmp_path, monkeypatch, module, task):
    settings = project(tmp_path / "project")
    expected, died = build(settings, "alone", workers=1), tmp_path / "died"
    lose_a_worker(monkeypatch, module, task, died)
    assert build(settings, "workers", workers=2) == expected
    assert died.exists()


@long
@pytest.mark.slow
def test_any_number_of_local_workers_writes_the_same_bytes(small, tmp_path, monkeypatch):
    settings = project(tmp_path)
    expected = build(settings, "alone", workers=1)
    monkeypatch.setattr(executor, "is_distributed", lambda *_, **__: True)
    for workers in (1, 2, 4):
        assert build(settings, f"workers_{workers}", workers=workers) == expected
