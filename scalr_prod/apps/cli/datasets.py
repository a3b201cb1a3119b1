# SPDX-License-Identifier: Apache-2.0
"""Commands for training sets, Feast exports and data quality checks."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - Typer reads it at run time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalr_prod.apps.cli.apps import dataset_app, feast_app, quality_app
from scalr_prod.apps.cli.context import DEFAULT_CONFIG, CommandContext, Config, Json, OptionalConfig, find_config
from scalr_prod.core.timestamps import as_utc
from scalr_prod.errors import QualityGateFailed

if TYPE_CHECKING:
    from scalr_prod.apps.cli.context import CommandResult
    from scalr_prod.config import Settings
    from scalr_prod.project import Project
    from scalr_prod.quality import Verdict
    from scalr_prod.training_set import ExportReport


class ExportFormat(StrEnum):
    """The formats of `scalr dataset export`."""

    CSV = "csv"
    RECBOLE = "recbole"
    PARQUET = "parquet"


class Weights(StrEnum):
    """How `scalr dataset export` hands over the weights of rows."""

    COLUMN = "column"
    SAMPLE = "sample"


class BuiltInSuite(StrEnum):
    """The suites of `scalr quality init-suite`."""

    TRAINING = "training"
    LEAKS = "leaks"


class FeastSourceFormat(StrEnum):
    """The formats of `scalr feast export`."""

    DELTA = "delta"
    PARQUET = "parquet"


@dataset_app.command("build")
def dataset_build(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Build a training set of real and synthetic events with point-in-time features.

    Example: scalr dataset build
    """
    CommandContext(config, as_json, "dataset build").run_with_project(lambda project: project.build_training_set())


@dataset_app.command("export")
def dataset_export(
    target: Annotated[Path, typer.Argument(help="The file to write (csv), or the folder of the data set (recbole, parquet).")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="csv; RecBole's atomic files; or Parquet files with every column and a card, for Hugging Face's datasets.",
        ),
    ] = ExportFormat.CSV,
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="column: each row once, with its weight, for a tool that multiplies its loss by it; sample: rows sampled by weight, "
            "for a tool without weights. Default: column for csv, sample for recbole."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Number of independent samples, one after the other.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the samples.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(help="Only this split of the set: train, validation or test ([training_set] splits); default: all."),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the training set; default: the latest.")] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Export a training set, or one split of it, for other tools.

    Example: scalr dataset export --weights sample rows.csv
    """
    if form is ExportFormat.CSV and target.suffix.lower() not in {"", ".csv", ".txt"}:
        raise typer.BadParameter(f"a CSV file would be written: name {target.with_suffix('.csv')}", param_hint="TARGET")

    def work(project: Project) -> ExportReport:
        rows = project.training_set(version)
        chosen = rows if split is None else rows.split(split)
        return chosen.export(target, form.value, weights=weights.value if weights else None, epochs=epochs, seed=seed)

    CommandContext(config, as_json, "dataset export").run_with_project(work)


@dataset_app.command("register-model")
def dataset_register_model(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    model_version: Annotated[str, typer.Argument(help="The model's version.")],
    version: Annotated[
        int | None, typer.Option(help="Version of the training set that it was trained on; default: the latest.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Register a model that was trained on a training set.

    scalr forget and scalr status name the registered models that learned from rows of erased users.

    Example: scalr dataset register-model ranker 7 --version 3
    """

    def work(project: Project) -> CommandResult:
        return project.register_model(model, model_version, dataset_version=version)

    CommandContext(config, as_json, "dataset register-model").run_with_project(work)


@dataset_app.command("models")
def dataset_models(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List the registered models, each with its version and the version of the training set on which it was trained.

    Example: scalr dataset models
    """

    def work(project: Project) -> CommandResult:
        uses = [use.to_json() for use in project.registered_models()]
        return {"models": [{name: value for name, value in use.items() if name != "created"} for use in uses]}

    CommandContext(config, as_json, "dataset models").run_with_project(work)


@feast_app.command("export")
def feast_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of your feature repository.")],
    form: Annotated[
        FeastSourceFormat | None,
        typer.Option(
            "--format",
            help="delta: the lake's tables as they are; parquet: copies of their rows, for Feast's file and DuckDB stores. Default: "
            "by the repository's offline store.",
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write Feast definitions of published events, for `feast apply` in your own repository.

    Example: scalr feast export ../features
    """
    CommandContext(config, as_json, "feast export").run_with_project(
        lambda project: project.export_feast(folder, form.value if form else None)
    )


@feast_app.command("template")
def feast_template(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder; its name is the Feast project's.")],
    as_json: Json = False,
) -> None:
    """Write a small feature repository over Delta tables, with made-up events, to begin your own from; no scalr.toml is needed.

    Example: scalr feast template ../features
    """
    from scalr_prod.features import write_template

    CommandContext(None, as_json, "feast template").run(lambda _: write_template(folder))


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
        typer.Option(
            help="A suite's file or name; training and leaks are built in. Default: [training_set] suite, else training."
        ),
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(help="Folder of the data docs; default: the project's home, or scalr_quality without one.")
    ] = None,
    feast: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of a Feast repository: DATASET is one of its feature views or services, retrieved by its own store.",
        ),
    ] = None,
    entities: Annotated[
        Path | None,
        typer.Option(
            help="With --feast: Parquet or CSV rows with keys and event_timestamp to join features to; default: a window."
        ),
    ] = None,
    start: Annotated[datetime | None, typer.Option(help="With --feast: first event time of the window; default: all.")] = None,
    end: Annotated[datetime | None, typer.Option(help="With --feast: last event time of the window; default: now.")] = None,
    config: OptionalConfig = None,
    as_json: Json = False,
) -> None:
    """Check a data set before training: exit code 0 passed, 3 rejected, 1 could not be checked.

    Example: scalr quality check rows.parquet --suite leaks
    """
    from scalr_prod.quality import check_dataset

    if feast is None and (entities or start or end):
        raise typer.BadParameter("goes with --feast", param_hint="--entities, --start, --end")
    if feast is not None and dataset is None:
        raise typer.BadParameter("name a feature view or service of the repository", param_hint="DATASET")

    def work(settings: Settings | None) -> Verdict:
        from scalr_prod.features import FeatureRetrieval

        retrieval = None if feast is None else FeatureRetrieval(feast, entities, as_utc(start), as_utc(end))
        if dataset is None:
            if settings is None:
                raise typer.BadParameter("without a scalr.toml, name the data set", param_hint="DATASET")
            from scalr_prod.training_set import TrainingSet

            chosen = str(TrainingSet.open(settings.home / "datasets" / settings.training_set.name, check=True).path)
        named = suite or (settings.training_set.suite if settings else None) or "training"
        return check_dataset(dataset or chosen, suite=named, settings=settings, folder=docs, retrieval=retrieval)

    if not CommandContext(find_config(config), as_json, "quality check").run(work).passed:
        raise typer.Exit(QualityGateFailed.exit_code)


