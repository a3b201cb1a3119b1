"""The `scalr` command and its groups; the modules beside this one fill them."""

from __future__ import annotations

import typer

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
publication_app = typer.Typer(help="Switch the project's publication off and on.", no_args_is_help=True)
quality_app = typer.Typer(help="Check training sets, of this project or anybody's.", no_args_is_help=True)
config_app = typer.Typer(help="The settings that are in force.", no_args_is_help=True)
app.add_typer(translator_app, name="translator")
app.add_typer(serving_app, name="serving")
app.add_typer(triton_app, name="triton")
app.add_typer(dataset_app, name="dataset")
app.add_typer(runs_app, name="runs")
app.add_typer(publication_app, name="publication")
app.add_typer(quality_app, name="quality")
app.add_typer(config_app, name="config")
