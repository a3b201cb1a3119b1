"""`scalr doctor` finds what would stop a run: inputs, the scheduler, folders that are somebody else's."""

from __future__ import annotations

import socket
import sqlite3
import tomllib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from support.examples import sweep
from support.object_store import running_store

from scalr_prod.apps.doctor import _OPTIONAL, DiagnosticCheck, run_checks
from scalr_prod.config import load_settings
from scalr_prod.ledger import Ledger

#: How long to wait for a scheduler that is not there.
SOON = "connect_timeout_s = 0.2"


@pytest.fixture
def config(tmp_path: Path):
    """A scalr.toml with further lines beside two small logs."""

    def make(extra: str = "", *, source: str = 'events = "s.parquet"', target: str = 'events = "t.parquet"') -> Path:
        for name in ("s", "t"):
            at = pd.to_datetime(["2024-05-01T00:00:00Z"])
            pd.DataFrame({"user_id": ["u1"], "item_id": [name], "timestamp": at}).to_parquet(tmp_path / f"{name}.parquet")
        path = tmp_path / "scalr.toml"
        path.write_text(f'[domains.source]\nname = "s"\n{source}\n[domains.target]\nname = "t"\n{target}\n[compute]\n{extra}\n')
        return path

    return make


def look(path: Path) -> dict[str, DiagnosticCheck]:
    return {check.name: check for check in run_checks(path)}


def test_a_healthy_project_is_all_ok(config):
    checks = look(config())
    assert checks["source log"].ok
    assert checks["target log"].ok
    assert checks["dask"].found
    names = ("home", "source log", "target log", "compute", "lake", "ledger")
    assert {name: checks[name].ok for name in names} == dict.fromkeys(names, True)
    assert "s.parquet" in checks["source log"].found


def test_a_part_of_every_extra_is_looked_for():
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
    assert set(_OPTIONAL.values()) == project["optional-dependencies"].keys() - {"all"}


@pytest.mark.parametrize(
    ("source", "found", "next_step"),
    [
        ('events = "absent.parquet"', "no such file", "correct the path"),
        ('events = "absent-*.csv"', "no file matches", "correct the path"),
        ('events = "s.parquet"\ncolumns = { user = "customer" }', "no column 'customer'", "[domains.source.columns]"),
        ('events = "s.parquet"\nitems = "absent.csv"', "no such file", "correct the path"),
        ('url = "sqlite:////no/such.db"\nquery = "SELECT 1"', "no such file", "database URL"),
        ('url = "postgresql+psycopg://joe:s3cret@127.0.0.1:1/x"\nquery = "SELECT 1"', "connection", "be reached"),
    ],
)
def test_an_input_that_cannot_be_read_is_found(config, source, found, next_step):
    check = look(config(source=source))["source log"]
    assert not check.ok
    assert found in check.found
    assert next_step in str(check.next_step)
    assert "s3cret" not in check.found


def test_a_database_is_reached_and_its_query_is_not_run(config, tmp_path):
    sqlite3.connect(tmp_path / "shop.db").close()
    check = look(config(source=f'url = "sqlite:///{tmp_path / "shop.db"}"\nquery = "SELECT * FROM nowhere"'))["source log"]
    assert check.ok
    assert "can be reached" in check.found


def test_a_scheduler_that_does_not_answer_is_found(config):
    check = look(config(f'dask = "tcp://127.0.0.1:9"\n{SOON}'))["compute"]
    assert not check.ok
    assert "does not answer" in check.found
    assert "dask scheduler" in str(check.next_step)


@pytest.mark.parametrize(
    ("mode", "found", "warned"),
    sweep(
        [
            (0o755, "open to its group and every user", True),
            (None, "this user alone", False),
            (0o770, "open to its group", False),
        ],
        keep=1,
    ),
)
def test_a_home_that_others_can_read_is_warned_of_and_stays_as_it_is(config, tmp_path, mode, found, warned):
    path = config()
    if mode is not None:
        (tmp_path / ".scalr").mkdir()
        (tmp_path / ".scalr").chmod(mode)
    check = look(path)["home access"]
    assert check.ok
    assert found in check.found
    assert ("chmod 700" in str(check.next_step)) is warned
    assert (tmp_path / ".scalr").stat().st_mode & 0o777 == (mode or 0o700)


