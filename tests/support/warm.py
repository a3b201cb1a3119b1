"""Python commands, each in a fork of one process that has the libraries imported: none of them waits for torch, Feast and the rest.

To import these takes ten seconds of processor time, and tests run over a hundred commands. What is the project's own is imported anew
by each, from its console script on. `tests/unit/core/test_import_time.py` and what measures memory start processes from nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.context import ForkServerContext

__all__ = ["LIBRARIES", "OF_AIRFLOW", "Warm", "forking", "run"]

#: What the project's commands import, in an order in which a command may.
LIBRARIES = (
    "prometheus_client",
    "typer",
    "rich.console",
    "pydantic_settings",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pandas",
    "deltalake",
    "duckdb",
    "alembic.command",
    "scipy.sparse",
    "torch",
    "safetensors.torch",
    "feast",
    "great_expectations",
    "distributed",
    "tritonclient.grpc",
)
#: What Airflow's commands import, beside the rest.
OF_AIRFLOW = (
    "airflow.cli.commands.dag_command",
    "airflow.cli.commands.db_command",
    "airflow.api_fastapi.execution_api.app",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
)


class Warm:
    """One such process; it starts with the first command and ends with this one.

    Args:
        modules: What it imports.
        environment: Its own; None: as here.
    """

    def __init__(self, modules: Sequence[str] = LIBRARIES, environment: Mapping[str, str] | None = None) -> None:
        self._modules, self._environment = modules, environment
        self._server: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with ``capture_output`` and ``text``, with nothing on stdin.

        Args:
            command: A Python script and its arguments, or this interpreter with ``-c``, ``-m`` or a file.
            cwd: Where; None: here.
            env: The whole environment; None: as here.
            check: Whether an exit code other than 0 is an error.
            timeout: Seconds; then the process is killed.

        Raises:
            subprocess.CalledProcessError: It was to be checked, and failed.
            subprocess.TimeoutExpired: It took longer.
        """
        words = [str(word) for word in command]
        arguments = words[1:] if words[0] == sys.executable else words
        with self._lock, tempfile.TemporaryDirectory(prefix="scalr-warm-") as folder:
            outputs = [Path(folder, name) for name in ("stdout", "stderr")]
            for path in outputs:
                path.touch()
            asked = {
                "arguments": arguments,
                "outputs": [str(path) for path in outputs],
                "folder": str(cwd or Path.cwd()),
                "environment": dict(os.environ if env is None else env),
            }
            code, late = self._ask(asked, timeout)
            stdout, stderr = (path.read_text() for path in outputs)
        if late:
            raise subprocess.TimeoutExpired(words, timeout, stdout, stderr)
        if check and code:
            raise subprocess.CalledProcessError(code, words, stdout, stderr)
        return subprocess.CompletedProcess(words, code, stdout, stderr)

    def _ask(self, asked: Mapping[str, object], timeout: float) -> tuple[int, bool]:
        """Its exit code, and whether it was killed for its time."""
        if self._server is None:
            program = str(Path(__file__).with_name("warm_server.py"))
            command = [sys.executable, program, *self._modules]
            pipe, environment = subprocess.PIPE, dict(os.environ if self._environment is None else self._environment)
            # Bytecode of the libraries is kept whatever the machine says: without it, these imports take six seconds more of each process.
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
            atexit.register(self.close)
        requests, answers = self._server.stdin, self._server.stdout
        assert requests is not None
        assert answers is not None
        children: list[int] = []
        late = threading.Event()

        def end() -> None:
            late.set()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

        timer = threading.Timer(timeout, end)
        try:
            requests.write(json.dumps(asked) + "\n")
            requests.flush()
            started = answers.readline()
            assert started, "the warm process has ended; stderr says why"
            children.append(int(started))
            timer.start()
            return int(answers.readline()), late.is_set()
        except BaseException:  # a test's own time limit, say: the next answer would be that of this command
            end()
            self._server.kill()
            self.close()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        server, self._server = self._server, None
        if server is not None:
            server.communicate()
            atexit.unregister(self.close)


def forking(*modules: str) -> ForkServerContext:
    """Processes of `multiprocessing` that are forked from one that has the libraries imported, and these modules.

    Python has one such process at a time. Where another is there, of local Dask workers or of a former call, it stays.
    """
    context = multiprocessing.get_context("forkserver")
    # The first, as the package has it for its workers: Ctrl-C is the driver's.
    context.set_forkserver_preload(["scalr_prod.compute.fork_probe", "support.unhindered", *LIBRARIES, *modules])
    with pytest.MonkeyPatch.context() as patch:
        # Until Python 3.13 that process does not hear what this one's sys.path is.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


@functools.cache
def _shared() -> Warm:
    return Warm()


def run(
    command: Sequence[str | Path],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """`Warm.run` in the process that all tests of this session share."""
    return _shared().run(command, cwd=cwd, env=env, check=check, timeout=timeout)
