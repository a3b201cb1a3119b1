"""Models that learned from rows of erased users: which, until when, and what settles them."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from filelock import FileLock

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ForgettingError
from scalr_prod.ingest import ingest
from scalr_prod.ledger import Ledger
from scalr_prod.operations import erase_items, erase_users, models_to_retrain
from scalr_prod.workspace import SuppressionList

USERS = ["ada", "bob", "cleo", "dora"]


@pytest.fixture
def settings(tmp_path):
    """A lake of four users; the last one's events are in the future, after every training set was built."""
    times = [*pd.date_range("2024-01-01", periods=3, tz="UTC"), pd.Timestamp.now("UTC") + pd.Timedelta(days=1)]
    rows = pd.DataFrame({"user_id": USERS, "item_id": ["a", "b", "c", "d"], "timestamp": times})
    rows["timestamp"] = rows["timestamp"].astype("datetime64[us, UTC]")
    for name in ("source", "target"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "scalr.toml").write_text(
        '[domains.source]\nname = "shop"\nevents = "source.parquet"\nahead_days = 30\n'
        '[domains.target]\nname = "films"\nevents = "target.parquet"\nahead_days = 30\n'
    )
    found = load_settings(tmp_path / "scalr.toml")
    ingest(found)
    return found


def build(settings, version, users):
    """A version of a training set with rows of these users."""
    folder = settings.home / "datasets" / "set" / f"v{version}"
    (folder / "rows").mkdir(parents=True)
    pd.DataFrame({"user_id": users, "item_id": "a"}).to_parquet(folder / "rows" / "0.parquet")
    with Ledger.open(settings) as ledger:
        ledger.datasets.record("set", version, path="", fingerprint=str(version), rows=len(users), cutoff=None, manifest={})
    return folder


def train(settings, version, *datasets, model="ranker"):
    with Ledger.open(settings) as ledger:
        for dataset in datasets:
            ledger.datasets.record_use("set", dataset, model=model, model_version=version)


def due(settings):
    return [(one.model, one.version, one.dataset_version, one.users) for one in models_to_retrain(settings)]


def test_only_models_on_rows_of_the_user_are_due(settings):
    build(settings, 1, ["ada", "bob"])
    build(settings, 2, ["bob"])
    train(settings, "1", 1)
    train(settings, "2", 2)
    train(settings, "1", 1, 2, model="other")
    before = datetime.now(UTC)
    report = erase_users(settings, ["ada"])
    assert [(one.model, one.version, one.dataset, one.dataset_version) for one in report.models] == [
        ("ranker", "1", "set", 1),
        ("other", "1", "set", 1),
    ]
    days = timedelta(days=settings.forgetting.model_grace_days)
    assert before + days <= report.models[0].retrain_by <= datetime.now(UTC) + days
    assert due(settings) == [("ranker", "1", 1, 1), ("other", "1", 1, 1)]
    assert erase_items(settings, ["c"]).models == []
    # Bob is in both sets; the first erasure still decides the date of those that hold both users.
    assert erase_users(settings, ["bob"]).models[0].users == 1
    assert due(settings) == [("ranker", "1", 1, 2), ("ranker", "2", 2, 1), ("other", "1", 1, 2), ("other", "1", 2, 1)]
    dates = [one.retrain_by for one in models_to_retrain(settings)]
    assert dates[0] == dates[2] == report.models[0].retrain_by < dates[1] == dates[3]


def test_a_later_version_on_later_sets_settles_it(settings):
    build(settings, 1, ["ada", "bob"])
    build(settings, 2, ["bob"])
    train(settings, "1", 1)
    erase_users(settings, ["ada"])
    build(settings, 3, ["bob"])
    train(settings, "2", 2)  # of before the erasure
    train(settings, "3", 1, 3)
    train(settings, "1", 3, model="other")
    assert due(settings) == [("ranker", "1", 1, 1), ("ranker", "3", 1, 1)]
    train(settings, "4", 3)
    assert due(settings) == []
    assert [one.retrained_as for one in erase_users(settings, ["ada"]).models] == ["4", "4"]
    erase_users(settings, ["bob"])
    found = models_to_retrain(settings)
    assert {(one.version, one.dataset_version, one.users) for one in found if one.model == "ranker"} == {
        ("1", 1, 1),
        ("2", 2, 1),
        ("3", 1, 1),
        ("3", 3, 1),
        ("4", 3, 1),
    }
    assert len({one.retrain_by for one in found}) == 1, "that of the erasure that no version settles"


def test_a_version_registered_before_an_affected_one_does_not_settle_it(settings):
    """Version 5 replaced version 4, so it is what serves."""
    build(settings, 1, ["ada", "bob"])
    erase_users(settings, ["ada"])
    build(settings, 2, ["bob"])
    train(settings, "4", 2)
    train(settings, "5", 1)
    assert due(settings) == [("ranker", "5", 1, 1)]
    train(settings, "6", 2)
    assert due(settings) == []


def test_a_set_whose_files_are_gone_counts_for_users_with_earlier_events(settings):
    shutil.rmtree(build(settings, 1, ["bob"]))
    train(settings, "1", 1)
    assert erase_users(settings, ["dora", "nobody"]).models == []
    assert [one.version for one in erase_users(settings, ["ada"]).models] == ["1"]


def test_a_set_that_was_built_before_an_interrupted_erasure_went_on_settles_nothing(settings, monkeypatch):
    build(settings, 1, ["ada", "bob"])
    train(settings, "1", 1)
    with monkeypatch.context() as patched:
        patched.setattr("scalr_prod.operations.erasure.orchestrate._remove_everywhere", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            erase_users(settings, ["ada"])
    build(settings, 2, ["ada", "bob"])
    train(settings, "2", 2)
    assert {one.version for one in erase_users(settings, ["ada"]).models if one.retrained_as is None} == {"1", "2"}
    assert {one.version for one in models_to_retrain(settings)} == {"1", "2"}


def test_a_translator_trained_before_an_interrupted_erasure_went_on_has_a_deadline(settings, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("scalr_prod.operations.erasure.orchestrate._remove_everywhere", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            erase_users(settings, ["ada"])
    now = datetime.now(UTC)
    with Ledger.open(settings) as ledger:
        ledger.models.record(1, path="", sha256="1", fingerprint="1", trained_until=now, metrics={})
    erase_users(settings, ["ada"])
    with Ledger.open(settings) as ledger:
        ledger.models.record(2, path="", sha256="2", fingerprint="2", trained_until=now, metrics={})
    erase_users(settings, ["ada"])
    found = SuppressionList.open(settings)
    assert [found.retraining_deadline(version, grace_days=1) is not None for version in (1, 2)] == [True, False]


def test_nobody_is_erased_while_a_training_set_is_built(settings):
    folder = build(settings, 1, ["ada"]).parent
    with FileLock(folder / ".lock"), pytest.raises(ForgettingError, match="a training set is being built"):
        erase_users(settings, ["ada"])
    assert not SuppressionList.open(settings).users


def test_a_list_of_an_earlier_version_of_the_package_names_no_models(settings):
    build(settings, 1, ["ada"])
    train(settings, "1", 1)
    erase_users(settings, ["ada"])
    path = settings.home / "forgotten" / "tombstones.json"
    path.write_text(path.read_text().replace('"datasets"', '"unknown"'))
    assert models_to_retrain(settings) == []
