"""scalr_translator: learn again from all that is known by the data interval's end, and serve the new version if it is better.

ingest → histories → train → evaluate → promote if better: where none is served, or where the new version's recipe has no higher
negative log-likelihood than the served version on events that neither has learned from (within two standard errors).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, get_current_context, task

from scalr_prod.stages import path

STAGES = [stage.name for stage in path(last="translator") if not stage.light]


@dag(
    schedule=CronDataIntervalTimetable(os.environ.get("SCALR_TRANSLATOR_CRON", "0 1 * * 0"), timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "scalr",
        "retries": int(os.environ.get("SCALR_AIRFLOW_RETRIES", "2")),
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=12),
        "pool": os.environ.get("SCALR_AIRFLOW_POOL", "default_pool"),
    },
    params={
        "config": Param(None, type=["null", "string"], description="scalr.toml; default: Variable scalr_config, SCALR_CONFIG"),
        "trained_until": Param(
            None,
            type=["null", "string"],
            format="date-time",
            description="nothing from this time on is read; default: the data interval's end",
        ),
    },
    tags=["scalr"],
    doc_md=__doc__,
)
def scalr_translator() -> None:
    """Ingest, histories, training, evaluation, promotion."""

    def project() -> Any:
        from scalr_prod.orchestration import open_project

        return open_project(get_current_context())

    @task
    def work(stage: str) -> dict[str, Any]:
        from scalr_prod.orchestration import do_stage, trained_until_of

        until = trained_until_of(get_current_context()) if stage == "translator" else None
        return do_stage(stage, project, trained_until=until).reports[stage].to_json()

    @task
    def evaluate(trained: dict[str, Any]) -> int:
        from scalr_prod.orchestration import scheduler_errors
        from scalr_prod.project import Project

        with scheduler_errors():
            Project(project()).evaluate_translator(trained["version"])
        return trained["version"]

    @task
    def promote_if_better(version: int) -> dict[str, Any]:
        from scalr_prod.orchestration import scheduler_errors
        from scalr_prod.project import Project

        with scheduler_errors():
            return Project(project()).promote_if_better(version).to_json()

    before: Any = None
    for stage in STAGES:
        done = work.override(task_id="train" if stage == "translator" else stage)(stage)
        if before is not None:
            before >> done
        before = done
    promote_if_better(evaluate(before))


scalr_translator()
