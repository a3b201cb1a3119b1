# SPDX-License-Identifier: Apache-2.0
"""The `scalr` command and its groups; the modules beside this one fill them."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="scalr",
    help="Turn users' source-domain events into validated synthetic target-domain events, published as a Feast feature view.",
    epilog="Example: scalr init --source kitchen.csv --target food.csv && scalr run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _group(name: str, text: str, example: str) -> typer.Typer:
    group = typer.Typer(help=text, epilog=f"Example: {example}", no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


translator_app = _group("translator", "Train, evaluate and serve the translator.", "scalr translator evaluate")
serving_app = _group("serving", "The environment that a local Triton runs in.", "scalr serving install")
triton_app = _group("triton", "Start and stop the local Triton server.", "scalr triton status")
dataset_app = _group("dataset", "Build and export training sets.", "scalr dataset build")
runs_app = _group("runs", "Look at runs, go on with one, take one out.", "scalr runs list")
publication_app = _group("publication", "Switch publication off and on; publish a canary for all.", "scalr publication disable")
feast_app = _group("feast", "Synthetic events in a feature repository of your own.", "scalr feast export ../features")
quality_app = _group("quality", "Check training sets, of this project or anybody's.", "scalr quality check rows.parquet")
config_app = _group("config", "The settings that are in force.", "scalr config show")
