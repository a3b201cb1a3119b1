"""Drivers that die: the pipeline in a process of its own, killed with SIGKILL at a drawn point, and what is left of it.

A *point* is where something may be left half done: an operation on a file of the project, a transaction of the ledger, a
commit of the lake. An undisturbed run counts them, stage by stage; a kill names one by its number, or a moment within the
stage. Drivers are forked from a server that has the heavy libraries imported, so a kill and its recovery take seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

#: Stages in the order of a run; a kill of one of them starts from a copy of the home as it was before it.
STAGES = ("ingest", "histories", "feast", "translator", "plan", "generate", "validate", "publish", "dataset")
_PRELOAD = (
    "scalr_prod.pipeline",
    "scalr_prod.publication.commit",
    "scalr_prod.ledger.store",
    "scalr_prod.training_set.build",
    "feast",
    "great_expectations",
    "distributed",
    "deltalake",
    "duckdb",
    "pyarrow.dataset",
    "torch",
    "safetensors.torch",
    "scipy.sparse",
    "alembic.command",
    "psycopg",
)
_WATCHED = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "shutil.rmtree",
    "os.truncate",
    "sqlite3.connect",
}


@dataclass(frozen=True)
class Kill:
    """Where a driver dies: at a stage's ``point``-th point, or ``after`` seconds into it.

    With a ``server``, the process of that number and all of its children die in the driver's place. With another ``signal``, the
    driver is asked to end in order. With a ``ballast``, nobody dies: a file of this name grows until its disk is full.
    """

    stage: str
    point: int | None = None
    after: float | None = None
    server: int | None = None
    signal: int = signal.SIGKILL
    ballast: str | None = None

    def __str__(self) -> str:
        return f"{self.stage}-{f'point{self.point}' if self.point is not None else f'{self.after:.3f}s'}"


@dataclass(frozen=True)
class Outcome:
    """How a driver ended.

    Attributes:
        killed: By SIGKILL.
        error: Type and text of what it raised, else None.
        clear: Whether that was a `ScalrError`.
        points: Points passed, by stage.
        seconds: Time spent, by stage.
        report: What it returned.
    """

    killed: bool
    error: str | None = None
    clear: bool = True
    points: dict[str, int] | None = None
    seconds: dict[str, float] | None = None
    report: dict[str, Any] | None = None


def drawn(points: dict[str, int], seconds: dict[str, float], shares: dict[str, int], *, seed: int) -> list[Kill]:
    """Kills of each stage: as many as its share, half of them at points and half at moments, drawn from the seed."""
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    kills = []
    for stage, share in shares.items():
        for number in range(share):
            if number % 2 == 0:
                kills.append(Kill(stage, point=draw.randint(1, points[stage])))
            else:
                kills.append(Kill(stage, after=draw.uniform(0, seconds[stage])))
    return kills


class Drivers:
    """Starts drivers, each a fork of one warm process."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # Another may be there, which has imported less: each driver would import the rest for itself. It ends with its last process.
        former = forkserver._forkserver
        if former._forkserver_alive_fd is not None:
            os.close(former._forkserver_alive_fd)
            former._forkserver_address = former._forkserver_alive_fd = former._forkserver_pid = None
        self._context.set_forkserver_preload(["support.fault_harness", *_PRELOAD])

    def start(self, config: Path, action: str, *, kill: Kill | None = None, **options: Any) -> Driver:
        """A driver that begins now; ``action``: run, resume, or any of `_ACTIONS`."""
        out = config.parent / f".outcome-{time.monotonic_ns()}.json"
        process = self._context.Process(target=_drive, args=(str(config), action, kill, str(out), options))
        process.start()
        return Driver(process, out)

    def drive(self, config: Path, action: str, *, kill: Kill | None = None, timeout: float = 240, **options: Any) -> Outcome:
        """Start one and wait for its end."""
        return self.start(config, action, kill=kill, **options).wait(timeout)


