"""The main job on two real domains, both directions, and an independent check of every row for leakage."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import leakage
import numpy as np
import pandas as pd
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.translator import load_version
from scalr_prod.translator.data.contexts import Contexts
from scalr_prod.translator.module import TranslatorModule

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.data, pytest.mark.timeout(1500)]
#: An eighth of the users in `make test-long`; all of them, which takes minutes and runs the same code, by night.
SLICES = [
    pytest.param("kitchen", "food", 8, id="food<-kitchen, an eighth", marks=pytest.mark.long),
    pytest.param("kitchen", "food", 1, id="food<-kitchen", marks=pytest.mark.nightly),
    pytest.param("food", "kitchen", 1, id="kitchen<-food", marks=pytest.mark.nightly),
]


def settings_file(data: Path, source: str, target: str, folder: Path, one_in: int) -> Path:
    items = f'items = "{data / "items.parquet"}"'
    for name in (source, target):
        events = pd.read_parquet(data / f"{name}.parquet")
        events[events["user_id"].map(lambda user: zlib.crc32(str(user).encode())) % one_in == 0].to_parquet(
            folder / f"{name}.parquet"
        )
    path = folder / "scalr.toml"
    path.write_text(
        f'[domains.source]\nname = "{source}"\nevents = "{folder / source}.parquet"\n{items}\n'
        f'[domains.target]\nname = "{target}"\nevents = "{folder / target}.parquet"\n{items}\n'
        "[translator]\nepochs = 1\n"  # what leaks does not hang on how long is trained
        '[generation]\ncontexts = "events"\n'  # what is checked is each source event's own moment
        "[quality]\nmin_information = 0\n"  # nor on whether so few users show that there is something to translate
    )
    assert len(path.read_text().splitlines()) < 20
    return path


@pytest.mark.parametrize(("source", "target", "one_in"), SLICES)
def test_a_run_publishes_and_nothing_leaks(tmp_path, amazon, scalr, source, target, one_in):
    config = settings_file(amazon, source, target, tmp_path, one_in)
    code, report, stderr = scalr("run", config=config, timeout=1400)
    assert code == 0, stderr
    assert "Traceback" not in stderr
    home = tmp_path / ".scalr"

    counted = leakage.check_run(home, report["run_id"])
    dataset = leakage.check_training_set(Path(report["stages"]["dataset"]["path"]), home)
    real = pd.read_parquet(tmp_path / f"{target}.parquet")
    assert len(leakage.table(home, "target_events")) == len(real), "the real-events view holds exactly the real events"
    assert dataset["synthetic"] == counted["synthetic"]

    every_probability_comes_from_the_fold_that_held_the_user_out(config, home, report["run_id"])


def every_probability_comes_from_the_fold_that_held_the_user_out(config: Path, home: Path, run_id: str) -> None:
    """Score published events again from the raw log, with the user's held-out fold (computed here) and with another one."""
    spec = json.loads((home / "runs" / run_id / "run.json").read_text())
    settings = load_settings(config)
    version = load_version(settings, spec["translator_version"])
    manifest = json.loads((Path(version.path) / "manifest.json").read_text())
    folds, length = manifest["folds"], settings.histories.length
    published = leakage.published(home)
    sample = published[published["run_id"] == run_id].sample(600, random_state=0)
    log = leakage.table(home, "source_events")
    contexts, own = contexts_from_the_log(sample, log, version.vocabulary(), length, folds)
    had = had_before(sample, leakage.table(home, "target_events"), version.vocabulary())
    contexts = dataclasses.replace(contexts, exclude=had)
    module = TranslatorModule.load(version.path)
    candidates = version.vocabulary().target_index(sample["item_id"].to_numpy())[:, None]
    held_out, _ = module.score(contexts, candidates)
    np.testing.assert_allclose(held_out[:, 0], sample["probability"], atol=1e-5)
    other, _ = module.score(dataclasses.replace(contexts, fold=((own + 1) % folds).astype(np.int32)), candidates)
    # Most of a probability is the trend, which the folds share: what is their own shows in the relative difference.
    np.testing.assert_allclose(held_out[:, 0], sample["probability"], rtol=1e-4)
    assert (np.abs(other / held_out - 1) > 1e-3).mean() > 0.5, "the folds must differ, or this test shows nothing"


def had_before(sample: pd.DataFrame, log: pd.DataFrame, vocabulary) -> np.ndarray:
    """Target items of each user before each event, which are never proposed: int32 [rows, widest], -1 on the right."""
    by_user = dict(tuple(log.assign(us=leakage.micros(log["event_timestamp"])).groupby("user_id")))
    when = leakage.micros(sample["event_timestamp"])
    lists = []
    for user, time in zip(sample["user_id"], when, strict=True):
        past = by_user.get(user)
        lists.append([] if past is None else past["item_id"][past["us"] < time].unique().tolist())
    exclude = np.full((len(sample), max(map(len, lists))), -1, np.int32)
    for row, items in enumerate(lists):
        if items:
            exclude[row, : len(items)] = vocabulary.target_index(items)
    return exclude


def contexts_from_the_log(sample: pd.DataFrame, log: pd.DataFrame, vocabulary, length: int, folds: int):
    events = log.assign(us=leakage.micros(log["event_timestamp"]), order=[leakage.low_bits(item) for item in log["item_id"]])
    by_user = {user: rows.sort_values(["us", "order"]) for user, rows in events.groupby("user_id")}
    items = np.zeros((len(sample), length), np.int32)
    ages = np.zeros((len(sample), length), np.float32)
    when = leakage.micros(sample["source_event_timestamp"])
    for row, (user, item) in enumerate(zip(sample["user_id"], sample["source_item_id"], strict=True)):
        past = by_user[user][by_user[user]["us"] <= when[row]].tail(length)
        own = np.flatnonzero((past["item_id"] == item).to_numpy() & (past["us"] == when[row]).to_numpy())
        rest = np.delete(np.arange(len(past)), own[-1:]) if len(own) else np.arange(len(past))[-(length - 1) :]
        index = vocabulary.source_index([*past["item_id"].to_numpy()[rest], item])
        days = np.append((when[row] - past["us"].to_numpy()[rest]) / 86_400e6, 0.0)
        items[row, length - len(index) :] = index
        ages[row, length - len(index) :] = np.where(index == 0, 0, days)
    own_fold = np.array([leakage.fold(user, folds) for user in sample["user_id"]], np.int32)
    contexts = Contexts(
        history_items=items,
        history_ages=ages,
        history_end=when,
        event_time=when,
        fold=own_fold,
        noise_key=np.zeros(len(sample), np.int64),
        exclude=np.zeros((len(sample), 0), np.int32),
    )
    return contexts, own_fold
