# SPDX-License-Identifier: Apache-2.0
"""Commands of the translator and of Triton."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - Typer reads it at run time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalr_prod.apps.cli.apps import serving_app, translator_app, triton_app
from scalr_prod.apps.cli.context import (
    DEFAULT_CONFIG,
    CommandContext,
    CommandResult,
    Config,
    Json,
    Version,
    find_config,
)
from scalr_prod.serving import Torch  # noqa: TC001 - Typer reads it at run time

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.project import Project


@translator_app.command("train")
def translator_train(
    config: Config = DEFAULT_CONFIG,
    trained_until: Annotated[
        datetime | None, typer.Option(help="Read nothing from this time on (UTC); default: by [generation] mode.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a translator version; unchanged inputs return the existing version.

    Example: scalr translator train --trained-until 2024-06-01
    """
    CommandContext(config, as_json, "translator train").run_with_project(lambda project: project.train(trained_until))


@translator_app.command("evaluate")
def translator_evaluate(config: Config = DEFAULT_CONFIG, version: Version = None, as_json: Json = False) -> None:
    """Evaluate ranking, likelihood and calibration of each estimator and of their mixture on the latest time window.

    Example: scalr translator evaluate
    """
    CommandContext(config, as_json, "translator evaluate").run_with_project(
        lambda project: project.evaluate_translator(version)
    )


@translator_app.command("promote")
def translator_promote(config: Config = DEFAULT_CONFIG, version: Version = None, as_json: Json = False) -> None:
    """Serve a version: load it, check that it answers, then switch to it. The previous version is kept for rollback.

    Example: scalr translator promote --version 3
    """
    CommandContext(config, as_json, "translator promote").run_with_project(lambda project: project.promote(version))


@translator_app.command("rollback")
def translator_rollback(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Serve the previously promoted version again.

    Example: scalr translator rollback
    """
    CommandContext(config, as_json, "translator rollback").run_with_project(lambda project: project.rollback_translator())


@translator_app.command("list")
def translator_list(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List all trained versions, and which one is served.

    Example: scalr translator list
    """

    def work(project: Project) -> dict[str, Any]:
        versions = [version.to_json() for version in project.translators()]
        return {"served": project.ledger.models.promoted_version(), "versions": versions}

    CommandContext(config, as_json, "translator list").run_with_project(work)


@serving_app.command("install")
def serving_install(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A project whose [serving] environment to make; default: scalr.toml.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to make it; default: .venv-triton.")] = None,
    torch: Annotated[Torch, typer.Option(help="Which build of torch; auto: the CPU build without a GPU.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Create or update the environment of a local Triton, and compile the translator's kernels.

    Example: scalr serving install
    """
    from scalr_prod.apps.kernel_compilation import compile_kernels
    from scalr_prod.serving import install_serving, plan_serving

    def work(settings: Settings | None) -> CommandResult:
        if dry_run:
            return plan_serving(settings, folder=folder)
        report = install_serving(settings, folder=folder, torch=torch)
        compile_kernels(Path(report.folder))
        return report

    CommandContext(find_config(config), as_json, "serving install").run(work)


@triton_app.command("start")
def triton_start(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Start the local Triton if it is not running.

    Example: scalr triton start
    """
    from scalr_prod.serving import start_triton

    CommandContext(config, as_json, "triton start").run_with_settings(start_triton)


@triton_app.command("stop")
def triton_stop(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Stop the local Triton.

    Example: scalr triton stop
    """
    from scalr_prod.serving import stop_triton

    CommandContext(config, as_json, "triton stop").run_with_settings(lambda settings: {"stopped": stop_triton(settings)})


@triton_app.command("status")
def triton_status_command(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show whether Triton answers, and what it serves.

    Example: scalr triton status
    """
    from scalr_prod.serving import triton_status

    CommandContext(config, as_json, "triton status").run_with_settings(triton_status)
