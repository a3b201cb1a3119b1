"""A Redis of the tests' own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["client", "running_redis"]


def _program() -> str:
    """The server's program; installed by apt where this is root, else the test is skipped."""
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    if found := shutil.which("redis-server"):
        return found
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("no redis-server, and no right to install one; install it (Debian: apt-get install redis-server)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
        subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=240, check=False)
    found = shutil.which("redis-server")
    return found or pytest.skip("redis-server could not be installed by apt-get")


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """Address of a Redis of our own, on a free port of the loopback interface, that keeps nothing."""
    program = _program()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, *options, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def client(address: str):
    from redis import Redis

    host, port = address.split(":")
    return Redis(host, int(port))