@pytest.mark.parametrize(
    ("dask", "warned"), sweep([("tcp://127.0.0.1:9", True), ("local", False), ("tls://10.0.0.1:9", False)], keep=2)
)
def test_a_scheduler_without_tls_is_warned_of(config, dask, warned):
    check = look(config(f'dask = "{dask}"\n{SOON}'))["compute encryption"]
    assert check.ok
    assert ("can run code" in check.found) is warned
    assert ("tls://" in str(check.next_step)) is warned


def test_a_scheduler_that_answers_is_counted(config):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=3, processes=False, protocol="tcp", dashboard_address=None) as cluster:
        check = look(config(f'dask = "{cluster.scheduler_address}"'))["compute"]
    assert check.ok, check.found
    assert "3 worker threads" in check.found


@pytest.mark.parametrize(
    ("days", "other", "warned"),
    sweep([(6, "elsewhere", True), (8, "elsewhere", False), (0, "elsewhere", True), (0, None, False)], keep=2),
)
def test_a_sqlite_ledger_that_several_machines_write_to_is_warned_of(config, days, other, warned):
    settings = load_settings(config())
    for host in (other or socket.gethostname(), socket.gethostname()):
        with mock.patch("socket.gethostname", return_value=host), Ledger.open(settings) as ledger:
            ledger.changes.record_erasures({"0": "made"})
    at = datetime.now(UTC) - timedelta(days=days)
    with closing(sqlite3.connect(settings.home / "ledger.db")) as database, database:
        database.execute("UPDATE transitions SET at = ?", (at.isoformat(" ").replace("+00:00", ""),))
    check = look(config())["ledger machines"]
    assert check.ok
    assert ("elsewhere" in check.found) is warned
    assert ("[ledger] url" in str(check.next_step)) is warned


@pytest.mark.parametrize("honours", [True, False])
def test_a_store_that_would_lose_commits_is_found(config, honours):
    with running_store(honours_conditions=honours) as store:
        check = look(config(store.toml))["lake"]
    assert check.ok is honours
    assert ("If-None-Match" in check.found) is not honours
    assert ("conditional PUT" in str(check.next_step)) is not honours


def test_a_home_of_somebody_else_is_found_and_left_alone(config, tmp_path):
    path = config('[project]\nhome = "mine"')
    (tmp_path / "mine" / "models").mkdir(parents=True)
    (tmp_path / "mine" / "models" / "mine.bin").write_text("mine")
    checks = look(path)
    assert not checks["home"].ok
    assert "models" in checks["home"].found
    assert [str(file.relative_to(tmp_path / "mine")) for file in (tmp_path / "mine").rglob("*") if file.is_file()] == [
        "models/mine.bin"
    ]


@pytest.mark.parametrize(
    ("users", "pairs", "found", "next_step"),
    [
        ('map = "absent.csv"', "", "no such file", "correct [users] map"),
        ('map = "pairs.csv"', "s,films\n", "has no pairs", "[users]"),
        ('map = "pairs.csv"\ncolumns = { source = "shop" }', "s,films\n1,2\n", "no column 'shop'", "columns"),
        ('query = "SELECT 1"\nurl = "sqlite:////no/such.db"', "", "no such file", "database URL"),
        ('map = "pairs.csv"', "source,target\nu1,70\n", None, None),
    ],
)
def test_a_map_of_users_that_cannot_be_read_is_found(config, tmp_path, users, pairs, found, next_step):
    assert "users' map" not in look(config())
    (tmp_path / "pairs.csv").write_text(pairs)
    check = look(config(f"[users]\n{users}"))["users' map"]
    assert check.ok is (found is None)
    assert (found or "pairs.csv can be read") in check.found
    assert (next_step or "None") in str(check.next_step)


def test_features_of_a_repository_that_is_not_there_are_found(config, tmp_path):
    """Of one that is there: tests/unit/features/test_external_features.py."""
    checks = look(config('[training_set]\nfeatures = ["their_service"]\nfeatures_repo = "elsewhere"'))
    assert not checks["features"].ok
    assert "no feature repository" in checks["features"].found
    assert "features_repo" in str(checks["features"].next_step)
    own = look(config('[training_set]\nfeatures = ["their_service"]'))["features"]
    assert own.ok
    assert "scalr histories" in own.found
