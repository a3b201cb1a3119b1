"""Shared by every test: a small pair of domains with a known translation, and projects made from it.

In the made data each user has a taste (one of eight). Source items and target items belong to tastes; target events follow
the user's taste most of the time. So a translator that works beats popularity by a wide margin, also for users without
target history.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import settings as hypothesis_settings
from support.disk import wait_for_no_disk
from support.expectations import configure_once
from support.order import ByGroup, Seconds, dearest_first, mark_slow
from support.postgres import Postgres
from support.templates import compile_once

if TYPE_CHECKING:
    from collections.abc import Iterator

# Triton's language looks at it when it is imported, which torch may do at any time: kernels for GPUs run on this processor.
os.environ["TRITON_INTERPRET"] = "1"

# On a busy machine the first example takes several times as long as the next.
hypothesis_settings.register_profile("no deadline", deadline=None)
hypothesis_settings.load_profile("no deadline")

DATA = Path(os.environ.get("SCALR_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
START = pd.Timestamp("2024-01-01", tz="UTC")
DAYS = 200
TASTES = 8


def pytest_configure(config: pytest.Config) -> None:
    compile_once()
    wait_for_no_disk()
    if (path := os.environ.get("SCALR_TEST_SECONDS")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Seconds(Path(path)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Garbage is not looked for while tests and libraries are imported, which takes a fifth less, and more seldom afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()


def pytest_runtest_setup() -> None:
    configure_once()  # once the library is there: to import it takes seconds


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByGroup | None:
    return ByGroup(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    mark_slow(items)
    yield
    if hasattr(config, "workerinput"):
        items[:] = dearest_first(items)


@dataclass(frozen=True)
class TwoDomains:
    """Paths of the made logs, in one folder."""

    folder: Path
    source: Path
    target: Path
    source_items: Path
    target_items: Path


def make_two_domains(
    folder: Path, *, users: int = 300, source_items: int = 160, target_items: int = 120, seed: int = 7, ids: str = "string"
) -> TwoDomains:
    """Write a source log (about 20 events a user) and a target log (about 5); a fifth of the users have no target event."""
    folder.mkdir(parents=True, exist_ok=True)
    made = TwoDomains(folder, *(folder / name for name in ("s.parquet", "t.parquet", "si.parquet", "ti.parquet")))
    paths = (made.source, made.target, made.source_items, made.target_items)
    for path, content in zip(paths, _two_domains(users, source_items, target_items, seed, ids), strict=True):
        path.write_bytes(content)
    return made


@functools.cache
def _two_domains(users: int, source_items: int, target_items: int, seed: int, ids: str) -> tuple[bytes, ...]:
    """The files of both domains; hundreds of tests start from the same ones."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, TASTES, users)
    source, target = [], []
    for user in range(users):
        for _ in range(int(rng.integers(10, 30))):
            own = taste[user] if rng.random() < 0.8 else rng.integers(0, TASTES)
            item = int(rng.zipf(1.6) % (source_items // TASTES)) * TASTES + int(own)
            source.append((user, item, rng.random() * DAYS))
        if user % 5:
            for _ in range(int(rng.integers(2, 9))):
                own = taste[user] if rng.random() < 0.8 else rng.integers(0, TASTES)
                item = int(rng.zipf(1.6) % (target_items // TASTES)) * TASTES + int(own)
                target.append((user, item, rng.random() * DAYS))

    def frame(rows: list, prefix: str) -> pd.DataFrame:
        table = pd.DataFrame(rows, columns=["user_id", "item_id", "day"])
        table["timestamp"] = (START + pd.to_timedelta(table.pop("day"), unit="D")).astype("datetime64[us, UTC]")
        if ids == "string":
            table["user_id"] = "u" + table["user_id"].astype(str)
            table["item_id"] = prefix + table["item_id"].astype(str)
        return table.sort_values("timestamp", ignore_index=True)

    def items(count: int, prefix: str, noun: str) -> pd.DataFrame:
        number = np.arange(count)
        return pd.DataFrame(
            {
                "item_id": [f"{prefix}{n}" for n in number] if ids == "string" else number,
                "title": [f"{noun} {n // TASTES} of taste {n % TASTES}" for n in number],
                "category": [f"taste {n % TASTES}" for n in number],
                "value": np.round(1 + 20 * rng.random(count), 2),
            }
        )

    tables = frame(source, "s"), frame(target, "t"), items(source_items, "s", "gadget"), items(target_items, "t", "dish")
    return tuple(table.to_parquet() for table in tables)


def write_toml(domains: TwoDomains, extra: str = "", *, items: bool = True) -> Path:
    """A scalr.toml beside the logs, small enough for tests: two folds, short training.

    Each source event is a context of two draws, however few real events there are, unless said.
    """
    section, events = "[generation]\n", 'contexts = "events"\nmax_synthetic_ratio = 0\n'
    if "contexts = " not in extra:
        extra = extra.replace(section, section + events)
    generation = "" if section in extra else section + events
    source_items = 'items = "si.parquet"' if items else ""
    target_items = 'items = "ti.parquet"' if items else ""
    path = domains.folder / "scalr.toml"
    path.write_text(f"""
[domains.source]
name = "gadgets"
events = "s.parquet"
{source_items}
[domains.target]
name = "dishes"
events = "t.parquet"
{target_items}
{generation}[translator]
folds = 2
dim = 16
epochs = 2
threads = 2
{extra}
""")
    return path


@pytest.fixture
def two_domains(tmp_path: Path) -> TwoDomains:
    return make_two_domains(tmp_path / "logs")


@pytest.fixture
def settings_with(two_domains: TwoDomains):
    """A scalr.toml beside the made logs, with more lines."""

    def make(extra: str = "") -> Path:
        return write_toml(two_domains, extra)

    return make


@pytest.fixture
def project(settings_with) -> Path:
    return settings_with()


@pytest.fixture(scope="session")
def make_project():
    """Write two domains' logs and a scalr.toml into a folder; gives the settings."""
    from scalr_prod.config.settings import load_settings

    def make(folder: Path, extra: str = "", **made):
        return load_settings(write_toml(make_two_domains(folder, **made), extra))

    return make


@pytest.fixture
def settings(two_domains: TwoDomains):
    from scalr_prod.config.settings import load_settings

    return load_settings(write_toml(two_domains))


@pytest.fixture(scope="session")
def amazon() -> Path:
    folder = DATA / "amazon_food_kitchen"
    if not (folder / "food.parquet").exists():
        pytest.skip(f"the data set is not at {folder}; set SCALR_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def here():
    """Address of a scheduler whose workers are threads of this process: it costs no start-up."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def at_hand(here):
    """For all of a file's runs, workers that are there already. How a run starts its own: tests/integration/test_local_workers.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALR_COMPUTE__DASK", here)
        yield


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL for all tests of the session, each with databases of its own."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scalr.toml of a home with histories and translator versions 1 and 2. Copy its folder before changing it.

    Of several processes that share out the tests, the first to need it makes it for all.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "trained"
    config, complete = folder / "logs" / "scalr.toml", folder / "complete"
    with FileLock(root / "trained.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_trained_home(config.parent)
            complete.touch()
    return config


def make_trained_home(logs: Path) -> None:
    from scalr_prod.config.settings import load_settings
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories
    from scalr_prod.ingest import ingest
    from scalr_prod.translator import train

    config = write_toml(make_two_domains(logs))
    first = load_settings(config, translator={"threads": 1})
    ingest(first)
    build_histories(first)
    apply_feature_repo(first)
    train(first)
    train(load_settings(config, translator={"threads": 1, "seed": 1}))
