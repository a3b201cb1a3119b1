"""Shared by several files: projects that take seconds to make, a Triton to attack, a browser, databases."""

from __future__ import annotations

import functools
import shutil

import pyarrow as pa
import pytest
from support import erasure_project, training_set_project
from support.planted_environment import PLANTED
from support.reported_runs import HOSTILE_TITLE, TRAINED, window
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityGateFailed
from scalr_prod.schemas import Table
from scalr_prod.serving import ensure_serving, promote, start_triton, stop_triton


@pytest.fixture(scope="session")
def reported(make_project, tmp_path_factory, here):
    """One published run, one rejected, one only planned and generated; every target item has a title that is no friend of HTML."""
    config = lean(make_project(tmp_path_factory.mktemp("report") / "logs", LOCAL, users=80).base / "scalr.toml")
    compute = {"dask": here}
    with Project.open(config, generation=window(0), compute=compute) as first:
        first.ingest()
        items = first.lake.read(Table.TARGET_ITEMS)
        titles = pa.array([f"{HOSTILE_TITLE} {number}" for number in range(len(items))])
        first.lake.replace(
            Table.TARGET_ITEMS, items.set_column(items.schema.get_field_index("title"), "title", titles), key="titles"
        )
        first.histories()
        first.train(TRAINED)
        published = first.generate().run_id
        first.validate(published)
        first.publish(published)
    filtered = window(1) | {"min_lift": 1.0}  # some events are translated into nothing
    with Project.open(config, generation=filtered, compute=compute, quality={"min_source_coverage": 1.0}) as second:
        rejected = second.generate().run_id
        with pytest.raises(QualityGateFailed, match="coverage"):
            second.validate(rejected)
    with Project.open(config, generation=window(2), compute=compute) as third:
        generated = third.generate().run_id
    with Project.open(config) as opened:
        yield opened, published, rejected, generated


@pytest.fixture
def url(postgres):
    """A database of its own for each test, by the plain scheme that users write."""
    database = postgres.database("ledger")
    yield database.set(drivername="postgresql").render_as_string(hide_password=False)
    postgres.drop(database)


@pytest.fixture(scope="session")
def attacked(tmp_path_factory, trained_home):
    """A home whose server holds versions 1 and 2, and was started by a process that has secrets in its environment."""
    folder = tmp_path_factory.mktemp("attacked") / "logs"
    shutil.copytree(trained_home.parent, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            if not name.startswith("SCALR_"):
                patch.setenv(name, value)
        settings = load_settings(folder / "scalr.toml", serving={"threads": 1})
        patch.setenv("SCALR_LEDGER__URL", PLANTED["SCALR_LEDGER__URL"])  # read already: only a child could see it
        with ensure_serving(settings, 1):  # one server for all: each promotion would start its own, and stop it
            promote(settings, 1)
            promote(settings, 2)
            assert start_triton(settings).versions == [1, 2]  # it is there to stay now
    yield settings
    stop_triton(settings)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: as root, make browser")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A filled project on SQLite; copy its folder before changing it."""
    return erasure_project.make(tmp_path_factory.mktemp("filled") / "logs", erasure_project.TEXT, "")


@pytest.fixture(scope="session")
def projects(tmp_path_factory):
    """Those that training sets are built from, by the type of their ids; made when first asked for."""
    return functools.cache(lambda ids: training_set_project.make(tmp_path_factory.mktemp("project"), ids))
