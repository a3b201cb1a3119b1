"""Nobody else runs code on the local cluster, nor reads from it; a scheduler of one's own asks for certificates."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support.small import LOCAL, lean

from scalr_prod.compute.cluster import open_cluster
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import SchedulerUnreachable, SettingsError
from scalr_prod.features import DeltaOfflineStoreConfig
from scalr_prod.serving import promote, start_triton, stop_triton
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Attacks a cluster that another user starts; TLS addresses are checked in unit/apps/test_doctor.py.
pytestmark = pytest.mark.long

ATTACKER = str(Path(__file__).parents[1] / "support" / "attacker.py")
#: How an attacker tries a port; `support/attacker.py`.
WAYS_IN = ("plain", "anonymous", "forged", "http")


def listening(pid: int | None = None) -> set[int]:
    """The ports that a process (this one) and its children listen on."""
    found: set[int] = set()
    with suppress(psutil.NoSuchProcess):
        for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found |= {at.laddr.port for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
def test_nobody_else_gets_into_the_local_cluster(project):
    """The same attack gets into a scheduler without TLS."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as unprotected:
        scheduler, before = unprotected.scheduler, listening()
        with open_cluster(load_settings(project, compute={"dask": "local", "workers": 1}), tasks=1) as cluster:
            assert list(cluster.map(lambda: 7, [()])) == [7]
            ports = listening() - before
            assert len(ports) >= 3, "scheduler, nanny, worker"
            easy = [f"plain {scheduler.port}", f"http {scheduler.http_server.port}"]
            ways = [f"{way} {port}" for port in ports for way in WAYS_IN]
            command = [sys.executable, ATTACKER]
            asked = "\n".join([*easy, *ways])
            done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=True, cwd="/")
            assert list(cluster.map(lambda: 8, [()])) == [8]
    assert sorted(done.stdout.splitlines()) == sorted(easy)


COMMANDS = (["run"], ["evaluate", "--quick"], ["translator", "promote"], ["triton", "start"], ["ui", "--port", "0"])
EXTRA = f"""
[generation]
partitions = 2
{LOCAL}
[downstream]
models = ["als"]
seeds = 1
volumes = [3]
temperatures = [0.1]
weights = [1.0]
threads = 1
"""


@pytest.fixture
def shared_machine(make_project, monkeypatch):
    """A project below a folder that everybody may enter, and a temporary folder that everybody may write to, with the usual umask."""
    before = os.umask(0o022)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)
        config = lean(make_project(root / "logs", EXTRA, users=80).base / "scalr.toml")
        yield root, config
    os.umask(before)


def _files_below(*tops: Path) -> Iterator[Path]:
    """Whatever is there at this moment; folders come and go while commands are at work."""
    for top in tops:
        for folder, _, names in os.walk(top):
            yield from (Path(folder, name) for name in names)


