"""End-to-end tests run the `scalr` command itself, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCALR = Path(sys.executable).with_name("scalr")


@pytest.fixture
def scalr():
    """Run a command with --json; gives (exit code, the object on stdout, stderr)."""

    def call(*arguments: str, config: Path, env: dict[str, str] | None = None, timeout: float = 900):
        done = subprocess.run(
            [str(SCALR), *arguments, "--config", str(config), "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    return call
