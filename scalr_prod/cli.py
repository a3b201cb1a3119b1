"""The `scalr` command: one thin door before each stage, and the only room that prints.

Exit codes: 0 done, 1 a clear `ScalrError`, 2 wrong usage, 3 the quality gate said no, 130 and 143 stopped by SIGINT or SIGTERM.
With ``--json`` one JSON object goes to stdout; logs and progress bars always go to stderr.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime  # noqa: TC003 - Typer reads it at run time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from scalr_prod.errors import QualityGateFailed, ScalrError
from scalr_prod.logs import about, log_error, start_logging
from scalr_prod.rendering import as_lines
from scalr_prod.serving.virtualenvs import Torch  # noqa: TC001 - Typer reads it at run time
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.interrupts import Interrupted
    from scalr_prod.project import Project
    from scalr_prod.settings import Settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="scalr",
    help="Turn users' source-domain events into validated synthetic target-domain events, published as a Feast feature view.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
translator_app = typer.Typer(help="Train, evaluate and serve the translator.", no_args_is_help=True)
serving_app = typer.Typer(help="The environment that a local Triton runs in.", no_args_is_help=True)
triton_app = typer.Typer(help="Start and stop the local Triton server.", no_args_is_help=True)
dataset_app = typer.Typer(help="Build training sets.", no_args_is_help=True)
runs_app = typer.Typer(help="Look at runs, go on with one, take one out.", no_args_is_help=True)
quality_app = typer.Typer(help="Check training sets, of this project or anybody's.", no_args_is_help=True)
config_app = typer.Typer(help="The settings that are in force.", no_args_is_help=True)
app.add_typer(translator_app, name="translator")
app.add_typer(serving_app, name="serving")
app.add_typer(triton_app, name="triton")
app.add_typer(dataset_app, name="dataset")
app.add_typer(runs_app, name="runs")
app.add_typer(quality_app, name="quality")
app.add_typer(config_app, name="config")

DEFAULT_CONFIG = Path("scalr.toml")

Config = Annotated[Path, typer.Option("--config", "-c", help="The project's settings.")]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", "-c", help="The project's settings; default: scalr.toml, where it is there.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Version = Annotated[int | None, typer.Option("--version", help="Translator version; default: the latest trained.")]
RunId = Annotated[str, typer.Argument(help="A run's id, as `scalr runs list` shows it.")]


def main() -> None:
    """Entry point of the `scalr` command."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, warnings only.")] = False,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Log lines on stderr; default: by [logging] format.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Default: by [logging] level.")
    ] = None,
) -> None:
    if show_version:
        print(__version__)
        raise typer.Exit
    named = {"format": log_format, "level": log_level or ("warning" if quiet else None)}
    _Door.logging = {name: value for name, value in named.items() if value}
    start_logging(log_format or "text", _Door.logging.get("level", "info"))
    _Door.progress = not quiet and sys.stderr.isatty() and log_format != "json"


