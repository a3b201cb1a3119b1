"""Where tasks run: on Dask only where that is faster."""

from __future__ import annotations

import pytest

from scalr_prod.compute import executor
from scalr_prod.config.settings import load_settings

MANY = executor.LOCAL_WORKERS_MIN_WORK_S


@pytest.mark.parametrize(
    ("dask", "workers", "tasks", "work_s", "expected"),
    [
        ("local", 2, 8, MANY, True),
        ("local", 2, 8, MANY - 1, False),
        ("local", 1, 8, MANY, False),
        ("local", 2, 1, MANY, False),
        ("tcp://127.0.0.1:9", 1, 2, 1, True),
        ("tcp://127.0.0.1:9", 1, 1, MANY, False),
    ],
)
def test_dask_is_used_where_it_is_faster(project, dask, workers, tasks, work_s, expected):
    compute = load_settings(project, compute={"dask": dask, "workers": workers}).compute
    assert executor.is_distributed(compute, tasks=tasks, work_s=work_s) is expected


def test_tasks_in_this_process_share_its_connection(project):
    settings, connection = load_settings(project), object()
    with executor.open_executor(settings, connection, tasks=3, work_s=10, stage="histories") as opened:
        assert opened.is_local
        assert list(opened.map(lambda db, number: (db is connection, number), [(1,), (2,)])) == [(True, 1), (True, 2)]
