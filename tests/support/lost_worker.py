"""A worker process that dies in the middle of a stage."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

__all__ = ["lose_a_worker"]


def lose_a_worker(monkeypatch: pytest.MonkeyPatch, module: ModuleType, task: str, died: Path) -> None:
    """The first process that ends a task of this name is killed there, and leaves the file ``died``."""
    work = getattr(module, task)

    def dying(*arguments: object) -> object:
        result = work(*arguments)
        with suppress(FileExistsError):  # another worker died
            died.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(module, task, dying)
