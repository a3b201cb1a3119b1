# SPDX-License-Identifier: Apache-2.0
"""Shared by all commands: options, and a context that loads settings, runs the command and prints its result."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn, Protocol, TypeAlias, TypeVar

import typer

from scalr_prod.core.console import print_error_box, print_report
from scalr_prod.core.file_modes import umask_of
from scalr_prod.core.logging import configure_logging, is_json_logging, log_context, log_error
from scalr_prod.core.redaction import redact
from scalr_prod.errors import ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scalr_prod.config import Settings
    from scalr_prod.core.signals import Interrupted
    from scalr_prod.project import Project


DEFAULT_CONFIG = Path("scalr.toml")

Config = Annotated[Path, typer.Option("--config", "-c", help="The project's settings.")]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", "-c", help="The project's settings; default: scalr.toml, if it exists.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Version = Annotated[int | None, typer.Option("--version", help="Translator version; default: the latest trained.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `scalr runs list` shows it.")]
OptionalRunId = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id; default: the run that changed last.")]


class CommandReport(Protocol):
    """What a command returns; ``to_summary``, if it exists, gives what is printed without ``--json``."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""


#: None: the command has printed its own output.
CommandResult: TypeAlias = CommandReport | dict[str, Any] | None
Result = TypeVar("Result", bound=CommandResult)


class CommandContext:
    """Context of a command: load the settings, run the command, print its report or error."""

    show_progress = False
    #: Command line options that override ``[logging]``.
    logging_options: ClassVar[dict[str, str]] = {}

    def __init__(self, config: Path | None, as_json: bool, stage: str | None = None, run_id: str | None = None) -> None:
        self.config = config
        self.as_json = as_json
        self.stage = stage
        self.run_id = run_id

    def run_with_project(self, action: Callable[[Project], CommandResult]) -> None:
        """Run a command on the project and print its result."""
        from scalr_prod.project import Project

        def with_project(settings: Settings) -> CommandResult:
            with Project(settings, progress=self.show_progress) as project:
                return action(project)

        self.run_with_settings(with_project)

    def run_with_settings(self, action: Callable[[Settings], CommandResult]) -> None:
        """Run a command on the settings and print its result."""

        def with_settings(settings: Settings | None) -> CommandResult:
            if settings is None:
                raise ValueError("the command has no --config")
            return action(settings)

        self.run(with_settings)

    def run(self, action: Callable[[Settings | None], Result]) -> Result:
        """Run a command on the settings (None without a config), print its result and return it."""
        from contextlib import ExitStack

        from scalr_prod.config import load_settings
        from scalr_prod.core.progress import heartbeat_interval
        from scalr_prod.core.signals import Interrupted, graceful_shutdown
        from scalr_prod.pipeline import stage_context

        settings = None
        with ExitStack() as stack:
            try:
                settings = self._apply_options(load_settings(self.config)) if self.config is not None else None
                if settings is not None:
                    stack.enter_context(log_context(project=settings.project_name))
                    stack.enter_context(umask_of(settings.home))
                every = 0 if settings is None else settings.logging.heartbeat_s
                stack.enter_context(heartbeat_interval(every))
                with graceful_shutdown(), stage_context(self.stage, self.run_id):
                    result = action(settings)
            except ScalrError as error:
                _hide_secrets(error, settings)
                exit_with_error(error.add_context(run_id=self.run_id), as_json=self.as_json)
            except SystemExit as ended:  # by a plug-in or a library: it would pass for the command's success
                exit_with_error(_ended_early(ended).add_context(stage=self.stage, run_id=self.run_id), as_json=self.as_json)
            except Interrupted as stopped:
                exit_with_error(stopped.add_context(stage=self.stage, run_id=self.run_id), as_json=self.as_json)
        if result is not None:  # otherwise the command has printed its own output
            self._print(result)
        return result

    def _print(self, result: CommandReport | dict[str, Any]) -> None:
        facts = result if isinstance(result, dict) else result.to_json()
        if self.as_json:
            print(json.dumps(facts, default=str))
        else:
            summary = getattr(result, "to_summary", None)
            print_report(summary() if summary else facts)

    def _apply_options(self, settings: Settings) -> Settings:
        """Return the settings with the logging options applied, and restart logging with them."""
        options = settings.logging.model_copy(update=self.logging_options)
        configure_logging(options.format, options.level, secrets=settings.secrets)
        self.show_progress = self.show_progress and options.format == "text"
        return settings.model_copy(update={"logging": options})


def find_config(config: Path | None) -> Path | None:
    """Return the given settings file, else the one in the current folder; None if there is none."""
    return DEFAULT_CONFIG if config is None and DEFAULT_CONFIG.is_file() else config


def exit_with_error(error: ScalrError | Interrupted, *, as_json: bool) -> NoReturn:
    """Print an error and exit with its code."""
    if as_json:
        print(json.dumps(error.to_json()))
    if isinstance(error, ScalrError) and sys.stderr.isatty() and not is_json_logging():
        print_error_box(error)
    else:
        log_error(f"error: {error}" if isinstance(error, ScalrError) else str(error), error.to_json())
    raise typer.Exit(error.exit_code)


def _hide_secrets(error: ScalrError, settings: Settings | None) -> None:
    """Replace what the settings keep secret in an error, whichever library's message it repeats."""
    secrets = settings.secrets if settings is not None else ()
    error.found, error.where, error.next_step = (
        redact(error.found, secrets),
        error.where and redact(error.where, secrets),
        error.next_step and redact(error.next_step, secrets),
    )


def _ended_early(ended: SystemExit) -> ScalrError:
    trace = traceback.extract_tb(ended.__traceback__)[-1]
    return ScalrError(
        f"sys.exit({ended.code!r}) ended the command before it was done",
        where=f"{trace.filename}, line {trace.lineno}",
        next_step="correct the plug-in or the library that calls it",
    )
