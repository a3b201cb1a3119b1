"""Parts of a training set by time, beside sets that end where a part ends, and pandas."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from support.training_set_project import SHARED, at, build, lake
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityGateFailed, TrainingSetError
from scalr_prod.operations.erasure.files import _update_training_set_counts
from scalr_prod.quality import check_dataset
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set, spine_build
from scalr_prod.training_set.splits import split_sql

pytestmark = pytest.mark.slow
#: The first run of the project was known at day 120, the second one later than the first boundary.
SPLITS = {"validation": at(130.5), "test": at(150)}
OPTIONS = {"name": "parts", "cutoff": at(190), "splits": SPLITS, "negatives_per_event": 1, "segment_weights": (0.5, 0.0, 0.25)}


@pytest.fixture(scope="module")
def project(projects):
    return projects("string")


@pytest.fixture(scope="module")
def parts(project):
    """The set with three parts: settings, report and reader."""
    return build(project, **OPTIONS)


def test_train_is_the_set_that_ends_at_the_first_boundary(project, parts):
    """Rows, weights, negatives and features: nothing of a row is from after it."""
    _, report, opened = parts
    _, alone, ended = build(project, **OPTIONS | {"name": "ended", "cutoff": SPLITS["validation"], "splits": {}})
    train = opened.split("train")
    assert set(train.to_arrow()["split"].to_pylist()) == {"train"}
    assert train.to_arrow().drop_columns("split").equals(ended.to_arrow())
    assert train.manifest["synthetic"] == alone.synthetic == report.synthetic > 50
    assert {name: report.splits["train"][name] for name in ("rows", "real", "synthetic", "negatives")} == {
        name: getattr(alone, name) for name in ("rows", "real", "synthetic", "negatives")
    }


def test_every_real_event_is_in_the_part_of_its_time_if_it_was_known_by_its_end(parts):
    settings, report, opened = parts
    rows, events = opened.to_pandas(), lake(settings, Table.TARGET_EVENTS)
    edges = [pd.Timestamp(time) for time in (at(-9999), *SPLITS.values(), OPTIONS["cutoff"])]
    assert opened.splits == ["train", "validation", "test"]
    keys, late = ["user_id", "item_id", "event_timestamp", "weight"], 0
    for name, start, end in zip(opened.splits, edges[:-1], edges[1:], strict=True):
        there = events[(events["event_timestamp"] >= start) & (events["event_timestamp"] < end)]
        want = there[there["created_timestamp"] <= end]
        late += len(there) - len(want)
        part = opened.split(name)
        found = part.to_pandas()
        assert part.to_arrow().equals(opened.dataset().to_table(filter=ds.field("split") == name))
        real = found[~found["is_synthetic"] & (found["label"] == 1)]
        left, right = (frame[keys].sort_values(keys, ignore_index=True) for frame in (real, want))
        pd.testing.assert_frame_equal(left, right, check_dtype=False)
        assert len(part) == len(found) == report.splits[name]["rows"]
        assert report.splits[name]["real"] == len(want) > 20
    assert late > 20, "the case occurs"
    assert not rows.loc[rows["split"] != "train", "is_synthetic"].any()
    assert "split" not in opened.features
    made = lake(settings, Table.SYNTHETIC_TARGET_EVENTS)
    made = made[made["event_timestamp"] < OPTIONS["cutoff"]]
    assert report.synthetic_unknown == (made["created_timestamp"] > SPLITS["validation"]).sum() > 0


def test_every_reader_reads_a_part_with_the_ids_of_the_whole(parts, tmp_path):
    _, _, opened = parts
    whole = opened.to_pandas()
    for name in opened.splits:
        part, rows = opened.split(name), whole[whole["split"] == name]
        assert part.matrix().shape == opened.matrix().shape
        assert part.seen().sum() == ((rows["label"] == 1) & ~rows["is_synthetic"]).sum()
        assert part.to_polars().height == part.dataset().count_rows() == len(rows)
        for data in (part.torch(), part.torch(stream=True)):
            times = np.concatenate([batch["event_time"].numpy() for batch in DataLoader(data, batch_size=64)])
            np.testing.assert_array_equal(times, rows["event_timestamp"].astype("int64"))
        written = part.export(tmp_path / f"{name}.csv")
        assert (written.rows, written.synthetic) == (len(rows), rows["is_synthetic"].sum())
    difference = sum(opened.split(name).matrix() for name in opened.splits) - opened.matrix()
    assert abs(difference).max() < 1e-4
    with pytest.raises(TrainingSetError, match="no split 'dev'; there are train, validation, test"):
        opened.split("dev")


@pytest.mark.long
def test_the_same_splits_give_the_same_version_and_later_rows_leave_the_parts_before_as_they_are(project, parts):
    _, report, opened = parts
    _, again, _ = build(project, **OPTIONS)
    assert (again.created, again.version, again.splits) == (False, report.version, report.splits)
    _, later, grown = build(project, **OPTIONS | {"cutoff": at(200)})
    kept = [name for name in opened.manifest["splits"]["train"]["files"] if (grown.path / name).samefile(opened.path / name)]
    assert kept, "files are reused"
    assert later.created
    for name in ("train", "validation"):
        assert grown.split(name).to_arrow().equals(opened.split(name).to_arrow())
    _, other, moved = build(project, **OPTIONS | {"splits": {"test": SPLITS["test"]}})
    assert other.created
    assert moved.splits == ["train", "test"]


def test_counts_of_parts_are_true_after_an_erasure(parts, tmp_path):
    _, _, opened = parts
    import shutil

    copy = TrainingSet.open(shutil.copytree(opened.path, tmp_path / "v1"))
    first = copy.split("test").files[0]
    rows = pd.read_parquet(first)
    rows.iloc[1:].to_parquet(first)
    content = dict(copy.manifest)
    assert _update_training_set_counts(copy.path, content)
    assert content["splits"]["test"]["rows"] == opened.manifest["splits"]["test"]["rows"] - 1
    assert content["splits"]["train"] == opened.manifest["splits"]["train"]


def test_a_set_that_would_leak_is_refused_with_what_to_set(project):
    options = {"name": "leaks", "splits": {"test": at(100)}}
    with pytest.raises(TrainingSetError, match=r"none of the \d+ published synthetic events may be in train") as caught:
        build(project, **options)
    assert '[generation] end = "2024-04-10T00:00:00+00:00"' in caught.value.next_step
    settings = load_settings(project, training_set=options)
    assert not list((settings.home / "datasets" / "leaks").glob("v*"))
    _, real, opened = build(project, **options, synthetic_weight=0)
    assert (real.synthetic, opened.splits) == (0, ["train", "test"])


@pytest.mark.parametrize(
    ("splits", "match"),
    [
        ({"validation": at(50), "test": at(40)}, "test begins at .* not after validation"),
        ({"test": at(400)}, "test begins at .* outside of the labels"),
        ({"validation": at(130.25), "test": at(130.5)}, "validation has no real event"),
    ],
)
def test_parts_without_a_row_are_refused(project, splits, match):
    with pytest.raises(TrainingSetError, match=match):
        build(project, name="empty", splits=splits, cutoff=at(190))


@pytest.mark.long
def test_times_without_a_zone_are_the_projects(project):
    settings = load_settings(
        project, project={"timezone": "America/New_York"}, training_set={"name": "zone", "splits": {"test": "2024-05-31"}}
    )
    opened = TrainingSet.open(build_training_set(settings).path)
    assert opened.manifest["splits"]["test"]["start"] == "2024-05-31T04:00:00+00:00"


def test_the_gate_refuses_a_synthetic_row_outside_of_train(project, monkeypatch):
    monkeypatch.setattr(
        spine_build, "split_sql", lambda window: f"(CASE WHEN is_synthetic THEN 'test' ELSE {split_sql(window)} END)"
    )
    with pytest.raises(QualityGateFailed, match="a synthetic row is in the split train"):
        build(project, **OPTIONS | {"name": "wrong"})


def test_a_set_with_parts_passes_the_check_of_training_sets(parts):
    settings, report, _ = parts
    assert check_dataset(report.path, settings=settings).passed
    audit = check_dataset(report.path, suite="leaks", settings=settings)
    assert audit.passed
    assert {rule.rule for rule in audit.rules if rule.outcome == "skipped"} == {"known_by_the_label"}, (
        "rows have no creation time"
    )


def test_hugging_face_loads_the_exported_folder_by_part(parts, tmp_path):
    import datasets

    _, report, opened = parts
    written = opened.export(tmp_path / "films", "parquet")
    assert (written.rows, written.synthetic, written.weights) == (report.rows, report.synthetic, "column")
    loaded = datasets.load_dataset(str(tmp_path / "films"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {name: part["rows"] for name, part in report.splits.items()}
    assert not any(loaded["test"]["is_synthetic"])
    assert loaded["train"]["user_id"] == opened.split("train").to_arrow()["user_id"].to_pylist()
    card = (tmp_path / "films" / "README.md").read_text()
    for name, part in report.splits.items():
        assert f"| {name} | " in card
        assert f" | {part['rows']:,} | {part['real']:,} | {part['synthetic']:,} | {part['negatives']:,} |" in card
    assert all(f"| `{name}` |" in card for name in opened.manifest["columns"])
    assert "`run_00000000000000aa`" in card
    assert "run_00000000000000bb" not in card, "a run whose events are left out"
    assert "[0.5, 0.0, 0.25]" in card


@pytest.mark.long
def test_a_part_alone_or_a_set_without_parts_is_one_split_of_the_folder(project, parts, tmp_path):
    import datasets

    _, _, opened = parts
    opened.split("validation").export(tmp_path / "validation", "parquet")
    assert list(datasets.load_dataset(str(tmp_path / "validation"), cache_dir=str(tmp_path / "cache"))) == ["validation"]
    _, report, whole = build(project, **SHARED)
    whole.export(tmp_path / "whole", "parquet")
    loaded = datasets.load_dataset(str(tmp_path / "whole"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": report.rows}
    with pytest.raises(TrainingSetError, match="as they are"):
        whole.export(tmp_path / "sampled", "parquet", weights="sample")
    assert not (tmp_path / "sampled").exists()


def test_the_command_exports_a_part(project, parts, tmp_path):
    _, _, opened = parts
    overrides = {"SCALR_TRAINING_SET__NAME": "parts"}
    call = ["dataset", "export", str(tmp_path / "rows.csv"), "--split", "test", "--config", str(project), "--json"]
    done = CliRunner().invoke(app, call, env=overrides)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == len(opened.split("test"))
    refused = CliRunner().invoke(app, [*call[:2], str(tmp_path / "more.csv"), "--split", "dev", *call[5:]], env=overrides)
    assert refused.exit_code == 1
    assert "there is no split 'dev'; there are train" in refused.output
