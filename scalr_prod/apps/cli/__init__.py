# SPDX-License-Identifier: Apache-2.0
"""The `scalr` command line: a thin wrapper around `Project`, and the only package that prints.

Exit codes: 0 done, 1 a `ScalrError`, 2 wrong usage, 3 rejected by the quality gate or no pair of domains to join, 130 and 143 stopped by
SIGINT or SIGTERM.
With ``--json`` one JSON object goes to stdout; logs and progress bars always go to stderr.
"""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Literal

import typer

from scalr_prod.apps.cli.apps import app
from scalr_prod.apps.cli.context import CommandContext
from scalr_prod.core.logging import configure_logging
from scalr_prod.version import __version__

# They register their commands, in the order in which `scalr --help` lists them.
from scalr_prod.apps.cli import setup, models, runs, task, datasets, stages  # isort: skip  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `scalr` command."""
    # Imports create hundreds of thousands of objects. Garbage collections at Python's default threshold take a sixth of their time.
    gc.set_threshold(50_000)
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
    CommandContext.logging_options = {name: value for name, value in named.items() if value}
    configure_logging(log_format or "text", CommandContext.logging_options.get("level", "info"))
    CommandContext.show_progress = not quiet and sys.stderr.isatty() and log_format != "json"