class Driver:
    """One driver at work."""

    def __init__(self, process: Any, out: Path) -> None:
        self.process, self.out = process, out

    def wait(self, timeout: float = 240) -> Outcome:
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"the driver did not end within {timeout} s")
        if self.process.exitcode == -signal.SIGKILL:
            return Outcome(killed=True)
        found = json.loads(self.out.read_text())
        self.out.unlink()
        return Outcome(killed=False, **found)


def kill_family(pid: int) -> None:
    """As if their machine had lost power: a process and all of its children."""
    import psutil

    parent = psutil.Process(pid)
    # Halted first: a server that sees a child die ends the others and begins to recover by itself.
    parent.suspend()
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)


def fill_disk(ballast: Path) -> None:
    """Let a file grow until its disk has no block left."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            if file.write(bytes(4096)) < 4096:
                break


def view(config: Path, **sections: Any) -> Any:
    """The feature view's rows, sorted."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.lake import Lake
    from scalr_prod.schemas import Table

    rows = Lake.open(load_settings(config, **sections)).read(Table.SYNTHETIC_TARGET_EVENTS)
    return rows.select(sorted(rows.schema.names)).sort_by("event_id").combine_chunks().replace_schema_metadata()


def as_bytes(rows: Any) -> bytes:
    """A table as Arrow writes it."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        for batch in rows.to_batches():
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copy(config: Path, folder: Path) -> Path:
    """The project, copied; gives the copy's scalr.toml."""
    shutil.copytree(config.parent, folder, symlinks=True)
    return folder / config.name


# In the driver ------------------------------------------------------------------------------------------------------


def _drive(config: str, action: str, kill: Kill | None, out: str, options: dict[str, Any]) -> None:
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - file descriptors of the process itself
        os.dup2(nothing.fileno(), 2)
    # As a shell starts a command. The server that forks drivers may be one of local workers, in which SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    points = _Points(Path(config).parent, kill)
    points.faults = options.pop("faults", {})
    os.environ.update(options.pop("environment", {}))
    found: dict[str, Any] = {}
    try:
        from scalr_prod.core.signals import graceful_shutdown

        with graceful_shutdown(), points:
            report = _ACTIONS[action](config, **options)
        found["report"] = json.loads(json.dumps(report.to_json(), default=str))
    except BaseException as error:
        import traceback

        from scalr_prod.errors import ScalrError

        clear = isinstance(error, ScalrError)
        found |= {"error": f"{type(error).__name__}: {error}" + ("" if clear else traceback.format_exc()), "clear": clear}
    found |= {"points": dict(points.passed), "seconds": dict(points.seconds)}
    unfinished = Path(out + ".tmp")
    unfinished.write_text(json.dumps(found))
    unfinished.replace(out)


def _run(config: str, snapshots: str | None = None, **sections: Any) -> Any:
    from scalr_prod.config.settings import load_settings
    from scalr_prod.project import Project

    settings = load_settings(config, **sections)
    if snapshots is not None:
        _Points.before_stage = lambda stage: shutil.copytree(Path(config).parent, Path(snapshots) / stage)
    return Project(settings).run()


def _resume(config: str, **sections: Any) -> Any:
    """As a user would: the run that the ledger lists first."""
    from scalr_prod.config.settings import load_settings
    from scalr_prod.ledger import Ledger
    from scalr_prod.pipeline import resume_run

    settings = load_settings(config, **sections)
    with Ledger.open(settings) as ledger:
        run_id = ledger.runs.find(limit=1)[0].run_id
    return resume_run(settings, run_id)


def _command(config: str, arguments: list[str]) -> Any:
    """A command line in this process: its exit code, what it printed, and whether it ended as a command does."""
    from typer.testing import CliRunner

    from scalr_prod.apps.cli import app

    done = CliRunner().invoke(app, [*arguments, "--config", config])
    orderly = done.exception is None or isinstance(done.exception, SystemExit)
    told = {"exit_code": done.exit_code, "stdout": done.stdout, "stderr": done.stderr, "exception": repr(done.exception)}
    return SimpleNamespace(to_json=lambda: told | {"orderly": orderly})


