"""Exports of a training set: what a reader without weights learns from a sample is what the weights say."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from support.training_set_folder import write_version
from training_set.test_matrix import table_of

from scalr_prod.errors import TrainingSetError
from scalr_prod.quality import check_dataset
from scalr_prod.training_set import TrainingSet
from scalr_prod.training_set.export import draw_copies

DRAWS = 1000
USERS, ITEMS = 12, 9


def opened_with(folder: Path, rows: list, **options) -> TrainingSet:
    """A version whose manifest counts its kinds of rows."""
    path = write_version(folder, table_of(rows), **options).path
    counts = {"synthetic": sum(row[4] for row in rows), "negatives": sum(row[2] == 0 for row in rows)}
    manifest = json.loads((path / "manifest.json").read_text()) | counts
    (path / "manifest.json").write_text(json.dumps(manifest))
    return TrainingSet.open(path)


def rows_of(seed: int = 0, *, negatives: bool = False) -> list:
    """Real rows of several weights, also above 1 and 0, and light synthetic ones."""
    rng = np.random.default_rng(seed)

    def keys() -> tuple[str, str]:
        return f"u{rng.integers(USERS):02d}", f"i{rng.integers(ITEMS)}"

    real = [(*keys(), 1, float(rng.choice([0, 0.5, 1, 1, 2.75])), False) for _ in range(150)]
    synthetic = [(*keys(), 1, float(rng.uniform(0, 0.1)), True) for _ in range(350)]
    negative = [(*keys(), 0, 1.0, False) for _ in range(60 if negatives else 0)]
    return [row for _, row in sorted(zip(rng.random(1000), real + synthetic + negative, strict=False))]


@pytest.fixture
def opened(tmp_path) -> TrainingSet:
    return opened_with(tmp_path / "set", rows_of())


def exported(opened: TrainingSet, path: Path, **options) -> pd.DataFrame:
    """The rows of a sampled CSV file."""
    opened.export(path, weights="sample", **options)
    return pd.read_csv(path)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A set's rows, and a thousand draws of them in one file."""
    folder = tmp_path_factory.mktemp("draws")
    opened = opened_with(folder / "set", rows_of())
    return opened.to_pandas(), exported(opened, folder / "rows.csv", epochs=DRAWS)


def z_scores(weighted: pd.Series, sampled: pd.DataFrame) -> pd.Series:
    """How far the mean over draws (a row each) is from the weighted sum, in standard errors; sums by columns."""
    errors = sampled.std() / np.sqrt(len(sampled))
    return (sampled.mean() - weighted) / errors


