"""A real Airflow on PostgreSQL: scheduler, DAG processor, API server; asked by its REST API, read from its database.

Nothing here is timed: each wait is for a state, and all of them share one limit, after which what Airflow was at is said.
"""

from __future__ import annotations

import contextlib
import os
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
    from collections.abc import Callable, Iterator

__all__ = ["Deployment", "kill_task", "running_airflow"]

TESTS = Path(__file__).resolve().parents[1]
DAGS = TESTS.parent / "airflow_dags"


class Deployment:
    """Airflow at work: its components, its API, and what its database says."""

    def __init__(self, home: Path, port: int, database: sa.URL, environment: dict[str, str], limit: float) -> None:
        self.home = home
        self._components: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = environment
        self._give_up = time.monotonic() + limit
        self._api = f"http://127.0.0.1:{port}"
        self._engine = sa.create_engine(database, isolation_level="AUTOCOMMIT")
        self._token = ""

    def begin(self, component: str, **settings: str) -> datetime:
        """Start a component; where it is at work, end it first. Gives when.

        Args:
            component: A command of Airflow's.
            settings: More of its environment.
        """
        if component in self._components:
            self._components[component].terminate()
            self._components[component].wait(max(self._give_up - time.monotonic(), 1))
        began = datetime.now(UTC)
        with (self.home / f"{component}.log").open("ab") as log:
            self._components[component] = subprocess.Popen(
                [sys.executable, "-m", "airflow", component],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | settings,
                start_new_session=True,
            )
        return began

    def until(self, found: Callable[[], Any], *, what: str, every: float = 1) -> Any:
        """What is found, once it is true.

        Args:
            found: Asked again and again.
            what: What is waited for, in words.
            every: Seconds between.
        """
        while not (result := found()):
            ended = {name: code for name, one in self._components.items() if (code := one.poll()) is not None}
            assert not ended, (ended, self.log())
            assert time.monotonic() < self._give_up, f"waited in vain for {what}\n{self.states()}\n{self.log()}"
            time.sleep(every)
        return result

    def states(self) -> str:
        """Of each run and, where it has not succeeded, of its tasks: a line each."""
        runs = self.query("SELECT dag_id, run_id, state, start_date, end_date FROM dag_run ORDER BY id")
        lines = []
        for dag, run_id, state, *times in runs:
            lines.append(f"{dag} {run_id} {state} {times[0]} … {times[1]}")
            if state != "success":
                lines += [f"  {task.task_id} {task.state}, try {task.try_number}" for task in self.tasks(dag, run_id).values()]
        return "\n".join(lines)

    def log(self) -> str:
        """The last lines of each component."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.home.glob("*.log")))

    def query(self, sql: str, **values: Any) -> list[tuple]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(sql), values)]

    def close(self) -> None:
        """End the components; they have half a minute for it."""
        self._engine.dispose()
        for one in self._components.values():
            one.terminate()
        for one in self._components.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(30)

    def wait_until_listed(self, dags: set[str], *, since: datetime | None = None) -> None:
        """Until Airflow answers, and has read the file; since then, where a time is given."""
        since = since or datetime(2024, 1, 1, tzinfo=UTC)

        def listed() -> bool:
            with contextlib.suppress(httpx.TransportError):
                self._token = self._token or httpx.get(f"{self._api}/auth/token").raise_for_status().json()["access_token"]
            read = self.query("SELECT dag_id FROM dag WHERE last_parsed_time > :since", since=since)
            return bool(self._token) and dags <= {dag for (dag,) in read}

        self.until(listed, what=f"Airflow to list {sorted(dags)}")

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        answer = httpx.request(method, f"{self._api}/api/v2/{path}", json=content, headers=headers, timeout=300)
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else None

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

    def wait_for_run(self, dag: str, number: int = 0) -> sa.Row:
        """The DAG's run of that number, once it has succeeded."""

        def ended() -> sa.Row | None:
            found = self.runs(dag)
            return found[number] if len(found) > number and found[number].state in {"success", "failed"} else None

        run = self.until(ended, what=f"run {number} of {dag}")
        assert run.state == "success", (dag, run, self.tasks(dag, run.run_id), self.log_of(dag))
        return run

    def state(self, dag: str, number: int, task: str) -> str | None:
        """Of a task of the DAG's run of that number; None: not there yet."""
        found = self.runs(dag)
        if len(found) <= number:
            return None
        tasks = self.tasks(dag, found[number].run_id)
        assert found[number].state != "failed", (dag, tasks, self.log_of(dag))
        return tasks[task].state if task in tasks else None

    def wait_until_idle(self, dags: set[str]) -> None:
        """Until no run of these DAGs is under way or due, because an asset was updated."""
        idle = 0

        def over() -> bool:
            nonlocal idle
            due = self.query("SELECT target_dag_id FROM asset_dag_run_queue")
            active = self.query("SELECT dag_id FROM dag_run WHERE state IN ('queued', 'running')")
            idle = 0 if any(dag in dags for (dag,) in due + active) else idle + 1
            return idle == 3  # a run is made, and its asset event taken, one after the other

        self.until(over, every=2, what=f"the last run of {sorted(dags)}")

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
def running_airflow(home: Path, database: sa.URL, *, limit: float, **settings: str) -> Iterator[Deployment]:
    """What `airflow standalone` starts, but for the triggerer; its metadata in a PostgreSQL database. Nothing is left when this ends.

    Args:
        home: ``AIRFLOW_HOME``, an empty folder.
        database: Of the metadata; empty.
        limit: Seconds that all waits may take together.
        settings: More of the environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SCALR"))}
    sync, of_loop = (database.set(drivername=f"postgresql+{name}") for name in ("psycopg", "psycopg_async"))
    env |= {
        "PYTHONPATH": str(TESTS),  # the executor is of the tests
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": sync.render_as_string(hide_password=False),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": of_loop.render_as_string(hide_password=False),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "support.warm_executor.WarmExecutor",
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        # Each time that Airflow reads the file it leaves out windows that a slow run has kept from starting: here, when it is asked to.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "7200",
        # And it leaves out a DAG that it has stored a moment ago, half a minute by default: a fast machine asks again within that, and
        # Airflow would go on by the former schedule.
        "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for-this-test-alone-and-long-enough-to-sign-with",
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    made = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=env, capture_output=True, text=True, check=False, timeout=limit
    )
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    deployment = Deployment(home, port, sync, env, limit)
    try:
        for component in ("scheduler", "dag-processor", "api-server"):
            deployment.begin(component)
        yield deployment
    finally:
        deployment.close()
        left = list(_of(home))
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=20)


def _of(home: Path) -> Iterator[psutil.Process]:
    """The processes of this Airflow: those whose environment names its home."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(home):
                yield process
