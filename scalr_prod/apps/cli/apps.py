# SPDX-License-Identifier: Apache-2.0
"""Typer applications of the `scalr` command and its groups; the other modules of the package add the commands."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

#: Commands listed first in the help, in the order a new user needs them.
_FIRST: Final = ("init", "scout", "run", "report", "evaluate", "ui", "status", "doctor", "config", "explain")


class _Ordered(TyperGroup):
    """List the commands of `_FIRST` first."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [name for name in _FIRST if name in names] + [name for name in names if name not in _FIRST]


app = typer.Typer(
    name="scalr",
    cls=_Ordered,
    help="Turn what your users did in one domain into validated synthetic events for another, published as a Feast feature view, and "
    "into training sets of both. Begin with: scalr init, then scalr run.",
    epilog="Example: scalr init --source kitchen.csv --target food.csv && scalr run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _group(name: str, text: str, example: str, *, alone: bool = False) -> typer.Typer:
    """Add a group; with ``alone``, its name is a command, too."""
    group = typer.Typer(help=text, epilog=f"Example: {example}", no_args_is_help=not alone, invoke_without_command=alone)
    app.add_typer(group, name=name)
    return group


translator_app = _group("translator", "Train, evaluate and serve the translator.", "scalr translator evaluate")
serving_app = _group("serving", "Install the environment of a local Triton.", "scalr serving install")
triton_app = _group("triton", "Start and stop the local Triton server.", "scalr triton status")
dataset_app = _group(
    "dataset", "Build and export training sets; register the models that are trained on them.", "scalr dataset build"
)
runs_app = _group("runs", "List and show runs, resume one, roll one back.", "scalr runs list")
publication_app = _group(
    "publication", "Disable and enable publication; widen or withdraw a canary.", "scalr publication disable"
)
experiment_app = _group(
    "experiment",
    "Show who is held out by [experiment], and with --outcomes the effect of synthetic events; or plan an experiment.",
    "scalr experiment power",
    alone=True,
)
feast_app = _group(
    "feast", "Export synthetic events to your own feature repository, or begin one.", "scalr feast export ../features"
)
quality_app = _group(
    "quality", "Check training sets of this project or any other; exchange data contracts.", "scalr quality check rows.parquet"
)
config_app = _group("config", "Show the effective settings.", "scalr config show")
