"""One partition's task on a real lake, through Feast and the translator in this process: its rows and what changes none."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import TranslatorError
from scalr_prod.generation import plan_run, shards
from scalr_prod.generation.part_files import part_path, read_part
from scalr_prod.generation.shards import write_shards
from scalr_prod.generation.task import candidate_schema, close_session, generate_part, parts_folder
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.workspace.suppression_list import SuppressedId, SuppressionList

#: Draws the shared run again, with another choice for one setting or an older table.
long = pytest.mark.long

LOCAL = {"serving": {"scorer": "local", "threads": 1}}


@pytest.fixture(scope="module")
def config(trained_home, tmp_path_factory) -> Path:
    """A copy of the trained home, with Feast pointing at it."""
    from scalr_prod.features import apply_feature_repo

    folder = tmp_path_factory.mktemp("generation") / "project"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    path = folder / trained_home.name
    apply_feature_repo(load_settings(path, **LOCAL))
    return path


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_session()


def make(config: Path, spec=None, **generation):
    """Make all parts of a run; gives its settings, its spec, the manifests and the rows."""
    settings = load_settings(config, generation={"temperature": 1.0, "min_lift": 1.0} | generation, **LOCAL)
    spec = spec or plan_run(settings, version=1)
    count = settings.generation.partitions
    contexts = write_shards(settings, spec, count)
    manifests = [generate_part(settings, spec, number, count) for number in range(count)]
    assert contexts == sum(manifest["contexts"] for manifest in manifests)
    files = [part_path(parts_folder(settings.home, spec.run_id), number) for number in range(count)]
    rows = pd.concat([pd.read_parquet(file) for file in files])
    return settings, spec, manifests, rows.sort_values("event_id", ignore_index=True)


@pytest.fixture(scope="module")
def made(config):
    outcome = make(config, partitions=3)
    close_session()
    return outcome


def lake_rows(settings, table: Table) -> pd.DataFrame:
    return Lake.open(settings).read(table).to_pandas()


def test_rows_are_what_the_contract_says(made):
    settings, spec, manifests, rows = made
    schema = candidate_schema(Lake.open(settings))
    file = part_path(parts_folder(settings.home, spec.run_id), 0)
    assert pa.parquet.read_schema(file).equals(schema)
    assert len(rows) == sum(manifest["rows"] for manifest in manifests)
    assert (rows["event_timestamp"] == rows["source_event_timestamp"]).all()
    assert (rows["created_timestamp"] == spec.as_of).all()
    assert (rows["run_id"] == spec.run_id).all()
    assert (rows["translator_version"] == 1).all()
    assert rows["probability"].between(0, 1, inclusive="right").all()
    assert not rows.duplicated(["user_id", "item_id"]).any(), "a user has an item once a window"
    # min_lift = 1: no draw is less probable than popularity alone makes it.
    assert (rows["weight"] >= 0.5).all()
    for number in range(3):
        order = pd.read_parquet(part_path(parts_folder(settings.home, spec.run_id), number))[
            ["user_id", "event_timestamp", "item_id"]
        ]
        assert order.equals(order.sort_values(list(order.columns), ignore_index=True))


@long
def test_an_item_that_was_forgotten_since_the_training_is_not_drawn(made, config, tmp_path):
    rows = made[3]
    item = rows["item_id"].mode()[0]
    shutil.copytree(config.parent, tmp_path / "project")
    copied = tmp_path / "project" / config.name
    with Project.open(copied, **LOCAL) as project:
        project.histories()  # the feature views read the copy's lake from now on
    with SuppressionList.open_for_update(load_settings(copied, **LOCAL)) as stones:
        stones.update([SuppressedId(stones.digest(item, "item"), datetime.now(UTC))], "item")
    _, _, _, without = make(copied, partitions=3)
    assert item not in set(without["item_id"])
    assert len(without) > 0.9 * len(rows)  # others are drawn in its place
    contexts = ["user_id", "source_item_id", "source_event_timestamp"]
    asked = rows[rows["item_id"] == item][contexts].drop_duplicates()
    untouched = rows.merge(asked, on=contexts, how="left", indicator=True).query("_merge == 'left_only'")
    assert untouched["event_id"].isin(without["event_id"]).mean() > 0.9


def test_every_draw_is_accounted_for(made):
    settings, _, manifests, rows = made
    source = lake_rows(settings, Table.SOURCE_EVENTS)
    contexts = len(source.drop_duplicates(["user_id", "item_id", "event_timestamp"]))
    assert sum(manifest["contexts"] for manifest in manifests) == contexts
    for manifest in manifests:
        assert manifest["drawn"] == 2 * manifest["contexts"] == manifest["rows"] + sum(manifest["dropped"].values())
    assert sum(manifest["users"] for manifest in manifests) == rows["user_id"].nunique()


def test_every_row_comes_from_a_source_event_and_proposes_something_new(made):
    settings, _, _, rows = made
    source, target = lake_rows(settings, Table.SOURCE_EVENTS), lake_rows(settings, Table.TARGET_EVENTS)
    keys = ["user_id", "item_id", "event_timestamp"]
    real = set(source[keys].itertuples(index=False, name=None))
    assert set(rows[["user_id", "source_item_id", "source_event_timestamp"]].itertuples(index=False, name=None)) <= real
    assert rows.groupby(["user_id", "source_item_id", "source_event_timestamp"]).size().max() <= 2
    assert (rows["item_id"].map(target.groupby("item_id")["event_timestamp"].min()) < rows["event_timestamp"]).all()
    both = rows.merge(target, on=["user_id", "item_id"], suffixes=("", "_real"))
    assert len(both), "the test needs users who consumed an item after it was proposed"
    assert (both["event_timestamp_real"] >= both["event_timestamp"]).all()


def test_event_ids_are_a_hash_of_what_the_event_was_made_from(made):
    _, spec, _, rows = made
    for row in rows.head(50).itertuples():
        text = (
            f"{spec.translator_sha256}:{spec.seed}:{row.source_event_timestamp.value // 1000}:"
            f"{len(row.user_id)}:{row.user_id}:{len(row.source_item_id)}:{row.source_item_id}:{row.item_id}"
        )
        assert row.event_id == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def test_probabilities_are_those_of_the_translator(made):
    """Asked again for the drawn items, with contexts built by hand from the raw log."""
    from scalr_prod.core.hashing import hash_fold
    from scalr_prod.serving.client import open_scorer
    from scalr_prod.translator import Contexts, load_version
    from scalr_prod.translator.data.contexts import COLD_USERS, NO_ITEM

    settings, _, _, rows = made
    version = load_version(settings, 1)
    vocabulary, length = version.vocabulary(), settings.histories.length
    source, target = (lake_rows(settings, table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS))
    some = rows.sample(40, random_state=1)
    known = some["user_id"].isin(target["user_id"])
    assert 0 < known.sum() < len(some)
    items, ages = np.zeros((40, length), np.int32), np.zeros((40, length), np.float32)
    exclude = np.full((40, target.groupby("user_id").size().max()), NO_ITEM, np.int32)
    for place, row in enumerate(some.itertuples()):
        past = source[(source["user_id"] == row.user_id) & (source["event_timestamp"] <= row.event_timestamp)]
        past = past.sort_values("event_timestamp").tail(length)  # the made log has no ties within a user
        assert past["item_id"].iloc[-1] == row.source_item_id
        items[place, -len(past) :] = vocabulary.source_index(past["item_id"].to_list())
        had = target[(target["user_id"] == row.user_id) & (target["event_timestamp"] < row.event_timestamp)]["item_id"].unique()
        exclude[place, : len(had)] = vocabulary.target_index(had)
        ages[place, -len(past) :] = (row.event_timestamp - past["event_timestamp"]) / pd.Timedelta(days=1)
    when = some["event_timestamp"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    contexts = Contexts(
        history_items=items,
        history_ages=ages,
        history_end=when,
        event_time=when,
        fold=np.where(known, hash_fold(some["user_id"].to_list(), version.folds), COLD_USERS).astype(np.int32),
        noise_key=np.zeros(40, np.int64),
        exclude=exclude,
    )
    with open_scorer(settings, 1) as scorer:
        probability, prior = scorer.score(contexts, vocabulary.target_index(some["item_id"].to_list())[:, None])
    assert (exclude != NO_ITEM).any(), "the test needs users who had something"
    np.testing.assert_allclose(some["probability"], probability[:, 0], atol=1e-5)
    np.testing.assert_allclose(some["weight"], (probability / (probability + prior))[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    "cut", [{"partitions": 5, "batch_size": 1024}, pytest.param({"partitions": 1, "batch_size": 64}, marks=long)]
)
def test_how_the_work_is_cut_changes_no_row(config, made, cut, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_CONTEXTS", 700)
    _, spec, _, rows = make(config, **cut)
    assert spec == made[1]
    pd.testing.assert_frame_equal(rows, made[3], rtol=0, atol=1e-5)


@long
def test_shortlists_and_what_they_leave_out(config, made):
    """Of the same contexts and noise: the whole catalogue, which `made` drew from, tells what the lists lack."""
    _, spec, manifests, rows = make(config, partitions=2, shortlist=10)
    assert spec.run_id != made[1].run_id
    assert all("left_out" not in manifest for manifest in made[2])
    measured, others = (sum(manifest["left_out"][what] for manifest in manifests) for what in ("contexts", "others"))
    assert 100 < measured <= 128
    assert 0 < others / measured < 0.9
    # Events that are drawn from both have nearly the same probability and weight.
    both = rows.merge(made[3], on=["user_id", "item_id", "event_timestamp"], suffixes=("", "_of_all"))
    assert 0.1 * len(rows) < len(both) < len(rows)
    assert np.abs(np.log(both["probability"] / both["probability_of_all"])).mean() < 0.3
    assert np.abs(both["weight"] - both["weight_of_all"]).mean() < 0.05
    # Fewer events are the same than first draws: what the measure says is what these draws show.
    same = len(both) / len(made[3])
    assert same == pytest.approx(1 - others / measured, abs=0.25)
    _, _, _, again = make(config, spec, partitions=3, shortlist=10)
    pd.testing.assert_frame_equal(again, rows, rtol=0, atol=1e-5)


def test_another_seed_draws_other_events(config, made):
    _, _, _, rows = make(config, partitions=1, seed=1)
    drawn = {tuple(row) for row in rows[["user_id", "item_id", "event_timestamp"]].to_numpy()}
    before = {tuple(row) for row in made[3][["user_id", "item_id", "event_timestamp"]].to_numpy()}
    assert 0.01 < len(drawn & before) / len(before) < 0.5
    assert not set(rows["event_id"]) & set(made[3]["event_id"])


def test_consumed_items_may_be_allowed(config, made):
    settings, _, _, rows = make(config, partitions=1, exclude_consumed=False)
    assert rows.duplicated(["user_id", "item_id"]).any(), "a user may have an item again"
    assert not rows.duplicated(["user_id", "item_id", "event_timestamp"]).any()
    both = rows.merge(lake_rows(settings, Table.TARGET_EVENTS), on=["user_id", "item_id"], suffixes=("", "_real"))
    assert (both["event_timestamp_real"] < both["event_timestamp"]).any()


def test_a_window_is_half_open(config, made):
    start, end = (made[3]["event_timestamp"].sort_values().iloc[place] for place in (300, 600))
    settings = load_settings(config, **LOCAL)
    as_of = made[1].as_of
    _, _, _, rows = make(config, partitions=1, start=start.to_pydatetime(), end=end.to_pydatetime(), as_of=as_of)
    want = made[3][(made[3]["event_timestamp"] >= start) & (made[3]["event_timestamp"] < end)]
    columns = [name for name in rows.columns if name != "run_id"]
    same = rows["event_id"].isin(want["event_id"])
    found, wanted = (table[columns].reset_index(drop=True) for table in (rows[same], want))
    pd.testing.assert_frame_equal(found, wanted, rtol=0, atol=1e-5)
    earlier = made[3][made[3]["event_timestamp"] < start]
    repeated = rows[~same].merge(earlier, on=["user_id", "item_id"])
    assert repeated["event_id_x"].nunique() == (~same).sum(), "others are repetitions in the longer window"
    assert settings.generation.start is None


def test_a_failing_translator_leaves_no_part(config, made):
    settings, spec, _, _ = made
    weights = settings.home / "models" / "translator" / "1" / "translator.safetensors"
    whole = weights.read_bytes()
    count = 4
    write_shards(settings, spec, count)
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(TranslatorError):
            generate_part(settings, spec, 3, count)
    finally:
        weights.write_bytes(whole)
    folder = parts_folder(settings.home, spec.run_id)
    assert not part_path(folder, 3).exists() or read_part(folder, spec, 3, count) is None
    assert not list(folder.glob(".*"))


@long
def test_nothing_that_became_known_after_as_of_is_used(config, made, tmp_path):
    """Late events on both sides, in the window but known a day after ``as_of``: the same rows come out."""
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories

    folder = tmp_path / "late"
    shutil.copytree(config.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo")
    settings = load_settings(folder / config.name, **LOCAL)
    as_of = made[1].as_of
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        rows = lake.read(table).slice(0, 400).to_pandas()
        rows["item_id"] = rows["item_id"].iloc[::-1].to_numpy()
        rows["event_timestamp"] += timedelta(hours=1)
        rows["created_timestamp"] = as_of + timedelta(days=1)
        lake.append(table, pa.Table.from_pandas(rows, schema=lake.schema(table), preserve_index=False), key="late")
    build_histories(settings)
    apply_feature_repo(settings)
    window = {"start": made[1].start, "end": made[1].end}
    _, spec, _, rows = make(settings.base / config.name, partitions=2, as_of=as_of, **window)
    columns = [name for name in rows.columns if name != "run_id"]
    assert spec.run_id != made[1].run_id
    pd.testing.assert_frame_equal(rows[columns], made[3][columns], rtol=0, atol=1e-5)
    # As of a time at which they were known, they do count.
    later = {"as_of": as_of + timedelta(days=2)}
    _, _, manifests, _ = make(settings.base / config.name, partitions=1, **later, **window)
    assert manifests[0]["contexts"] == sum(manifest["contexts"] for manifest in made[2]) + 400


@long
def test_a_run_reads_tables_as_they_were_when_it_was_planned(config, made, tmp_path):
    """Events that claim to have been known all along, but were ingested after the plan, change nothing of the run."""
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories

    folder = tmp_path / "grown"
    shutil.copytree(config.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo")
    settings = load_settings(folder / config.name, **LOCAL)
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        rows = lake.read(table).slice(0, 400).to_pandas()
        rows["item_id"] = rows["item_id"].iloc[::-1].to_numpy()
        schema = lake.schema(table)
        lake.append(table, pa.Table.from_pandas(rows, schema=schema, preserve_index=False), key="grown")
    build_histories(settings)
    apply_feature_repo(settings)
    _, spec, _, rows = make(folder / config.name, spec=made[1], partitions=2)
    pd.testing.assert_frame_equal(rows, made[3], rtol=0, atol=1e-5)
    _, planned_now, _, others = make(folder / config.name, partitions=1)
    assert planned_now.run_id != spec.run_id
    assert len(others) > len(rows)


@long
def test_users_are_translated_once_as_of_the_windows_end(config):
    settings, spec, manifests, rows = make(config, contexts="users", events_per_source_event=3, min_lift=0.0, partitions=2)
    source, target = lake_rows(settings, Table.SOURCE_EVENTS), lake_rows(settings, Table.TARGET_EVENTS)
    assert sum(manifest["contexts"] for manifest in manifests) == source["user_id"].nunique()
    assert (rows["event_timestamp"] == spec.end - pd.Timedelta(microseconds=1)).all()
    last = source.groupby("user_id")["event_timestamp"].max()
    assert (rows["source_event_timestamp"] == rows["user_id"].map(last)).all()
    keys = ["user_id", "item_id", "event_timestamp"]
    real = set(source[keys].itertuples(index=False, name=None))
    assert set(rows[["user_id", "source_item_id", "source_event_timestamp"]].itertuples(index=False, name=None)) <= real
    assert rows.groupby("user_id").size().max() <= 3
    assert not len(rows.merge(target, on=["user_id", "item_id"])), "nothing that the user had is proposed"
    assert not rows.duplicated(["user_id", "item_id"]).any(), "a user has an item once a window"


@pytest.mark.parametrize("mode", ["backfill", "causal"])
def test_a_newcomer_is_who_had_no_target_event_that_the_translator_may_have_learned_from(made, mode):
    from scalr_prod.generation.context_query import read_contexts
    from scalr_prod.workspace.duckdb import open_duckdb, staging_folder

    settings, spec, _, _ = made
    target = lake_rows(settings, Table.TARGET_EVENTS)
    start = target["event_timestamp"].quantile(0.2).to_pydatetime()
    with staging_folder(settings, "newcomers") as folder, open_duckdb(settings, folder) as connection:
        rows, _ = read_contexts(connection, settings, replace(spec, mode=mode, start=start), 0, 1)
    learned = target if mode == "backfill" else target[target["event_timestamp"] < start]
    found = rows.to_pandas().groupby("user_id")["newcomer"].agg(["min", "max"])
    assert (found["min"] == found["max"]).all()
    assert (found["min"] == ~found.index.isin(learned["user_id"])).all()
    assert found["min"].nunique() == 2
