"""What the machine may do to a run: no room, no permission, damaged files, a clock that is set back, workers that die."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.fault_harness import STAGES, Kill, drawn, view

from scalr_prod.config.settings import load_settings
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.schemas import Table

pytestmark = [pytest.mark.slow, pytest.mark.long]

as_root = pytest.mark.usefixtures("mounts")


@pytest.fixture(scope="session")
def mounts(tmp_path_factory) -> None:
    """Only root may mount file systems, and not in every container."""
    folder = tmp_path_factory.mktemp("mount")
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def mounted(folder: Path, *options: str):
    """Mount a file system over a folder within the block; yield a function that mounts it anew, with other options.

    A process of its own unmounts it at the end, also where this one is killed: pytest could never remove the folder again.
    """
    script = 'read -r _; umount "$0" 2>/dev/null || sleep 1; umount "$0" 2>/dev/null || umount --lazy "$0" 2>/dev/null'
    with subprocess.Popen(["sh", "-c", script, str(folder)], stdin=subprocess.PIPE, start_new_session=True):
        subprocess.run(["mount", *options, str(folder)], check=True)
        yield lambda *others: subprocess.run(["mount", "-o", ",".join(["remount", *others]), str(folder)], check=True)
    assert not folder.is_mount()


@contextmanager
def small_disk(folder: Path, spare: int):
    """The folder on a file system of its own that has room for so many bytes more; gives a function that makes room."""
    kept = folder.with_name(f"{folder.name}.kept")
    if folder.exists():
        folder.rename(kept)
    folder.mkdir(parents=True)
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in kept.rglob("*") if path.is_file()) if kept.exists() else 0
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size + spare}", "tmpfs") as remount:
        if kept.exists():
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield lambda: remount("size=256m")
        left = folder.with_name(f"{folder.name}.left")
        shutil.copytree(folder, left)
    folder.rmdir()
    left.rename(folder)
    shutil.rmtree(kept, ignore_errors=True)


def fails_clearly(found, *says: str) -> None:
    assert not found.killed
    assert found.error is not None
    assert found.clear, found.error
    for part in says:
        assert part in found.error, found.error
    assert "next: " in found.error


#: Stage, folder below home, bytes of room left.
FULL = {
    "the parts of the run": ("generate", "runs", 8_192),
    "the staging folder": ("dataset", "staging", 4_096),
    "the gate's verdict": ("validate", "gx", 4_096),
    "the commit": ("publish", "lake/synthetic_target_events", 8_192),
    "the training set": ("dataset", "datasets", 8_192),
    "the lake, at ingest": ("ingest", "lake", 16_384),
    "the model": ("translator", "models", 4_096),
}
#: Those that `make test-long` has time for.
SOON = {"the parts of the run"}


@as_root
@pytest.mark.parametrize("where", [pytest.param(name, marks=[] if name in SOON else [pytest.mark.nightly]) for name in FULL])
def test_a_full_disk_fails_the_run_and_room_lets_it_go_on(project, drivers, where):
    stage, folder, spare = FULL[where]
    config = project.before(stage)
    home = config.parent / ".scalr"
    before = view(config) if stage in {"generate", "validate", "publish"} else None
    with small_disk(home / folder, spare) as make_room:
        fails_clearly(drivers.drive(config, "run", **project.options))
        if before is not None:
            assert view(config) == before, "the view reads as before"
        make_room()
        found = drivers.drive(config, "resume" if before is not None else "run", **project.options)
        assert found.error is None, found.error
        project.check()


#: Stage, and the share of its points after which the disk is full: twenty in all.
MOMENTS = [(stage, share) for stage in STAGES for share in (0.2, 0.7)] + [("ingest", 0.5), ("generate", 0.5)]


@as_root
@pytest.mark.parametrize(
    ("stage", "share"),
    [pytest.param(*case, marks=[] if case == ("publish", 0.2) else [pytest.mark.nightly]) for case in MOMENTS],
)
def test_a_disk_that_fills_up_is_one_clear_error_and_the_next_run_completes(project, drivers, stage, share):
    config = project.before(stage)
    home = config.parent / ".scalr"
    ballast = home / "ballast"
    environment = {"SCALR_COMPUTE__DASK": project.options["compute"]["dask"]}

    def run(**options):
        found = drivers.drive(config, "command", arguments=["-q", "run"], environment=environment, **options)
        assert found.error is None, found.error
        return found.report

    with small_disk(home, 32 << 20):
        full = Kill(stage, point=max(1, round(share * project.points[stage])), ballast=str(ballast))
        told = run(kill=full)
        assert ballast.exists(), "the disk was never full"
        assert told["orderly"], told
        assert "Traceback" not in told["stdout"] + told["stderr"], told
        if told["exit_code"]:
            assert told["exit_code"] == 1, told
            paragraph = told["stderr"][told["stderr"].index("error: ") :].strip()
            assert "\n\n" not in paragraph, paragraph
            assert "next: " in paragraph, paragraph
        else:
            assert share > 0.5, "all was written before, or fitted into what the stage then freed"
            project.check()
        ballast.unlink()
        told = run()
        assert told["exit_code"] == 0, told
        project.check()


@pytest.mark.parametrize("stage", [pytest.param("generate", marks=pytest.mark.nightly), "publish"])
def test_a_quota_fails_the_run_and_room_lets_it_go_on(project, drivers, stage):
    """As above, without root: no file of the driver may grow beyond 4 KiB."""
    config = project.before(stage)
    fails_clearly(drivers.drive(config, "run", faults={"stage": stage, "file_size": 4096}, **project.options))
    assert not view(config).num_rows
    found = drivers.drive(config, "resume", **project.options)
    assert found.error is None, found.error
    project.check()


@as_root
@pytest.mark.parametrize("stage", ["publish", pytest.param("ingest", marks=pytest.mark.nightly)])
def test_a_lake_that_cannot_be_written_to(project, drivers, stage):
    config = project.before(stage)
    lake = config.parent / ".scalr" / "lake"
    lake.mkdir(parents=True, exist_ok=True)
    with mounted(lake, "--bind", str(lake)) as remount:
        remount("ro", "bind")
        fails_clearly(drivers.drive(config, "run", **project.options), "lake")
        remount("rw", "bind")
        found = drivers.drive(config, "resume" if stage == "publish" else "run", **project.options)
    assert found.error is None, found.error
    project.check()


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


#: Where the run stands, and files below its folder.
DAMAGED = [
    ("validate", "parts/*.parquet"),
    ("validate", "candidates/*.parquet"),
    ("validate", "*/_part*.json"),
    ("validate", "*.json"),
    ("publish", "accepted/*.parquet"),
    ("publish", "candidates/*.parquet"),
    ("publish", "*.json"),
]


@pytest.mark.parametrize(
    ("stage", "pattern", "damage"),
    [
        pytest.param(
            *case,
            damage,
            id=f"{damage.__name__} {case[1]} before {case[0]}",
            marks=[] if case in DAMAGED[1:6:3] and damage is flip else [pytest.mark.nightly],
        )
        for case in DAMAGED
        for damage in (truncate, flip, remove)
    ],
)
def test_damaged_files_of_the_run_are_made_again(project, drivers, damage, stage, pattern):
    draw = random.Random(f"{damage.__name__} {stage} {pattern}")  # noqa: S311 - reproducible
    config = project.before(stage)
    files = sorted((config.parent / ".scalr" / "runs").glob(f"*/{pattern}"))
    assert files
    for path in draw.sample(files, min(2, len(files))):
        damage(path, draw)
    found = drivers.drive(config, "resume", **project.options)
    assert found.error is None, found.error
    project.check()


def test_a_clock_that_is_set_back_keeps_nobody_out(project, drivers):
    """By a day: first in the middle of a run, then between a killed driver and the one that takes over."""
    config = project.before("generate")
    found = drivers.drive(config, "run", faults={"stage": "validate", "clock": -86_400}, **project.options)
    assert found.error is None, found.error
    project.check()

    config = project.before("generate")
    kill = Kill("generate", point=project.points["generate"] // 2)
    assert drivers.drive(config, "run", kill=kill, **project.options).killed
    found = drivers.drive(config, "resume", faults={"stage": "generate", "clock": -86_400}, **project.options)
    assert found.error is None, found.error
    project.check()
    with Ledger.open(load_settings(config, **project.options)) as ledger:
        (run,) = ledger.runs.find()
        takeovers = ledger.changes.find(run.run_id, subject="lease")
        assert run.state is RunState.PUBLISHED
    assert len(takeovers) == 1
    assert "has exited" in takeovers[0].cause


@pytest.mark.nightly
def test_another_host_s_lease_is_waited_for_and_then_told(project, drivers):
    config = project.before("validate")
    with Ledger.open(load_settings(config, **project.options)) as ledger:
        (run,) = ledger.runs.find()
        ledger.leases.acquire(run.run_id, "other-host:1:abcdef01:token", ttl_s=3600)
        found = drivers.drive(config, "resume", **project.options)
        fails_clearly(found, "LeaseHeld", "other-host", "expires by itself")
        with ledger.database.write_session() as session:
            ledger.runs.load_row(session, run.run_id).lease_expires_at = datetime.now(UTC) - timedelta(seconds=1)
        found = drivers.drive(config, "resume", **project.options)
        assert found.error is None, found.error
        assert "expired" in ledger.changes.find(run.run_id, subject="lease")[-1].cause
    project.check()


@pytest.mark.nightly(reason="CONTRIBUTING.md")
@pytest.mark.parametrize("seed", range(10))
def test_a_killed_worker_s_tasks_are_done_by_others(project, drivers, cluster, seed):
    config = project.before("generate")
    (kill,) = drawn(project.points, {"generate": 0.6 * project.seconds["generate"]}, {"generate": 2}, seed=seed)[1:]
    driver = drivers.start(config, "run", **project.options)
    parts = config.parent / ".scalr" / "runs"
    while driver.process.is_alive() and not any(parts.glob("*/parts")):
        time.sleep(0.01)
    time.sleep(kill.after)
    worker = random.Random(seed).choice(list(cluster.workers.values()))  # noqa: S311 - reproducible
    os.kill(worker.pid, signal.SIGKILL)
    found = driver.wait()
    assert found.error is None, found.error
    project.check()


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, 2.0])
def test_a_scheduler_that_is_started_anew(project, drivers, moment):
    """Killed with its workers in the middle of a run: one clear error; with another at the same address, the run goes on."""
    config = project.before("generate")
    script = (
        "import sys, time\nfrom distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', scheduler_port=int(sys.argv[1]),\n"
        "                      dashboard_address='127.0.0.1:0') as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n        time.sleep(600)\n"
    )

    def scheduler(port: int) -> tuple[subprocess.Popen, str]:
        made = subprocess.Popen(
            [sys.executable, "-c", script, str(port)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        return made, made.stdout.readline().strip()

    first, address = scheduler(0)
    options = project.options | {"compute": {"dask": address, "connect_timeout_s": 60}}
    driver = drivers.start(config, "run", **options)
    parts = config.parent / ".scalr" / "runs"
    while driver.process.is_alive() and not any(parts.glob("*/parts")):
        time.sleep(0.01)
    time.sleep(moment)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    found = driver.wait()
    if found.error is not None:
        # Killed before the driver had met it, or in the middle of the run.
        next_step = "start it (dask scheduler)" if "does not answer within" in found.error else "scalr runs resume"
        fails_clearly(found, "SchedulerUnreachable", next_step)
        assert not view(config).num_rows
    second, _ = scheduler(int(address.rsplit(":", 1)[1]))
    try:
        found = drivers.drive(config, "resume", **options)
        assert found.error is None, found.error
    finally:
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()
        for one in (first, second):
            one.stdout.close()
    project.check()


@pytest.mark.parametrize("table", [Table.SOURCE_USER_HISTORY, pytest.param(Table.SOURCE_EVENTS, marks=pytest.mark.nightly)])
def test_a_table_vacuumed_past_the_run_s_version_is_told(project, drivers, table):
    config = project.before("generate")
    lake = Lake.open(load_settings(config, **project.options))
    rows = lake.read(table)
    lake.replace(table, rows, key="anew")
    lake.vacuum(table, keep_days=0)
    found = drivers.drive(config, "resume", **project.options)
    fails_clearly(found, "LakeError", table.value, "is no longer there", "vacuum", "scalr generate")
    found = drivers.drive(config, "run", **project.options)
    assert found.error is None, found.error
    assert view(config).drop_columns("run_id").num_rows == project.rows.num_rows