_ACTIONS = {"run": _run, "resume": _resume, "command": _command}


class _Points:
    """Counts points, stage by stage, and dies at the one that was named."""

    before_stage: Any = None
    current: _Points | None = None

    def __init__(self, folder: Path, kill: Kill | None) -> None:
        self.folder, self.kill = str(folder), kill
        self.passed: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.stage: str | None = None
        self.struck = threading.Lock()
        self.faults: dict[str, Any] = {}

    def __enter__(self) -> Self:
        from sqlalchemy import Engine, event

        from scalr_prod.lake import tables
        from scalr_prod.pipeline import runner

        sys.addaudithook(self._audit)
        for name in ("begin", "commit", "rollback"):
            event.listen(Engine, name, lambda _: self.reach())
        _around(tables, "commit_once", self.reach)
        runner.stage_context = self._entering(runner.stage_context)
        return self

    def __exit__(self, *_: object) -> None:
        self.stage = None

    def reach(self) -> None:
        """One more point; the last, where it is the one. A lease's renewals, which come by the clock, are none."""
        if self.stage is None or threading.current_thread().name.startswith("lease "):
            return
        self.passed[self.stage] += 1
        if self.kill and self.kill.stage == self.stage and self.kill.point == self.passed[self.stage]:
            self._strike()

    def _strike(self) -> None:
        if self.kill is None or not self.struck.acquire(blocking=False):
            return
        if self.kill.ballast is not None:
            fill_disk(Path(self.kill.ballast))
        elif self.kill.server is None:
            os.kill(os.getpid(), self.kill.signal)
        else:
            kill_family(self.kill.server)

    def _spoil(self, stage: str) -> None:
        """From this stage on: no file grows beyond ``faults['file_size']``; the clock is ``faults['clock']`` seconds wrong."""
        if self.faults.get("stage") != stage:
            return
        if "file_size" in self.faults:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.faults["file_size"],) * 2)
        if "clock" in self.faults:
            from scalr_prod.ledger import database

            wrong = timedelta(seconds=self.faults["clock"])
            database.datetime = type("Wrong", (datetime,), {"now": staticmethod(lambda zone: datetime.now(zone) + wrong)})
            true = time.time

            def late() -> float:
                return true() + wrong.total_seconds()

            # Also where a library bound it by name: of two clocks a day apart, Dask's messages would wait for the later one.
            for module in list(sys.modules.values()):
                for name in [name for name, value in list(vars(module).items()) if value is true]:
                    setattr(module, name, late)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event in _WATCHED
            and self.stage is not None
            and self.folder in str(arguments[0])
            and (event != "open" or _writes(arguments))
        ):
            self.reach()

    def _entering(self, stage: Any) -> Any:
        @contextmanager
        def entered(name: str, run_id: str | None = None) -> Any:
            fresh = self.stage is None
            if fresh:
                if _Points.before_stage is not None:
                    _Points.before_stage(name)
                self.stage = name
                self._spoil(name)
                if self.kill and self.kill.stage == name and self.kill.after is not None:
                    timer = threading.Timer(self.kill.after, self._strike)
                    timer.daemon = self.kill.server is None  # a server's death is seen through to the end
                    timer.start()
            started = time.perf_counter()
            try:
                with stage(name, run_id):
                    yield
            finally:
                if fresh:
                    self.seconds[name] += time.perf_counter() - started
                    self.stage = None
                    if self.kill and self.kill.stage == name and self.kill.after is not None:
                        self._strike()  # faster than when it was measured: at its end, then

        return entered


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = (*arguments[1:], None, None)[:2]
    return any(sign in str(mode or "") for sign in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _around(module: ModuleType, name: str, reach: Any) -> None:
    """A point before and one after every call of a function."""
    function = getattr(module, name)

    def called(*arguments: Any, **options: Any) -> Any:
        reach()
        found = function(*arguments, **options)
        reach()
        return found

    setattr(module, name, called)
