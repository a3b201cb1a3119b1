# SPDX-License-Identifier: Apache-2.0
"""Commands for runs and publications: inspect, resume, roll back, explain, maintain, forget."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path  # noqa: TC003 - Typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalr_prod.apps.cli.apps import app, experiment_app, publication_app, runs_app
from scalr_prod.apps.cli.context import (
    DEFAULT_CONFIG,
    CommandContext,
    Config,
    Json,
    OptionalRunId,
    RunId,
    exit_with_error,
)
from scalr_prod.errors import ForgettingError

if TYPE_CHECKING:
    from scalr_prod.project import Project


@runs_app.command("list")
def runs_list(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List all runs, newest first, with their windows, published rows, and rows now in the feature view.

    Example: scalr runs list
    """

    def work(project: Project) -> dict[str, Any]:
        published = {attempt.run_id: attempt.rows for attempt in project.ledger.publications.find()}
        held = project.rows_in_view()
        rows = {run: {"rows": number, "in_view": held.get(run, 0)} for run, number in published.items()}
        runs = [found.to_json() | rows.get(found.run_id, {"rows": None, "in_view": None}) for found in project.runs()]
        return {"runs": runs if as_json else [_summary_row(found) for found in runs]}

    CommandContext(config, as_json, "runs list").run_with_project(work)


