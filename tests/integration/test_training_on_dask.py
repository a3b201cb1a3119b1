"""Training on Dask workers: the same translator as in one process, whatever is lost on the way, and no file left behind."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from support.lost_worker import lose_a_worker
from support.object_store import running_store

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import TranslatorError
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.translator import compare_versions, evaluate, load_version, train, trainer, training

#: Starts worker processes.
long = pytest.mark.long

#: The least that every kind of unit has something to do with.
TRANSLATOR = {"dim": 8, "epochs": 1, "threads": 1, "pretraining_events": 2_000}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, make_project) -> Path:
    """The folder of a project with histories."""
    folder = tmp_path_factory.mktemp("untrained") / "logs"
    prepare(make_project(folder, users=150, source_items=60, target_items=40))
    return folder


def prepare(settings) -> None:
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)


def copy_of(untrained: Path, home: Path, **sections):
    shutil.copytree(untrained, home)
    settings = load_settings(home / "scalr.toml", translator=TRANSLATOR, **sections)
    apply_feature_repo(settings)
    return settings


def digest(settings) -> dict[str, str]:
    """Train: the digest of the version's files, and its metrics."""
    train(settings)
    version = load_version(settings)
    files = [version.path / "translator.safetensors", *version.path.glob("*.parquet")]
    assert not any((settings.home / "staging").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} | {
        "metrics": str(version.manifest["metrics"])
    }


@pytest.fixture(scope="module")
def expected(untrained, tmp_path_factory) -> dict[str, str]:
    """What this process trains."""
    return digest(copy_of(untrained, tmp_path_factory.mktemp("alone") / "logs"))


@contextmanager
def workers(count: int, folder: Path):
    """Address of a scheduler with worker processes, which keep their files in a folder of their own."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=":0",
        local_directory=str(folder),
    ) as cluster:
        yield cluster.scheduler_address


def left(settings) -> list[str]:
    return [path.name for path in Path(Lake.open(settings).uri(Table.TARGET_EVENTS)).rglob("shuffle-*")]


def test_workers_of_a_scheduler_train_the_same_translator(untrained, expected, here, tmp_path):
    settings = copy_of(untrained, tmp_path / "logs", compute={"dask": here})
    assert digest(settings) == expected
    assert not left(settings)


@long
def test_a_backtest_and_a_challenger_test_say_the_same(untrained, here, tmp_path):
    settings = copy_of(untrained, tmp_path / "logs")
    latest = train(settings).version
    served = train(settings, trained_until=load_version(settings, latest).trained_until - timedelta(days=50)).version
    compute = settings.compute.model_copy(update={"dask": here})
    cluster = settings.model_copy(update={"compute": compute})
    compared = compare_versions(settings, latest, served)
    assert compared.events > 30
    assert compare_versions(cluster, latest, served) == compared
    alone, distributed = (evaluate(each, latest).to_json() for each in (settings, cluster))
    assert {**distributed, "seconds": 0} == {**alone, "seconds": 0}


@long
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_worker_processes_trains_the_same_translator(untrained, expected, tmp_path, count):
    with workers(count, tmp_path / "workers") as address:
        settings = copy_of(untrained, tmp_path / "logs", compute={"dask": address})
        assert digest(settings) == expected
    assert not left(settings)


@long
@pytest.mark.slow
def test_workers_and_driver_share_nothing_but_an_object_store(make_project, tmp_path, monkeypatch):
    with running_store(honours_conditions=True) as store, workers(2, tmp_path / "workers") as address:
        settings = make_project(tmp_path / "logs", store.toml, users=150, source_items=60, target_items=40)
        prepare(settings)
        alone = load_settings(settings.base / "scalr.toml", translator=TRANSLATOR)
        expected = digest(alone)
        fits, write = training.fit_shared, training.write_version

        def fit_hidden(*arguments):
            """Nothing of the home but the driver's own staged files exists while units run."""
            for path in settings.home.iterdir():
                if path.name != "staging":
                    path.rename(f"{path}.hidden")
            return fits(*arguments)

        def write_shown(*arguments, **named):
            for path in settings.home.glob("*.hidden"):
                path.rename(str(path).removesuffix(".hidden"))
            return write(*arguments, **named)

        monkeypatch.setattr(training, "fit_shared", fit_hidden)
        monkeypatch.setattr(training, "write_version", write_shown)
        # The same inputs would be found again: train anew.
        monkeypatch.setattr(training, "find_by_fingerprint", lambda *_: None)
        assert digest(load_settings(settings.base / "scalr.toml", translator=TRANSLATOR, compute={"dask": address})) == expected
        left_keys = store.keys()
    assert not [key for key in left_keys if "shuffle-" in key]


@long
@pytest.mark.slow
@pytest.mark.parametrize("task", ["_fit_shared", "_fit_parameters"])
def test_a_worker_that_dies_changes_no_bit(untrained, expected, tmp_path, monkeypatch, task):
    died = tmp_path / "died"
    lose_a_worker(monkeypatch, trainer, task, died)
    with workers(2, tmp_path / "workers") as address:
        settings = copy_of(untrained, tmp_path / "logs", compute={"dask": address})
        assert digest(settings) == expected
    assert died.exists()
    assert not left(settings)


def test_an_error_of_a_fit_arrives_as_it_was_raised_and_nothing_is_left(untrained, here, tmp_path, monkeypatch):
    def fail(*_):
        raise TranslatorError("too little", where="here", next_step="ingest more")

    settings = copy_of(untrained, tmp_path / "logs", compute={"dask": here})
    monkeypatch.setattr(trainer, "_fit_parameters", fail)
    with pytest.raises(TranslatorError, match="too little"):
        train(settings)
    assert not left(settings)
    assert not any((settings.home / "staging").iterdir())
