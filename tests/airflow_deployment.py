"""A real Airflow on PostgreSQL: scheduler, LocalExecutor, API server; asked by its REST API, read from its database."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Deployment", "running_airflow"]

DAGS = Path(__file__).resolve().parents[1] / "airflow_dags"


class Deployment:
    """Airflow at work: its API, and what its database says."""

    def __init__(self, home: Path, port: int, database: sa.URL) -> None:
        self.home = home
        self.started_at = datetime.now(UTC)
        self._api = f"http://127.0.0.1:{port}"
        self._engine = sa.create_engine(database, isolation_level="AUTOCOMMIT")
        self._token = ""

    def log(self) -> str:
        return (self.home / "standalone.log").read_text()[-3000:]

    def query(self, sql: str, **values: Any) -> list[tuple]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(sql), values)]

    def close(self) -> None:
        self._engine.dispose()

    def wait_until_listed(self, dags: set[str], *, minutes: float = 6) -> None:
        """Until Airflow answers, and has read the file."""
        give_up = time.monotonic() + 60 * minutes
        found: set[str] = set()
        while not self._token or not dags <= found:
            assert time.monotonic() < give_up, (found, self.log())
            time.sleep(2)
            with contextlib.suppress(httpx.TransportError):
                self._token = self._token or httpx.get(f"{self._api}/auth/token").raise_for_status().json()["access_token"]
            with contextlib.suppress(sa.exc.ProgrammingError):  # the tables are being made
                found = {dag for (dag,) in self.query("SELECT dag_id FROM dag")}

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        answer = httpx.request(method, f"{self._api}/api/v2/{path}", json=content, headers=headers, timeout=60)
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else None

    def parse_again(self, dag: str, *, minutes: float = 3) -> None:
        """Have the DAG's file read again, so that its next window is the last one that is over."""
        token = self.ask("GET", f"dags/{dag}")["file_token"]
        asked, give_up = datetime.now(UTC), time.monotonic() + 60 * minutes
        self.ask("PUT", f"parseDagFile/{token}")
        while not self.query("SELECT dag_id FROM dag WHERE dag_id = :dag AND last_parsed_time > :asked", dag=dag, asked=asked):
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.5)

    def pause(self, dag: str, *, paused: bool) -> None:
        self.ask("PATCH", f"dags/{dag}", {"is_paused": paused})

    def trigger(self, dag: str, **conf: Any) -> str:
        return self.ask("POST", f"dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def runs(self, dag: str) -> list[sa.Row]:
        """The DAG's runs, the oldest first."""
        columns = "run_id, state, run_type, data_interval_start, data_interval_end, start_date, end_date"
        with self._engine.connect() as connection:
            found = connection.execute(sa.text(f"SELECT {columns} FROM dag_run WHERE dag_id = :dag ORDER BY id"), {"dag": dag})
            return list(found)

    def tasks(self, dag: str, run_id: str) -> dict[str, sa.Row]:
        columns = "task_id, state, try_number, pid, start_date, end_date"
        sql = f"SELECT {columns} FROM task_instance WHERE dag_id = :dag AND run_id = :run_id"
        with self._engine.connect() as connection:
            return {row.task_id: row for row in connection.execute(sa.text(sql), {"dag": dag, "run_id": run_id})}

    def tries(self, dag: str, run_id: str, task: str) -> dict[int, datetime]:
        """When each try of a task began."""
        tables = ("task_instance_history", "task_instance")
        where = "WHERE dag_id = :dag AND run_id = :run_id AND task_id = :task"
        sql = " UNION ALL ".join(f"SELECT try_number, start_date FROM {table} {where}" for table in tables)
        return dict(self.query(sql, dag=dag, run_id=run_id, task=task))

    def wait_for_run(self, dag: str, number: int = 0, *, minutes: float = 12) -> sa.Row:
        """The DAG's run of that number, once it has succeeded."""
        give_up = time.monotonic() + 60 * minutes
        while True:
            found = self.runs(dag)
            if len(found) > number and found[number].state in {"success", "failed"}:
                run = found[number]
                assert run.state == "success", (dag, run, self.tasks(dag, run.run_id), self.log_of(dag))
                return run
            assert time.monotonic() < give_up, (dag, found, self.log())
            time.sleep(1)

    def state(self, dag: str, number: int, task: str) -> str | None:
        """Of a task of the DAG's run of that number; None: not there yet."""
        found = self.runs(dag)
        if len(found) <= number:
            return None
        tasks = self.tasks(dag, found[number].run_id)
        assert found[number].state != "failed", (dag, tasks, self.log_of(dag))
        return tasks[task].state if task in tasks else None

    def wait_until_idle(self, dags: set[str], *, minutes: float = 12) -> None:
        """Until no run of these DAGs is under way or due, because an asset was updated."""
        give_up = time.monotonic() + 60 * minutes
        idle = 0
        while idle < 3:  # a run is made, and its asset event taken, one after the other
            due = self.query("SELECT target_dag_id FROM asset_dag_run_queue")
            active = self.query("SELECT dag_id, state FROM dag_run WHERE state IN ('queued', 'running')")
            busy = [row for row in due if row[0] in dags] + [row for row in active if row[0] in dags]
            idle = 0 if busy else idle + 1
            assert time.monotonic() < give_up, (busy, self.log())
            time.sleep(2)

    def log_of(self, dag: str) -> str:
        logs = sorted((self.home / "logs" / f"dag_id={dag}").rglob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text()[-3000:] if logs else "no log"


def kill_task(pid: int) -> datetime:
    """SIGKILL for a task's process, what it started, and the executor's process that watches over it; gives when."""
    task = psutil.Process(pid)
    watching = task.parent()
    assert watching is not None
    assert "LocalExecutor" in " ".join(watching.cmdline()), watching
    for process in (watching, *task.children(recursive=True), task):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return datetime.now(UTC)


@contextmanager
def running_airflow(home: Path, database: sa.URL, **settings: str) -> Iterator[Deployment]:
    """`airflow standalone` with its metadata in a PostgreSQL database; nothing of it is left when this ends.

    Args:
        home: ``AIRFLOW_HOME``, an empty folder.
        database: Of the metadata; empty.
        settings: More of the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SCALR"))}
    sync, of_loop = (database.set(drivername=f"postgresql+{name}") for name in ("psycopg", "psycopg_async"))
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sync.render_as_string(hide_password=False),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": of_loop.render_as_string(hide_password=False),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        # Each time that Airflow reads the file it leaves out windows that a slow run has kept from starting: here, when it is asked to.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "7200",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for-this-test-alone-and-long-enough-to-sign-with",
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    deployment = Deployment(home, port, sync)
    with (home / "standalone.log").open("w") as log:
        command = [sys.executable, "-m", "airflow", "standalone"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            yield deployment
        finally:
            deployment.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            left = list(_of(home))
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(left, timeout=20)
            process.wait(20)


def _of(home: Path) -> Iterator[psutil.Process]:
    """The processes of this Airflow: those whose environment names its home."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(home):
                yield process
