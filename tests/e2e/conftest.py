"""End-to-end tests run the `scalr` command itself, in a process of its own that has the libraries imported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support.warm import run

SCALR = Path(sys.executable).with_name("scalr")


@pytest.fixture
def scalr():
    """Run a command with --json; gives (exit code, the object on stdout, stderr)."""

    def call(*arguments: str, config: Path, env: dict[str, str] | None = None, timeout: float = 900):
        command = [SCALR, *arguments, "--config", config, "--json"]
        done = run(command, timeout=timeout, env={**os.environ, **(env or {})})
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    return call