@quality_app.command("init-suite")
def quality_init_suite(
    file: Annotated[Path | None, typer.Argument(help="The YAML file to write; default: quality/SUITE.yaml.")] = None,
    suite: Annotated[BuiltInSuite, typer.Option(help="The suite to copy.")] = BuiltInSuite.TRAINING,
    user: Annotated[str, typer.Option(help="Name of the column.")] = "user_id",
    item: Annotated[str, typer.Option(help="Name of the column.")] = "item_id",
    timestamp: Annotated[str, typer.Option(help="Name of the column of the label's time.")] = "event_timestamp",
    label: Annotated[str, typer.Option(help="Name of the column.")] = "label",
    weight: Annotated[str, typer.Option(help="Name of the column; skipped if it does not exist.")] = "weight",
    synthetic: Annotated[
        str, typer.Option(help="Name of the column of synthetic rows; skipped if it does not exist.")
    ] = "is_synthetic",
    created: Annotated[
        str, typer.Option(help="Name of the column of the time when a row became known; skipped if it does not exist.")
    ] = "created_timestamp",
    split: Annotated[
        str, typer.Option(help="Name of the column of train, validation and test; skipped if it does not exist.")
    ] = "split",
    as_json: Json = False,
) -> None:
    """Write a commented suite of checks to edit; an existing file is not overwritten.

    Example: scalr quality init-suite checks.yaml --timestamp ts
    """
    from scalr_prod.quality import write_suite

    columns = {
        "user": user,
        "item": item,
        "timestamp": timestamp,
        "label": label,
        "weight": weight,
        "synthetic": synthetic,
        "created": created,
        "split": split,
    }
    path = file or Path("quality", f"{suite.value}.yaml")
    CommandContext(None, as_json).run(lambda _: {"suite": write_suite(path, columns, name=suite.value)})


@quality_app.command("export-contract")
def quality_export_contract(
    log: Annotated[str, typer.Argument(help="The log: source, sources.NAME or target.")],
    file: Annotated[Path, typer.Argument(help="The YAML file to write; an existing file is not overwritten.")],
    suite: Annotated[
        str | None, typer.Option(help="A suite whose expectations the contract has, too: its file, or its name in quality/.")
    ] = None,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write a log's contract in the Open Data Contract Standard: its columns, limits and rules, from the settings.

    Example: scalr quality export-contract target contracts/food.yaml
    """
    CommandContext(config, as_json, "quality export-contract").run_with_project(
        lambda project: project.export_contract(log, file, suite=suite)
    )


@quality_app.command("import-contract")
def quality_import_contract(
    file: Annotated[Path, typer.Argument(help="A contract of the Open Data Contract Standard 3, in YAML or JSON.")],
    log: Annotated[str, typer.Option(help="The log that the settings are for: source, sources.NAME or target.")] = "target",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="A column whose role the contract does not give, as role=name, such as user=customer_id; repeat for more."
        ),
    ] = None,
    schema_object: Annotated[
        str | None, typer.Option("--object", help="The object of the schema with the events, where there are several.")
    ] = None,
    suite: Annotated[
        Path | None, typer.Option(help="Write the rules that settings do not express as a suite to this YAML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the settings of a log that follow from a contract, and name what they cannot express.

    Example: scalr quality import-contract contracts/food.yaml >> scalr.toml
    """
    from scalr_prod.quality import import_contract, write_contract_suite

    columns = dict(one.split("=", 1) for one in column or [] if "=" in one)
    if len(columns) != len(column or []):
        raise typer.BadParameter("write it as role=name, each role once", param_hint="--column")

    def work(_: Settings | None) -> CommandResult:
        found = import_contract(file, place=log, columns=columns, schema_object=schema_object)
        written = write_contract_suite(suite, found) if suite else None
        if as_json:
            return found.to_json() | {"suite": written}
        print(found.toml, end="")
        for part in found.not_expressed:
            print(f"# not expressed: {part}")
        if found.expectations and written is None:
            print(f"# not expressed by settings: {len(found.expectations)} rules; --suite FILE writes them as a suite")
        return None

    CommandContext(None, as_json, "quality import-contract").run(work)