@runs_app.command("show")
def runs_show(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show a run: window, state, partitions, publications, and every change with its time and cause.

    Example: scalr runs show run_00c51a83e2b7f904
    """

    def work(project: Project) -> dict[str, Any]:
        ledger = project.ledger
        return ledger.runs.get(run_id).to_json() | {
            "partitions": [part.to_json() for part in ledger.runs.partitions(run_id)],
            "publications": [attempt.to_json() for attempt in ledger.publications.find(run_id)],
            "history": [change.to_json() for change in ledger.changes.find(run_id)],
        }

    CommandContext(config, as_json, "runs show", run_id).run_with_project(work)


@runs_app.command("resume")
def runs_resume(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Resume a run where it stopped. A run that was rolled back, or whose rows another run replaced, is published again.

    Example: scalr runs resume run_00c51a83e2b7f904
    """
    CommandContext(config, as_json, "runs resume", run_id).run_with_project(lambda project: project.resume(run_id))


@runs_app.command("rollback")
def runs_rollback(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Remove a published run from the feature view, and restore the rows that it replaced.

    Example: scalr runs rollback run_00c51a83e2b7f904
    """
    CommandContext(config, as_json, "runs rollback", run_id).run_with_project(lambda project: project.rollback(run_id))


@publication_app.command("disable")
def publication_disable(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Empty the feature view in one commit; nothing is published until publication is enabled again.

    Example: scalr publication disable
    """
    CommandContext(config, as_json, "publication disable").run_with_project(lambda project: project.disable_publication())


@publication_app.command("enable")
def publication_enable(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Restore the feature view as it was before, byte for byte, in one commit.

    Example: scalr publication enable
    """
    CommandContext(config, as_json, "publication enable").run_with_project(lambda project: project.enable_publication())


_Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Run ids; default: all runs in a canary.")]


@publication_app.command("widen")
def publication_widen(
    runs: _Runs = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Share of users; default: all users.")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Publish runs in a canary ([experiment] canary) for more users; one commit per run.

    Example: scalr publication widen
    """
    CommandContext(config, as_json, "publication widen").run_with_project(
        lambda project: project.widen_publication(*(runs or ()), share=share)
    )


@publication_app.command("withdraw")
def publication_withdraw(runs: _Runs = None, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Withdraw what is published for a share of users, and restore what it replaced; one commit per run.

    Example: scalr publication withdraw
    """
    CommandContext(config, as_json, "publication withdraw").run_with_project(
        lambda project: project.withdraw_publication(*(runs or ()))
    )


@app.command("explain")
def explain_command(
    event_id: Annotated[str, typer.Argument(help="An event_id of synthetic_target_events.")],
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Explain a synthetic event: its source event, the history at that time, and the output of each estimator.

    Example: scalr explain 0f343b0931126a20f133d67c2b018a3b
    """
    CommandContext(config, as_json, "explain").run_with_project(lambda project: project.explain(event_id))


@experiment_app.callback()
def experiment_command(
    ctx: typer.Context,
    outcomes: Annotated[
        str | None,
        typer.Option(help="A table of user_id, value and, if there is one, pre_value; users without an outcome with 0."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Time until which the outcomes were counted (UTC); default: now.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every user's side (treated, held_out or canary) to this .parquet or .csv file.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show who is held out by [experiment]; with outcomes, the effect of synthetic events, overall and by segment of users.

    Intervals are 95 % and always valid: they may be read every day (CUPED with pre_value).

    Example: scalr experiment --outcomes revenue.csv --json
    """
    if ctx.invoked_subcommand is None:
        CommandContext(config, as_json, "experiment").run_with_project(
            lambda project: project.experiment(outcomes=outcomes, until=until, out=out)
        )


@experiment_app.command("power")
def experiment_power(
    effect: Annotated[float, typer.Option(min=0, help="The effect to find, in per cent of the mean.")] = 5.0,
    holdout: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of held-out users; default: [experiment] holdout.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Estimate the minimum detectable effect (MDE) on a user's number of target events, and the days that it takes.

    Example: scalr experiment power --effect 5
    """
    CommandContext(config, as_json, "experiment power").run_with_project(
        lambda project: project.experiment_power(effect_pct=effect, holdout=holdout)
    )


@app.command()
def report(
    run_id: OptionalRunId = None,
    config: Config = DEFAULT_CONFIG,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page's path.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report page: inputs and outputs, example translations, the quality gate, and provenance.

    Example: scalr report
    """
    CommandContext(config, as_json, "report", run_id).run_with_project(lambda project: project.report(run_id, output=output))


@app.command("privacy")
def privacy_command(
    run_id: OptionalRunId = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Measure what a run's rows reveal: whose events trained the translator, whose history they follow, who is singled out.

    Example: scalr privacy
    """
    CommandContext(config, as_json, "privacy", run_id).run_with_project(lambda project: project.privacy(run_id))


@app.command()
def ui(
    config: Config = DEFAULT_CONFIG,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0: any that is free; default: by [ui] port.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a local page: runs and reports, published events, and the translation of any user. Ctrl-C stops it.

    Example: scalr ui --port 0
    """

    def started(address: str) -> None:
        print(json.dumps({"url": address}) if as_json else f"{address} is open until Ctrl-C.", flush=True)

    def work(project: Project) -> None:
        project.ui(port=port, started=started)
        if not as_json:
            print("The page is closed; the project is as it was.")

    CommandContext(config, as_json).run_with_project(work)


@app.command("maintain")
def maintain_command(
    config: Config = DEFAULT_CONFIG,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what [retention] no longer keeps: staged partitions, old training sets and translators, unused table files.

    Folders that killed commands left in the folder of temporary files are removed too, once they are a day old. Source columns that an
    earlier version of this package wrote to synthetic_target_events are moved to synthetic_event_provenance.

    Example: scalr maintain --dry-run
    """
    CommandContext(config, as_json, "maintain").run_with_project(lambda project: project.maintain(dry_run=dry_run))


@app.command("forget")
def forget_command(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="USER...", help="User ids, as in the lake: with a map of users, those of the target domain."),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    items: Annotated[bool, typer.Option("--items", help="The ids are item ids of the target domain, not user ids.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="A text file with one id per line; or .jsonl: a JSON string or integer per line, for ids that contain newlines.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Erase users or items from tables, runs, training sets, online store and reports; later logs and runs leave them out.

    Example: scalr forget --file users.txt
    """
    try:
        listed = _read_ids(file) if file else []
    except ForgettingError as error:
        exit_with_error(error, as_json=as_json)
    selected = [*(text for text in ids or () if text.strip()), *listed]
    if not selected:
        what = "item" if items else "user"
        raise typer.BadParameter(f"name at least one {what}, or a --file that does", param_hint="USER")
    CommandContext(config, as_json, "forget").run_with_project(
        lambda project: (project.forget_items if items else project.forget)(selected)
    )


def _read_ids(file: Path) -> list[str]:
    """Return the ids in a file: one per line, or JSON lines where its name ends in ``.jsonl``.

    Raises:
        ForgettingError: It cannot be read, or a JSON line is neither a string nor an integer.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ForgettingError(
            f"cannot be read: {error}", where=str(file), next_step="write it as UTF-8, with an id in each line"
        ) from error
    texts = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    if file.suffix.lower() != ".jsonl":
        return list(texts.values())
    ids = []
    for number, line in texts.items():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ForgettingError(
                "contains no JSON string or integer",
                where=f"{file}, line {number}",
                next_step='write one id per line, such as "user-17"',
            )
        ids.append(str(value))
    return ids


def _summary_row(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run as a row of the list."""
    spec = run["spec"]
    window = {name: str(spec[name]) for name in ("start", "end")}
    facts = {name: run[name] for name in ("run_id", "state")} | window
    return facts | {
        "mode": spec["mode"],
        "translator": spec["translator_version"],
        "rows": run["rows"],
        "in_view": run["in_view"],
        "updated": datetime.fromisoformat(run["updated_at"]).isoformat(timespec="seconds"),
    }