@pytest.mark.nightly(reason="minutes: a whole run and an evaluation")
@pytest.mark.triton
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_gets_nothing_while_commands_are_at_work(shared_machine):
    """Every port, socket and file of each command is tried as soon as it is there. The log, which lies outside the home, can be read."""
    root, config = shared_machine
    environment = os.environ | {"TMPDIR": str(root / "tmp")}
    scalr = [sys.executable, "-c", "from scalr_prod.apps.cli import main; main()", "-q"]
    home, easy, tried, ports = config.parent / ".scalr", f"read {config.parent / 's.parquet'}", set(), set()
    with subprocess.Popen([sys.executable, ATTACKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def attempt(*lines):
            for line in {*lines} - tried:
                tried.add(line)
                other.stdin.write(f"{line}\n")
            other.stdin.flush()

        def attack(pid):
            found = listening(pid)
            ports.update(found)
            attempt(*(f"{way} {port}" for port in found for way in WAYS_IN))
            for path in _files_below(home, root / "tmp"):
                with suppress(OSError):
                    mode = path.lstat().st_mode
                    if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
                        attempt(f"{'read' if stat.S_ISREG(mode) else 'connect'} {path}")

        attempt(easy)
        for command in COMMANDS:
            with subprocess.Popen(
                [*scalr, *command, "--config", str(config)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as process:
                until = time.monotonic() + (20 if command[0] == "ui" else 900)
                while process.poll() is None and time.monotonic() < until:
                    attack(process.pid)
                    time.sleep(0.2)
                process.terminate()
                output = process.communicate()[0].decode()
                assert command[0] == "ui" or process.returncode == 0, (command, output[-2000:])
            if command == ["triton", "start"]:
                attack(read_record(load_settings(config)).pid)
        got = other.communicate(timeout=60)[0].splitlines()
        subprocess.run([*scalr, "triton", "stop", "--config", str(config)], env=environment, check=True)
    assert len(ports) >= 3, "scheduler, nanny, worker; the page"
    assert len(tried) > 100
    assert got == [easy]


def write_beside(text: str) -> str:
    """On a worker: write a file that everybody may read into Dask's local directory."""
    from distributed import get_worker

    path = Path(get_worker().local_directory) / "rows"
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def spill(connection) -> None:
    """Sort more rows than DuckDB has memory for, and leave the result there."""
    query = "SELECT i, hash(i) AS h, repeat(i::VARCHAR, 20) AS rows FROM range(1_500_000) AS t(i)"
    connection.execute(f"CREATE TEMP TABLE spilled AS {query}")


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_reads_nothing_that_is_spilled_or_in_shared_memory(shared_machine, trained_home, monkeypatch):
    """As a library, where files get the usual umask: what is left in /dev/shm by Triton, and what DuckDB, Feast and Dask spill."""
    root, _ = shared_machine
    get_temp_dir()  # of this process, which is removed when it ends
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    shutil.copytree(trained_home.parent, root / "trained")
    settings = load_settings(root / "trained" / "scalr.toml", compute={"memory_mb": 64, "workers": 1}, serving={"threads": 1})
    settings.home.chmod(0o700)
    easy = root / "tmp" / "easy"
    easy.write_text("everybody may read this")
    promote(settings, 1)
    start_triton(settings)
    try:
        with (
            staging_folder(settings, "attacked") as folder,
            open_duckdb(settings, folder) as database,
            DeltaOfflineStoreConfig(memory_mb=64, threads=1, spill=str(settings.home / "staging")).open_session() as feast,
            DeltaOfflineStoreConfig(memory_mb=64, threads=1).open_session() as foreign,
            open_cluster(settings, tasks=1) as cluster,
        ):
            for connection in (database, feast, foreign):
                spill(connection)
            (planted,) = cluster.map(write_beside, [("rows",)])
            kept = [path for top in (settings.home, root / "tmp") for path in top.rglob("*") if path.is_file()]
            spilled = [path for path in kept if path.name.startswith("duckdb_temp")]
            shared = list(Path("/dev/shm").glob(f"{read_record(settings).name}_*"))  # noqa: S108 - where the server keeps it
            done = subprocess.run(
                [sys.executable, ATTACKER],
                input="\n".join(f"read {path}" for path in (*kept, *shared)),
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
                cwd="/",
            )
    finally:
        stop_triton(settings)
    assert len({path.parent for path in spilled}) == 3, "DuckDB's, Feast's in the home, Feast's in the temporary folder"
    assert Path(planted) in kept
    assert shared
    assert done.stdout.splitlines() == [f"read {easy}"]


NAMED = {"ca_certificate": "ca.pem", "client_certificate": "client.pem", "client_key": "client.key"}


def test_a_scheduler_with_tls_is_reached_with_the_certificates_of_the_settings(project):
    from distributed import LocalCluster, Security

    security = Security.temporary()
    for name, text in zip(
        NAMED.values(), (security.tls_ca_file, security.tls_client_cert, security.tls_client_key), strict=True
    ):
        (project.parent / name).write_text(text)
    with LocalCluster(
        n_workers=1, processes=False, host="127.0.0.1", protocol="tls", security=security, dashboard_address=None
    ) as server:
        address = server.scheduler_address

        def works(**compute) -> bool:
            settings = load_settings(project, compute={"connect_timeout_s": 3, "dask": address} | compute)
            with open_cluster(settings, tasks=1) as cluster:
                return list(cluster.map(lambda: 7, [()])) == [7]

        assert works(**NAMED)
        with pytest.raises(SettingsError, match="no certificates are named"):
            works()
        with pytest.raises(SchedulerUnreachable):
            works(dask=address.replace("tls", "tcp"))


def test_a_certificate_that_cannot_be_read_is_told(project):
    compute = {"dask": "tls://127.0.0.1:9"} | NAMED
    with (
        pytest.raises(SettingsError, match="cannot be read") as caught,
        open_cluster(load_settings(project, compute=compute), tasks=1),
    ):
        pass
    assert "[compute]" in caught.value.where
