"""scalr_translator: learn again from all that is known by the data interval's end, and serve the new version if it is better.

ingest → histories → train → evaluate → promote if better: where none is served, or where the new version's recipe has no higher
negative log-likelihood than the served version on events that neither has learned from (within two standard errors).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, get_current_context, task


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
    def ingest() -> dict[str, Any]:
        from scalr_prod.ingest import ingest as work
        from scalr_prod.orchestration import scheduler_errors

        with scheduler_errors():
            return work(project()).to_json()

    @task
    def histories() -> dict[str, Any]:
        from scalr_prod.feast_store import apply_feature_repo
        from scalr_prod.histories import build_histories
        from scalr_prod.orchestration import scheduler_errors

        with scheduler_errors():
            settings = project()
            report = build_histories(settings).to_json()
            apply_feature_repo(settings)
            return report

    @task
    def train() -> int:
        from scalr_prod.orchestration import scheduler_errors, trained_until_of
        from scalr_prod.translator import train as work

        with scheduler_errors():
            return work(project(), trained_until=trained_until_of(get_current_context())).version

    @task
    def evaluate(version: int) -> int:
        from scalr_prod.orchestration import scheduler_errors
        from scalr_prod.translator import evaluate as work

        with scheduler_errors():
            work(project(), version)
        return version

    @task
    def promote_if_better(version: int) -> dict[str, Any]:
        from scalr_prod.orchestration import scheduler_errors
        from scalr_prod.pipeline import promote_if_better as work

        with scheduler_errors():
            return work(project(), version).to_json()

    ready = histories()
    version = train()
    ingest() >> ready >> version
    promote_if_better(evaluate(version))


scalr_translator()
