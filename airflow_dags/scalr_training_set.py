"""scalr_training_set: whenever synthetic events are published, build the training set anew and put it before the gate.

It is triggered by the asset ``synthetic_target_events``, and builds the training set of the project that published. Its cutoff is
the latest ``as_of`` among the asset's events, so that all they published is known; the param ``cutoff`` and ``[training_set] cutoff``
of scalr.toml go before.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, get_current_context, task

ASSET = Asset("synthetic_target_events")
_INSTANT = {"type": ["null", "string"], "format": "date-time"}


@dag(
    schedule=[ASSET],
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "scalr",
        "retries": int(os.environ.get("SCALR_AIRFLOW_RETRIES", "2")),
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=6),
        "pool": os.environ.get("SCALR_AIRFLOW_POOL", "default_pool"),
    },
    params={
        "config": Param(None, type=["null", "string"], description="scalr.toml; default: that of the run that published"),
        "start": Param(None, **_INSTANT, description="first instant of a label"),
        "cutoff": Param(None, **_INSTANT, description="no label, feature or row from after it"),
    },
    tags=["scalr"],
    doc_md=__doc__,
)
def scalr_training_set() -> None:
    """One task: the builder holds the gate, and keeps nothing that does not pass it."""

    @task(inlets=[ASSET])
    def build(*, inlet_events: Any = None) -> dict[str, Any]:
        from scalr_prod.orchestration import do_stage, training_set_project

        context = get_current_context()
        job = do_stage("dataset", lambda: training_set_project(context, [event.extra for event in inlet_events[ASSET]]))
        return job.reports["dataset"].to_json()

    build()


scalr_training_set()
