# SPDX-License-Identifier: Apache-2.0
"""Work in parallel: Dask workers or this process, and the shuffle that regroups rows between two rounds of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.compute.cluster import Cluster, open_cluster, preload_workers, progress_channel, worker_folder
    from scalr_prod.compute.executor import Executor, InProcessExecutor, is_distributed, open_executor
    from scalr_prod.compute.file_parts import FilePart, create_file_part_view, open_file_part, plan_file_parts
    from scalr_prod.compute.rounds import TaskRound, rows_per_task, run_rounds, task_size
    from scalr_prod.compute.shuffle import (
        Segment,
        SharedFiles,
        ShuffleFolder,
        iter_segment_tables,
        load_segments,
        read_segments,
        shuffle_folder,
        write_segments,
        write_tables,
    )
    from scalr_prod.compute.worker_task import run_worker_task

__all__ = [
    "Cluster",
    "Executor",
    "FilePart",
    "InProcessExecutor",
    "Segment",
    "SharedFiles",
    "ShuffleFolder",
    "TaskRound",
    "create_file_part_view",
    "is_distributed",
    "iter_segment_tables",
    "load_segments",
    "open_cluster",
    "open_executor",
    "open_file_part",
    "plan_file_parts",
    "preload_workers",
    "progress_channel",
    "read_segments",
    "rows_per_task",
    "run_rounds",
    "run_worker_task",
    "shuffle_folder",
    "task_size",
    "worker_folder",
    "write_segments",
    "write_tables",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Cluster": "cluster",
        "Executor": "executor",
        "FilePart": "file_parts",
        "InProcessExecutor": "executor",
        "Segment": "shuffle",
        "SharedFiles": "shuffle",
        "ShuffleFolder": "shuffle",
        "TaskRound": "rounds",
        "create_file_part_view": "file_parts",
        "is_distributed": "executor",
        "iter_segment_tables": "shuffle",
        "open_cluster": "cluster",
        "open_executor": "executor",
        "open_file_part": "file_parts",
        "plan_file_parts": "file_parts",
        "preload_workers": "cluster",
        "progress_channel": "cluster",
        "load_segments": "shuffle",
        "read_segments": "shuffle",
        "rows_per_task": "rounds",
        "run_rounds": "rounds",
        "run_worker_task": "worker_task",
        "worker_folder": "cluster",
        "shuffle_folder": "shuffle",
        "task_size": "rounds",
        "write_segments": "shuffle",
        "write_tables": "shuffle",
    },
)
