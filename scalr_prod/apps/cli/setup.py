# SPDX-License-Identifier: Apache-2.0
"""Commands for setting up a project: init, scout, doctor and config show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalr_prod.apps.cli.apps import app, config_app
from scalr_prod.apps.cli.context import DEFAULT_CONFIG, CommandContext, CommandResult, Config, Json, exit_with_error
from scalr_prod.core.console import format_lines
from scalr_prod.errors import QualityGateFailed, ScalrError

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.errors import InputError, SettingsError


@app.command()
def init(
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Log of the domain with many events: a path, glob, folder, URL or SQL URL; for several such domains, "
            "repeat it as NAME=LOG."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Log of the domain that needs events: a path, glob, folder, URL or SQL URL.")
    ] = None,
    items: Annotated[str | None, typer.Option(help="Item file with titles, for all domains.")] = None,
    source_items: Annotated[
        list[str] | None, typer.Option(help="Item file of the source only; of one of several sources: NAME=FILE.")
    ] = None,
    target_items: Annotated[str | None, typer.Option(help="Item file of the target only.")] = None,
    source_query: Annotated[
        list[str] | None,
        typer.Option(help="SQL that gives the log; --source is then a SQL URL. Of one of several sources: NAME=SQL."),
    ] = None,
    target_query: Annotated[str | None, typer.Option(help="SQL that gives the log; --target is then a SQL URL.")] = None,
    source_name: Annotated[str | None, typer.Option(help="Name of the domain; default: from the file's name.")] = None,
    target_name: Annotated[str | None, typer.Option(help="Name of the domain; default: from the file's name.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Which column is what, as DOMAIN.ROLE=COLUMN: source.user=customer, of one of several sources "
            "sources.NAME.user=customer; or source.timezone=ZONE; repeat for more."
        ),
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone of times that name none; default: UTC.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="The file to write.")] = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the guess without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Inspect the logs of two or more domains, show how they are read, and write a commented scalr.toml.

    Example: scalr init --yes --source ratings.csv --target orders.jsonl --timezone Europe/Paris
    """
    from scalr_prod.apps.onboarding import (
        InitPlan,
        LogRequest,
        apply_corrections,
        confirm_interactively,
        ensure_not_overwriting,
        plan_init,
    )

    interactive = not yes and not as_json and sys.stdin.isatty()
    if not interactive and not (yes or as_json):
        raise typer.BadParameter("cannot ask without a terminal: give --yes", param_hint="--yes")
    if not interactive and (not source or target is None):
        raise typer.BadParameter("name both logs", param_hint="--source, --target")
    several = len(source or []) > 1
    if several and source_name is not None:
        raise typer.BadParameter("each of several sources is named by --source NAME=LOG", param_hint="--source-name")
    locations: dict[str, str | None] = {
        **(_by_place(source, "--source", several=several) or {"source": None}),
        "target": target,
    }
    queries = {**_by_place(source_query, "--source-query", several=several), "target": target_query}
    item_files = {
        **dict.fromkeys(locations, items),
        **_by_place(source_items, "--source-items", several=several),
        "target": target_items or items,
    }
    if unknown := [place for place in (*queries, *item_files) if place not in locations]:
        raise typer.BadParameter(f"no --source is named {unknown[0].removeprefix('sources.')}")
    names = {"source": source_name, "target": target_name}

    def work(_: Settings | None) -> CommandResult:
        ensure_not_overwriting(config, force=force)
        logs = [
            LogRequest(place, location or typer.prompt(f"Log of the {place} domain"), queries.get(place), timezone=timezone)
            for place, location in locations.items()
        ]
        logs = apply_corrections(logs, column or [])
        if interactive:
            plan = confirm_interactively(
                config,
                logs,
                items=_specified(item_files),
                names=_specified(names),
                show=_show_guess,
                ask=lambda text: typer.prompt(text, default="", show_default=False),
            )
        else:
            plan = plan_init(config, logs, items=_specified(item_files), names=_specified(names))
        plan.write(force=force)
        return plan if not interactive else {"settings": str(config), "next": f"scalr run --config {config}"}

    def _show_guess(guess: InitPlan | InputError | SettingsError) -> None:
        print("\n".join(format_lines(guess.to_summary())) if isinstance(guess, InitPlan) else f"error: {guess}")

    CommandContext(None, as_json).run(work)


