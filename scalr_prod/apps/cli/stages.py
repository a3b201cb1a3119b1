# SPDX-License-Identifier: Apache-2.0
"""Commands that run the pipeline or one of its stages."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - Typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalr_prod.apps.cli.apps import app
from scalr_prod.apps.cli.context import DEFAULT_CONFIG, CommandContext, Config, Json, RunId, Version

if TYPE_CHECKING:
    from scalr_prod.apps.cli.context import CommandResult
    from scalr_prod.project import Project


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only show what would be done, for how many users and contexts, and about how long it would take."
    ),
]


@app.command()
def run(config: Config = DEFAULT_CONFIG, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Run the whole pipeline: from two logs to published synthetic events and a training set.

    Example: scalr run --dry-run
    """
    CommandContext(config, as_json).run_with_project(lambda project: project.dry_run() if dry_run else project.run())


@app.command()
def ingest(
    config: Config = DEFAULT_CONFIG,
    domain: Annotated[
        str | None, typer.Option(help="source, target, or sources.NAME, one of several source domains; default: all.")
    ] = None,
    replace: Annotated[
        datetime | None,
        typer.Option(
            metavar="SINCE",
            help="From SINCE (UTC) on, make the lake's events equal to those of the logs: rows that a log no longer has are removed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ingest all logs into the lake; ingesting the same input again adds nothing.

    Example: scalr ingest --domain target
    """
    if domain not in {None, "source", "target"} and not str(domain).startswith("sources."):
        raise typer.BadParameter("must be source, target or sources.NAME", param_hint="--domain")
    CommandContext(config, as_json, "ingest").run_with_project(lambda project: project.ingest(domain, replace=replace))


@app.command()
def histories(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Build point-in-time user histories and item statistics, and update the feature repository.

    Example: scalr histories
    """
    CommandContext(config, as_json, "histories").run_with_project(lambda project: project.histories())


@app.command()
def generate(config: Config = DEFAULT_CONFIG, version: Version = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Draw the window's synthetic events and stage them; the quality gate and publication follow.

    Example: scalr generate --version 3
    """
    CommandContext(config, as_json).run_with_project(
        lambda project: project.dry_run("generate") if dry_run else project.generate(version)
    )


@app.command()
def validate(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Run the quality gate on a generated run.

    Example: scalr validate run_00c51a83e2b7f904
    """
    CommandContext(config, as_json, "validate", run_id).run_with_project(lambda project: project.validate(run_id))


@app.command()
def publish(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Publish a validated run to the feature view, atomically.

    Example: scalr publish run_00c51a83e2b7f904
    """
    CommandContext(config, as_json, "publish", run_id).run_with_project(lambda project: project.publish(run_id))


@app.command()
def evaluate(
    config: Config = DEFAULT_CONFIG,
    cold_fraction: Annotated[
        float | None,
        typer.Option(help="Hide the target history of this share of users from everything.", min=0, max=0.99),
    ] = None,
    cutoff: Annotated[
        datetime | None, typer.Option(help="Test on the events from this time on (UTC); default: by [downstream].")
    ] = None,
    cutoffs: Annotated[
        int | None,
        typer.Option(
            help="Number of rolling cutoffs: the events after the first one are split into windows of equal size.",
            min=1,
            max=20,
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Evaluate this arm besides real, popular_lately and real+scalr, and no other; repeatable."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every arm, model, seed and validation window.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Stop after the quick verdict, which is for a run's default settings; write no policy."),
    ] = False,
    details: Annotated[bool, typer.Option("--details", help="Print the figures of every arm, segment and model.")] = False,
    as_json: Json = False,
) -> None:
    """Train models with and without synthetic events, with controls, and evaluate them on later events.

    Prints a quick verdict first. Results are cached: after an interruption, the same command continues.

    Example: scalr evaluate --cold-fraction 0.5 --cutoffs 4
    """
    if quick and (full or cutoffs or arm):
        raise typer.BadParameter("goes without --full, --cutoffs and --arm", param_hint="--quick")

    def work(project: Project) -> CommandResult:
        report = project.evaluate(cold_fraction=cold_fraction, cutoff=cutoff, cutoffs=cutoffs, arms=arm, full=full, quick=quick)
        return report.to_details() if details and not as_json else report

    CommandContext(config, as_json, "evaluate").run_with_project(work)


@app.command()
def status(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show which stages are done, their commands, and whether the project publishes. Stages from plan on are of the latest run.

    Models that learned from rows of erased users (scalr dataset register-model) are listed until they are retrained.

    Example: scalr status
    """

    def work(project: Project) -> dict[str, Any]:
        done = [stage.to_json() for stage in project.status()]
        state = project.publication_state().to_json()
        due = [model.to_json() for model in project.models_to_retrain()]
        return {
            "stages": done,
            "publication": {name: state[name] for name in ("publication", "since", "rows", "waiting", "canary")},
        } | ({"models_to_retrain": due} if due or as_json else {})

    CommandContext(config, as_json, "status").run_with_project(work)
