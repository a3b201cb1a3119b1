"""A real shell, in which `scalr` and `airflow` are forks of warm processes: a page's commands as written, without waiting for imports."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Shell", "shell"]

#: Gives a command's words, folder and environment to the socket beside it, and ends as the command did.
_CLIENT = """\
#!{python} -IS
import json, os, socket, sys
from os.path import basename
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({socket!r})
    asked.sendall(json.dumps([basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, stdout, stderr = json.loads(asked.makefile().readline())
sys.stdout.write(stdout)
sys.stderr.write(stderr)
sys.exit(code)
"""


class Shell:
    """Bash, with some programs on its path; made by `shell`.

    Args:
        path: The folder of the programs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, script: str, *, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script that ends with its first command that fails. There is no terminal, and nothing on stdin."""
        environment = {**os.environ, **(env or {})}
        environment["PATH"] = os.pathsep.join([str(self._path), str(Path(sys.executable).parent), environment["PATH"]])
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )


@contextmanager
def shell(folder: Path, programs: Mapping[str, Callable[..., subprocess.CompletedProcess[str]]]) -> Iterator[Shell]:
    """A shell in whose path the programs are.

    Args:
        folder: For them, and for a socket; its path is short enough for one.
        programs: By name, what runs one, called with its arguments and ``cwd`` and ``env``.
    """

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            name, arguments, cwd, env = json.loads(self.rfile.readline())
            done = programs[name](arguments, cwd=cwd, env=env)
            self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode() + b"\n")

    address = str(folder / "socket")
    path = folder / "bin"
    path.mkdir()
    for name in programs:
        program = path / name
        program.write_text(_CLIENT.format(python=sys.executable, socket=address))
        program.chmod(0o755)
    with socketserver.UnixStreamServer(address, Asked) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Shell(path)
        finally:
            server.shutdown()
            thread.join()