@pytest.mark.parametrize("form", ["csv", "recbole", "parquet"])
def test_a_damaged_file_of_rows_is_named(opened, tmp_path, form):
    damaged = opened.files[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(TrainingSetError, match="its SHA-256 differs") as caught:
        opened.export(tmp_path / "out", form)
    assert caught.value.where == str(damaged)
    assert "scalr dataset build" in caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_expected_loss_over_samples_is_the_weighted_loss(thousand):
    rows, sampled = thousand
    rng = np.random.default_rng(1)
    users, items = (rng.normal(size=(number, 4)) for number in (USERS, ITEMS))

    def losses(events: pd.DataFrame) -> np.ndarray:
        scores = (users[events["user_id"].str[1:].astype(int)] * items[events["item_id"].str[1:].astype(int)]).sum(axis=1)
        return np.logaddexp(0, -scores)

    weighted = (losses(rows) * rows["weight"]).sum()
    by_draw = sampled.assign(loss=losses(sampled)).groupby("epoch")["loss"].sum()
    assert len(by_draw) == DRAWS
    (z,) = z_scores(pd.Series({"loss": weighted}), by_draw.to_frame())
    assert abs(z) < 3
    # A reader that drops the column weight from all rows is far from it.
    assert losses(rows).sum() > 1.5 * weighted


@pytest.mark.parametrize("key", ["user_id", "item_id", "is_synthetic"])
def test_mass_is_unbiased_by_user_and_item_and_for_both_kinds_of_rows(thousand, key):
    rows, sampled = thousand
    weighted = rows.groupby(key)["weight"].sum()
    by_draw = pd.crosstab(sampled["epoch"], sampled[key])
    scores = z_scores(weighted.set_axis(by_draw.columns), by_draw)
    assert (scores.abs() < 3.5).all(), scores
    assert (scores**2).mean() < 2, "not all of them on the edge"


def test_draws_of_several_epochs_are_independent(thousand):
    rows, sampled = thousand
    loads = sampled.groupby("epoch").size()
    assert abs(np.corrcoef(loads[:-1], loads[1:])[0, 1]) < 3 / np.sqrt(DRAWS)
    assert loads.var() == pytest.approx((rows["weight"] % 1 * (1 - rows["weight"] % 1)).sum(), rel=0.15)


def test_copies_are_the_whole_weight_and_perhaps_one_more():
    weights = np.array([0, 0.03, 1, 2, 2.75, 1e3])
    copies = np.stack([draw_copies(weights, np.random.default_rng(seed)) for seed in range(4000)])
    assert (copies[:, [0, 2, 3, 5]] == weights[[0, 2, 3, 5]]).all()
    assert set(copies[:, 1]) == {0, 1}
    assert set(copies[:, 4]) == {2, 3}
    assert copies[:, 1].mean() == pytest.approx(0.03, abs=3 * np.sqrt(0.03 / 4000))
    assert copies[:, 4].mean() == pytest.approx(2.75, abs=3 * np.sqrt(0.19 / 4000))


def test_a_sample_depends_on_seed_and_epoch_and_not_on_how_rows_are_stored(opened, tmp_path):
    first = exported(opened, tmp_path / "a.csv", seed=7)
    again = opened_with(tmp_path / "other", rows_of(), row_group_size=13)
    pd.testing.assert_frame_equal(exported(again, tmp_path / "b.csv", seed=7), first)
    assert not exported(opened, tmp_path / "c.csv", seed=8).equals(first)
    several = exported(opened, tmp_path / "d.csv", seed=7, epochs=3)
    draws = [part.drop(columns="epoch").reset_index(drop=True) for _, part in several.groupby("epoch")]
    pd.testing.assert_frame_equal(draws[0], first)
    assert not draws[1].equals(draws[0])
    assert several["epoch"].is_monotonic_increasing
    assert all(draw["timestamp"].is_monotonic_increasing for draw in draws)


def test_the_report_compares_what_was_drawn_with_what_is_expected(opened, tmp_path):
    rows = opened.to_pandas()
    found = opened.export(tmp_path / "rows.csv", weights="sample", epochs=2, seed=3).to_json()
    written = pd.read_csv(tmp_path / "rows.csv")
    sample = found["sample"]
    assert (found["weights"], sample["seed"]) == ("sample", 3)
    assert sample["expected_rows"] == pytest.approx(rows["weight"].sum())
    assert sample["expected_synthetic"] == pytest.approx(rows["weight"][rows["is_synthetic"]].sum(), rel=1e-6)
    assert (found["rows"], found["synthetic"]) == (len(written), written["is_synthetic"].sum())
    for draw, (_, part) in zip(sample["draws"], written.groupby("epoch"), strict=True):
        kept = Counter(part["timestamp"])
        of_synthetic = part[part["is_synthetic"] == 1]
        assert (draw["rows"], draw["synthetic"]) == (len(part), len(of_synthetic))
        assert draw["left_out"] == len(rows) - len(kept)
        assert draw["left_out_synthetic"] == rows["is_synthetic"].sum() - of_synthetic["timestamp"].nunique()
    assert opened.export(tmp_path / "weights.csv").to_json()["sample"] is None
    verdict = check_dataset(tmp_path / "weights.csv", folder=tmp_path / "docs")
    assert (verdict.kind, verdict.passed) == ("csv", True), [str(rule) for rule in verdict.rules if rule.outcome == "failed"]


def test_a_row_of_a_large_weight_is_written_in_several_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("scalr_prod.training_set.export._ROWS_AT_ONCE", 16)
    opened = opened_with(tmp_path / "set", [("u", "a", 1, 100.0, False), ("u", "b", 1, 0.0, True), ("v", "c", 1, 33.0, False)])
    assert Counter(exported(opened, tmp_path / "rows.csv")["item_id"]) == {"a": 100, "c": 33}


def test_epochs_of_rows_that_are_not_sampled_are_refused(opened, tmp_path):
    with pytest.raises(TrainingSetError, match="not sampled") as caught:
        opened.export(tmp_path / "rows.csv", epochs=2)
    assert "sample" in caught.value.next_step
    with pytest.raises(TrainingSetError, match="0 epochs"):
        opened.export(tmp_path / "rows.csv", weights="sample", epochs=0)
    assert not (tmp_path / "rows.csv").exists()


def as_recbole_reads(folder: Path) -> tuple[pd.DataFrame, dict]:
    """The rows that RecBole 1.2.1 trains on: its settings, `Dataset._load_feat`, `_remove_duplication` and `split_by_ratio`, in short."""
    settings = yaml.load((folder / f"{folder.name}.yaml").read_text(), Loader=yaml.FullLoader)  # noqa: S506 - as RecBole does
    file = Path(settings["data_path"]) / folder.name / f"{folder.name}.inter"
    names = dict(one.split(":") for one in file.read_text().partition("\n")[0].split("\t"))
    loaded = settings["load_col"]["inter"]
    used = {f"{name}:{names[name]}": np.float64 if names[name] == "float" else str for name in loaded}
    rows = pd.read_csv(file, delimiter="\t", usecols=list(used), dtype=used, engine="python").set_axis(loaded, axis=1)
    if settings["rm_dup_inter"] is not None:
        rows = rows.drop_duplicates(["user_id", "item_id"], keep=settings["rm_dup_inter"])
    train, valid, test = settings["eval_args"]["split"]["RS"]
    assert (train, valid, test) == (1, 0, 0), "no synthetic row is validated or tested on"
    return rows, settings


def test_recbole_reads_a_sample_without_any_weight(opened, tmp_path):
    report = opened.export(tmp_path / "films", "recbole", seed=5)
    assert report.weights == "sample"
    rows, settings = as_recbole_reads(tmp_path / "films")
    sampled = exported(opened, tmp_path / "rows.csv", seed=5)
    pd.testing.assert_frame_equal(rows, sampled[list(rows)])
    assert list(rows) == ["user_id", "item_id", "timestamp"]
    assert "train_neg_sample_args" not in settings, "RecBole draws its own negatives"
    assert json.loads((tmp_path / "films" / "export.json").read_text()) == report.to_json()
    assert sorted(path.name for path in (tmp_path / "films").iterdir()) == ["export.json", "films.inter", "films.yaml"]


def test_the_weight_is_in_recboles_file_only_on_request(opened, tmp_path):
    opened.export(tmp_path / "films", "recbole", weights="column")
    rows, _ = as_recbole_reads(tmp_path / "films")
    assert list(rows) == ["user_id", "item_id", "timestamp", "weight"]
    assert rows["weight"].sum() == pytest.approx(opened.to_pandas()["weight"].sum(), rel=1e-6)
    header = (tmp_path / "films" / "films.inter").read_text().partition("\n")[0]
    assert header.split("\t")[3:] == ["label:float", "weight:float", "is_synthetic:float"]


def test_recbole_takes_negatives_for_negatives(tmp_path):
    """With its own negative sampling it would take every row for an event."""
    opened = opened_with(tmp_path / "set", rows_of(negatives=True))
    opened.export(tmp_path / "films", "recbole")
    rows, settings = as_recbole_reads(tmp_path / "films")
    assert (rows["label"] == 0).sum() == 60
    assert settings["train_neg_sample_args"] is None
    assert settings["eval_args"]["mode"] == "labeled"


def test_recbole_reads_several_draws_as_one_data_set(opened, tmp_path):
    report = opened.export(tmp_path / "films", "recbole", epochs=3)
    rows, _ = as_recbole_reads(tmp_path / "films")
    assert len(rows) == report.rows == sum(draw.rows for draw in report.sample.draws)
    assert "3 draws" in (tmp_path / "films" / "films.yaml").read_text()


@pytest.mark.parametrize("read", ["to_arrow", "to_pandas", "to_polars"])
@pytest.mark.parametrize("columns", [["user_id", "item_id"], ["label", "target_user_history__event_count"]])
def test_a_read_that_drops_the_weight_warns_with_the_fix(opened, read, columns):
    with pytest.warns(UserWarning, match=r"each of the 350 synthetic rows .* read weight, too") as caught:
        getattr(opened, read)(columns)
    assert [one.filename for one in caught] == [__file__], "the warning names the line that reads"


@pytest.mark.parametrize(
    "columns",
    [
        None,
        ["user_id", "item_id", "weight"],
        ["user_id", "item_id", "is_synthetic"],
        ["user_id"],
        ["label"],
        ["target_user_history__event_count", "target_item_stats__event_count"],
    ],
)
def test_other_reads_do_not_warn(opened, tmp_path, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.to_arrow(columns)
        opened.torch()
        opened.matrix()
        opened.seen()
        opened.export(tmp_path / "rows.csv")


def test_a_set_without_synthetic_rows_does_not_warn(tmp_path):
    opened = opened_with(tmp_path / "set", [row for row in rows_of() if not row[4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.to_arrow(["user_id", "item_id"])
