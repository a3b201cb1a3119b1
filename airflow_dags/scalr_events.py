"""scalr_events: each day's source events become published synthetic target events.

ingest → histories → generate → validate → publish → late, for the run's data interval (or its params start and end). A run reads
nothing that became known after its window's end, so that a day run late gives what it would have given in time. ``late`` publishes
earlier windows again that source events arrived late in, within ``[generation] lookback``, and emits the asset
``synthetic_target_events``.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, CronDataIntervalTimetable, Param, dag, get_current_context, task

from scalr_prod.stages import path

ASSET = Asset("synthetic_target_events")
#: A day has the translator that is there: scalr_translator trains it.
STAGES = [stage.name for stage in path(last="late", without=("translator",)) if not stage.light]
_INSTANT = {"type": ["null", "string"], "format": "date-time"}


@dag(
    schedule=CronDataIntervalTimetable(os.environ.get("SCALR_EVENTS_CRON", "0 3 * * *"), timezone="UTC"),
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
        "config": Param(None, type=["null", "string"], description="scalr.toml; default: Variable scalr_config, SCALR_CONFIG"),
        "start": Param(None, **_INSTANT, description="window's first instant; default: the data interval's"),
        "end": Param(None, **_INSTANT, description="the instant after the window; default: the data interval's"),
        "mode": Param("causal", enum=["causal", "backfill"], description="what the translator may have learned from"),
    },
    tags=["scalr"],
    doc_md=__doc__,
)
def scalr_events() -> None:
    """Ingest, histories, generation, gate, publication."""

    def project() -> Any:
        from scalr_prod.orchestration import open_project, window_of

        context = get_current_context()
        start, end = window_of(context)
        window = {"mode": context["params"]["mode"], "start": start, "end": end, "as_of": end}
        return open_project(context, generation=window)

    @task
    def work(stage: str, run: dict[str, Any] | None = None, *, outlet_events: Any = None) -> dict[str, Any]:
        from scalr_prod.orchestration import config_of, do_stage

        job = do_stage(stage, project, run_id=run["run_id"] if run else None)
        if stage == "late":
            window = job.settings.generation
            outlet_events[ASSET].extra = {
                "run_id": job.run_id,
                "config": config_of(get_current_context()),
                **{name: getattr(window, name).isoformat() for name in ("start", "end", "as_of")},
            }
        report = job.reports.get(stage)
        return {"run_id": job.run_id, **(report.to_json() if report else {})}

    before: Any = None
    run: Any = None
    for stage in STAGES:
        done = work.override(task_id=stage, outlets=[ASSET] if stage == "late" else [])(stage, run)
        if before is not None:
            before >> done
        before = done
        run = done if stage == "generate" else run


scalr_events()