@app.command()
def scout(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of logs: each file, folder of files or table is one domain's log.")
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="A domain's log as NAME=LOG: a path, glob, folder, URL or SQL URL; repeat for each domain."),
    ] = None,
    log_query: Annotated[
        list[str] | None, typer.Option(help="SQL that gives a log, as NAME=SQL; its --log is then a SQL URL.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Which column is what, as logs.NAME.ROLE=COLUMN, such as logs.kitchen.user=customer; repeat for more."
        ),
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone of times that name none; default: UTC.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="The file to write for the best pair.")] = DEFAULT_CONFIG,
    page: Annotated[Path, typer.Option(help="The page to write, with a heat map of all pairs.")] = Path("scout.html"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing scalr.toml.")] = False,
    as_json: Json = False,
) -> None:
    """Find out which of several domains to join: measure every pair, rank them, and write a scalr.toml for the best one.

    Example: scalr scout logs/
    """
    from scalr_prod.apps.onboarding import (
        FolderLogs,
        LogRequest,
        ScoutOutcome,
        apply_corrections,
        ensure_not_overwriting,
        find_logs,
        plan_scout,
    )

    if (folder is None) == (not log):
        raise typer.BadParameter("name a folder of logs, or each log: --log NAME=LOG", param_hint="FOLDER, --log")
    named = _by_name(log, "--log")
    queries = _by_name(log_query, "--log-query")
    if unknown := [name for name in queries if name not in named]:
        raise typer.BadParameter(f"no --log is named {unknown[0]}", param_hint="--log-query")

    def work(_: Settings | None) -> ScoutOutcome:
        from scalr_prod.evaluation import scout as measure
        from scalr_prod.reporting import write_scout_page

        ensure_not_overwriting(config, force=force)
        found = FolderLogs(named, ()) if folder is None else find_logs(folder)
        requests = [
            LogRequest(f"logs.{name}", location, queries.get(name), timezone=timezone)
            for name, location in found.locations.items()
        ]
        plan = plan_scout(apply_corrections(requests, column or []))
        report = measure(plan.settings, progress=CommandContext.show_progress)
        write_scout_page(page, report)
        written = plan.plan_config(config, report)
        if written is not None:
            written.write(force=force)
        left_out = [f"{name} was left out: its name does not tell that it is a log (--log NAME=LOG)" for name in found.left_out]
        return ScoutOutcome(report, (*plan.notes, *left_out), None if written is None else config, page)

    if CommandContext(None, as_json).run(work).report.best is None:
        raise typer.Exit(QualityGateFailed.exit_code)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also check this project's stores and servers.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start a Triton server and send it a request.")] = False,
    as_json: Json = False,
) -> None:
    """Check everything that the pipeline needs, and say how to fix what is missing.

    Example: scalr doctor
    """
    from scalr_prod.apps.doctor import run_checks

    try:
        checks = run_checks(config, deep=deep)
    except ScalrError as error:
        exit_with_error(error, as_json=as_json)
    if as_json:
        print(json.dumps({"ok": all(check.ok for check in checks), "checks": [check.to_json() for check in checks]}))
    else:
        for check in checks:
            verdict = "FAIL" if not check.ok else "warn" if check.next_step else "ok  "
            print(f"{verdict}  {check.name}: {check.found}")
            if check.next_step:
                print(f"      next: {check.next_step}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(
    config: Config = DEFAULT_CONFIG,
    named: Annotated[bool, typer.Option("--named", help="Show only settings that are not at their default.")] = False,
    as_json: Json = False,
) -> None:
    """Show every effective setting and its source: default, file, environment or override. Secrets are hidden.

    Example: SCALR_GENERATION__MODE=causal scalr config show --named
    """
    from scalr_prod.config import effective_settings

    def work(settings: Settings) -> CommandResult:
        rows = [setting.to_json() for setting in effective_settings(settings) if not named or setting.source != "default"]
        return {
            "config": str(config),
            "keys": rows if as_json else [{key: row[key] for key in ("key", "value", "source")} for row in rows],
        }

    CommandContext(config, as_json, "config show").run_with_settings(work)


def _by_place(values: list[str] | None, option: str, *, several: bool) -> dict[str, str]:
    """Return the values of a source's option by place; of several sources, each value is ``NAME=VALUE``."""
    if not several:
        if len(values or []) > 1:
            raise typer.BadParameter("there is one source: give it once", param_hint=option)
        return {"source": values[0]} if values else {}
    return {f"sources.{name}": value for name, value in _by_name(values, option, "of several sources, ").items()}


def _by_name(values: list[str] | None, option: str, of: str = "") -> dict[str, str]:
    """Return the values of an option by name; each is ``NAME=VALUE``."""
    found: dict[str, str] = {}
    for value in values or []:
        name, _, rest = value.partition("=")
        if not (name.isidentifier() and name.isascii() and rest):
            raise typer.BadParameter(f"{value}: {of}write NAME=VALUE; a name has letters, digits and '_'", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        found[name] = rest
    return found


def _specified(options: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}