@app.command()
def init(
    source: Annotated[
        str | None,
        typer.Option(help="Log of the domain with many events: a path, glob, folder or URL; or, with a query, a SQL URL."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Log of the domain where events are wanted, likewise.")] = None,
    items: Annotated[str | None, typer.Option(help="A file of items with their titles, of both domains.")] = None,
    source_items: Annotated[str | None, typer.Option(help="A file of items of the source alone.")] = None,
    target_items: Annotated[str | None, typer.Option(help="A file of items of the target alone.")] = None,
    source_query: Annotated[str | None, typer.Option(help="SQL; --source is then a SQLAlchemy URL.")] = None,
    target_query: Annotated[str | None, typer.Option(help="SQL; --target is then a SQLAlchemy URL.")] = None,
    source_name: Annotated[str | None, typer.Option(help="Name of the domain; default: from the file's name.")] = None,
    target_name: Annotated[str | None, typer.Option(help="Name of the domain; default: from the file's name.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Which column is what, as PLACE.ROLE=COLUMN: source.user=customer; repeat for more."),
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone of times that name none; default: UTC.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="The file to write.")] = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: write what is understood.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Look at two logs, say how they are understood, and write a scalr.toml with comments.

    Example: scalr init --yes --source ratings.csv --target orders.jsonl --timezone Europe/Paris
    """
    from scalr_prod.onboarding import Asked, Beginning, check_free, corrected, understand, until_right

    ask = not yes and not as_json and sys.stdin.isatty()
    if not ask and not (yes or as_json):
        raise typer.BadParameter("where there is no terminal, nothing can be asked: give --yes", param_hint="--yes")
    if not ask and (source is None or target is None):
        raise typer.BadParameter("name both logs", param_hint="--source, --target")
    item_files = {"source": source_items or items, "target": target_items or items}
    names = {"source": source_name, "target": target_name}

    def work(_: Any, __: bool) -> Any:
        check_free(config, force=force)
        logs = [
            Asked(place, location or typer.prompt(f"Log of the {place} domain"), query, timezone=timezone)
            for place, location, query in (("source", source, source_query), ("target", target, target_query))
        ]
        logs = corrected(logs, column or [])
        extra = {"items": _given(item_files), "names": _given(names)}
        if ask:
            found = until_right(
                config, logs, **extra, show=_show_guess, ask=lambda text: typer.prompt(text, default="", show_default=False)
            )
        else:
            found = understand(config, logs, **extra)
        found.write(force=force)
        return found if not ask else {"settings": str(config), "next": f"scalr ingest --config {config}"}

    def _show_guess(found: Any) -> None:
        print("\n".join(as_lines(found.for_people())) if isinstance(found, Beginning) else f"error: {found}")

    _Door(None, as_json).show(work)


@app.command()
def run(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Do everything: from two logs to published synthetic events and a training set."""
    _Door(config, as_json).open(lambda project: project.run())


@app.command()
def ingest(
    config: Config = DEFAULT_CONFIG,
    domain: Annotated[
        str | None, typer.Option(help="source, target, or sources.NAME, one of several source domains; default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read all logs into the lake; reading the same input twice adds nothing."""
    if domain not in {None, "source", "target"} and not str(domain).startswith("sources."):
        raise typer.BadParameter("must be source, target or sources.NAME", param_hint="--domain")
    _Door(config, as_json, "ingest").open(lambda project: project.ingest(domain))


@app.command()
def histories(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Build users' histories and items' statistics as of every event, and bring the feature repository up to date."""
    _Door(config, as_json, "histories").open(lambda project: project.histories())


@translator_app.command("train")
def translator_train(
    config: Config = DEFAULT_CONFIG,
    trained_until: Annotated[
        datetime | None, typer.Option(help="Read nothing from this time on (UTC); default: by [generation] mode.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a translator version; the same inputs give the version that is there already."""
    _Door(config, as_json, "translator train").open(lambda project: project.train(_utc(trained_until)))


@translator_app.command("evaluate")
def translator_evaluate(config: Config = DEFAULT_CONFIG, version: Version = None, as_json: Json = False) -> None:
    """Ranking, likelihood and calibration of each estimator and of their mixture, on the latest slice of time."""
    _Door(config, as_json, "translator evaluate").open(lambda project: project.evaluate_translator(version))


@translator_app.command("promote")
def translator_promote(config: Config = DEFAULT_CONFIG, version: Version = None, as_json: Json = False) -> None:
    """Serve a version: load it, check that it answers, switch; the former one stays at hand for rollback."""
    _Door(config, as_json, "translator promote").open(lambda project: project.promote(version))


@translator_app.command("rollback")
def translator_rollback(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Serve the formerly promoted version again."""
    _Door(config, as_json, "translator rollback").open(lambda project: project.rollback_translator())


@translator_app.command("list")
def translator_list(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """All trained versions, and which one is served."""

    def work(project: Project) -> dict[str, Any]:
        versions = [version.to_json() for version in project.translators()]
        return {"served": project.ledger.promoted_version(), "versions": versions}

    _Door(config, as_json, "translator list").open(work)


@serving_app.command("install")
def serving_install(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A project whose [serving] environment to make; default: scalr.toml.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to make it; default: .venv-triton.")] = None,
    torch: Annotated[Torch, typer.Option(help="Which build of torch; auto: the CPU one where there is no GPU.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Make the environment that a local Triton runs in, or bring it up to date."""
    from scalr_prod.serving.installer import install_serving, plan_serving

    def work(settings: Settings | None, _: bool) -> Any:
        return plan_serving(settings, folder=folder) if dry_run else install_serving(settings, folder=folder, torch=torch)

    _Door(_config_if_there(config), as_json, "serving install").show(work)


@triton_app.command("start")
def triton_start(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Start the local Triton, or find the one that runs."""
    from scalr_prod.serving import start_triton

    _Door(config, as_json, "triton start").show(lambda settings, _: start_triton(settings))


@triton_app.command("stop")
def triton_stop(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Stop the local Triton."""
    from scalr_prod.serving import stop_triton

    _Door(config, as_json, "triton stop").show(lambda settings, _: {"stopped": stop_triton(settings)})


@triton_app.command("status")
def triton_status_command(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Whether Triton answers, and what it serves."""
    from scalr_prod.serving import triton_status

    _Door(config, as_json, "triton status").show(lambda settings, _: triton_status(settings))


@app.command()
def generate(config: Config = DEFAULT_CONFIG, version: Version = None, as_json: Json = False) -> None:
    """Translate the window's source events into staged candidates."""
    _Door(config, as_json).open(lambda project: project.generate(version))


@app.command()
def validate(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Put a generated run before the quality gate."""
    _Door(config, as_json, "validate", run_id).open(lambda project: project.validate(run_id))


@app.command()
def publish(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Publish a validated run to the feature view, all of it or nothing."""
    _Door(config, as_json, "publish", run_id).open(lambda project: project.publish(run_id))


@dataset_app.command("build")
def dataset_build(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Build a training set of real and synthetic events with point-in-time features."""
    _Door(config, as_json, "dataset build").open(lambda project: project.build_training_set())


@quality_app.command("check")
def quality_check(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="Parquet file or folder, Delta table, URL, or name of a data set saved in Feast; default: the latest training set."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A suite's file or name; default: [training_set] suite, else training, which is built in."),
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(help="Folder of the data docs; default: the project's home, or scalr_quality without one.")
    ] = None,
    config: OptionalConfig = None,
    as_json: Json = False,
) -> None:
    """Check a data set before training: exit code 0 passed, 3 refused, 1 it could not be checked.

    Example: scalr quality check rows.parquet --suite checks.yaml --json
    """
    from scalr_prod.quality import check_dataset

    def work(settings: Settings | None, _: bool) -> Any:
        if dataset is None:
            if settings is None:
                raise typer.BadParameter("without a scalr.toml, name the data set", param_hint="DATASET")
            from scalr_prod.training_set import TrainingSet

            chosen = str(TrainingSet.open(settings.home / "datasets" / settings.training_set.name).path)
        named = suite or (settings.training_set.suite if settings else None) or "training"
        return check_dataset(dataset or chosen, suite=named, settings=settings, folder=docs)

    if not _Door(_config_if_there(config), as_json, "quality check").show(work).passed:
        raise typer.Exit(QualityGateFailed.exit_code)


@quality_app.command("init-suite")
def quality_init_suite(
    file: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("quality/training.yaml"),
    user: Annotated[str, typer.Option(help="Name of the column.")] = "user_id",
    item: Annotated[str, typer.Option(help="Name of the column.")] = "item_id",
    timestamp: Annotated[str, typer.Option(help="Name of the column of the label's time.")] = "event_timestamp",
    label: Annotated[str, typer.Option(help="Name of the column.")] = "label",
    weight: Annotated[str, typer.Option(help="Name of the column; skipped where it is not there.")] = "weight",
    synthetic: Annotated[str, typer.Option(help="Name of the column that marks synthetic rows, likewise.")] = "is_synthetic",
    as_json: Json = False,
) -> None:
    """Write a suite of checks, with comments, for editing; a file that is there stays as it is.

    Example: scalr quality init-suite checks.yaml --timestamp ts
    """
    from scalr_prod.quality.suites import write_suite

    columns = {
        "user": user,
        "item": item,
        "timestamp": timestamp,
        "label": label,
        "weight": weight,
        "synthetic": synthetic,
    }
    _Door(None, as_json).show(lambda _, __: {"suite": write_suite(file, columns)})


@app.command()
def evaluate(
    config: Config = DEFAULT_CONFIG,
    cold_fraction: Annotated[
        float | None,
        typer.Option(help="Hide the target history of this share of users from everything.", min=0, max=0.99),
    ] = None,
    cutoff: Annotated[datetime | None, typer.Option(help="Test from then on (UTC); default: by [downstream].")] = None,
    cutoffs: Annotated[
        int | None, typer.Option(help="Rolling cutoffs: what comes after the first, in so many equal parts.", min=1, max=20)
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm, and those compared; repeat for more.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every arm, model, seed and validation window.")] = False,
    as_json: Json = False,
) -> None:
    """Train models with and without synthetic events, with controls, and judge them on what came later."""
    _Door(config, as_json, "evaluate").open(
        lambda project: project.evaluate(cold_fraction=cold_fraction, cutoff=_utc(cutoff), cutoffs=cutoffs, arms=arm, full=full)
    )


@app.command()
def status(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Which stages are done, and the command that does each; run and onwards: of the latest run."""
    _Door(config, as_json, "status").open(lambda project: {"stages": [stage.to_json() for stage in project.status()]})


@app.command("maintain")
def maintain_command(
    config: Config = DEFAULT_CONFIG,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what [retention] no longer keeps: staged parts, old training sets and translators, unused table files."""
    _Door(config, as_json, "maintain").open(lambda project: project.maintain(dry_run=dry_run))


@runs_app.command("list")
def runs_list(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """All runs, the newest first, with their windows and the rows that they published."""

    def work(project: Project) -> dict[str, Any]:
        published = {attempt.run_id: attempt.rows for attempt in project.ledger.publications()}
        runs = [found.to_json() | {"rows": published.get(found.run_id)} for found in project.runs()]
        return {"runs": runs if as_json else [_in_brief(found) for found in runs]}

    _Door(config, as_json, "runs list").open(work)


@runs_app.command("show")
def runs_show(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """One run: its window, its state, its parts and publications, and every change with its time and cause."""

    def work(project: Project) -> dict[str, Any]:
        ledger = project.ledger
        return ledger.run(run_id).to_json() | {
            "partitions": [part.to_json() for part in ledger.partitions(run_id)],
            "publications": [attempt.to_json() for attempt in ledger.publications(run_id)],
            "history": [change.to_json() for change in ledger.history(run_id)],
        }

    _Door(config, as_json, "runs show", run_id).open(work)


@runs_app.command("resume")
def runs_resume(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Go on with a run from where it stopped."""
    _Door(config, as_json, "runs resume", run_id).open(lambda project: project.resume(run_id))


@runs_app.command("rollback")
def runs_rollback(run_id: RunId, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Take a published run out of the feature view."""
    _Door(config, as_json, "runs rollback", run_id).open(lambda project: project.rollback(run_id))


@config_app.command("show")
def config_show(
    config: Config = DEFAULT_CONFIG,
    named: Annotated[bool, typer.Option("--named", help="Leave out what is at its default.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting in force, and where it came from: default, file, environment or override. Secrets are not shown.

    Example: SCALR_GENERATION__MODE=causal scalr config show --named
    """
    from scalr_prod.explanation import effective

    def work(settings: Any, _: bool) -> Any:
        found = [one.to_json() for one in effective(settings) if not named or one.source != "default"]
        return {
            "config": str(config),
            "keys": found if as_json else [{k: one[k] for k in ("key", "value", "source")} for one in found],
        }

    _Door(config, as_json, "config show").show(work)


@app.command()
def report(
    run_id: Annotated[str | None, typer.Argument(help="A run's id; default: the run that was changed last.")] = None,
    config: Config = DEFAULT_CONFIG,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page's path.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's page: what went in and out, translations to read, the gate, and where it all comes from."""
    _Door(config, as_json, "report", run_id).open(lambda project: project.report(run_id, output=output))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also check this project's own places.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also start a Triton server and ask it.")] = False,
    as_json: Json = False,
) -> None:
    """Check each part that the pipeline needs, and say what to do about those that are missing."""
    from scalr_prod.doctor import examine

    try:
        checks = examine(config, deep=deep)
    except ScalrError as error:
        _fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"ok": all(check.ok for check in checks), "checks": [check.to_json() for check in checks]}))
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}")
            if not check.ok and check.next_step:
                print(f"      next: {check.next_step}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


class _Door:
    """What every command shares: read the settings, do the work, print the report or the error."""

    progress = False
    #: The options that go before ``[logging]``.
    logging: ClassVar[dict[str, str]] = {}

    def __init__(self, config: Path | None, as_json: bool, stage: str | None = None, run_id: str | None = None) -> None:
        self.config = config
        self.as_json = as_json
        self.stage = stage
        self.run_id = run_id

    def open(self, work: Callable[[Project], Any]) -> None:
        """Show what comes of the project."""
        from scalr_prod.project import Project

        def opened(settings: Any, progress: bool) -> Any:
            with Project(settings, progress=progress) as project:
                return work(project)

        self.show(opened)

    def show(self, work: Callable[[Any, bool], Any]) -> Any:
        """Show what comes of the settings, or of none; gives it back."""
        from contextlib import ExitStack

        from scalr_prod.interrupts import Interrupted, ending_in_order
        from scalr_prod.progress import lines_every
        from scalr_prod.settings import load_settings
        from scalr_prod.stages import at_stage

        with ExitStack() as known:
            try:
                settings = self._begun(load_settings(self.config)) if self.config is not None else None
                if settings is not None:
                    known.enter_context(about(project=settings.project_name))
                known.enter_context(lines_every(0 if self.progress or settings is None else settings.logging.heartbeat_s))
                with ending_in_order(), at_stage(self.stage, self.run_id):
                    report = work(settings, self.progress)
            except ScalrError as error:
                _fail(error.at(run_id=self.run_id), as_json=self.as_json)
            except Interrupted as stopped:
                _fail(stopped.at(stage=self.stage, run_id=self.run_id), as_json=self.as_json)
        facts = report if isinstance(report, dict) else report.to_json()
        if self.as_json:
            print(json.dumps(facts, default=str))
        else:
            shown = getattr(report, "for_people", None)
            print("\n".join(as_lines(shown() if shown else facts)))
        return report

    def _begun(self, settings: Settings) -> Settings:
        """The settings as the options change them; log lines are theirs from here on."""
        options = settings.logging.model_copy(update=self.logging)
        start_logging(options.format, options.level)
        self.progress = self.progress and options.format == "text"
        return settings.model_copy(update={"logging": options})


def _given(options: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _config_if_there(config: Path | None) -> Path | None:
    return DEFAULT_CONFIG if config is None and DEFAULT_CONFIG.is_file() else config


def _fail(error: ScalrError | Interrupted, *, as_json: bool) -> Any:
    if as_json:
        print(json.dumps(error.to_json()))
    log_error(f"error: {error}" if isinstance(error, ScalrError) else str(error), error.to_json())
    raise typer.Exit(error.exit_code)


def _in_brief(run: dict[str, Any]) -> dict[str, Any]:
    """A run as a line of a table."""
    spec = run["spec"]
    window = {name: str(spec[name])[:19] for name in ("start", "end")}
    facts = {name: run[name] for name in ("run_id", "state")} | window
    return facts | {
        "mode": spec["mode"],
        "translator": spec["translator_version"],
        "rows": run["rows"],
        "updated": run["updated_at"][:19],
    }


def _utc(moment: datetime | None) -> datetime | None:
    from datetime import UTC

    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
