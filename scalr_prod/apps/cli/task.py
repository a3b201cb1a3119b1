# SPDX-License-Identifier: Apache-2.0
"""Command for the tasks of a scheduler that runs in its own environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalr_prod.apps.cli.apps import app
from scalr_prod.apps.cli.context import CommandContext
from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from scalr_prod.config import Settings


@app.command("task")
def task(
    name: Annotated[str, typer.Argument(help="events, window, translator, evaluate, promote, dataset, check or maintain.")],
) -> None:
    """Run one task of a scheduler: read the call from stdin and write the result to stdout, each as a JSON object.

    The DAGs use it if SCALR_COMMAND names this command.

    Example: echo '{"params": {"config": "scalr.toml"}}' | scalr task maintain
    """
    from scalr_prod.integrations.airflow.tasks import run_task

    text = sys.stdin.read()
    call = _call(text)

    def work(_: Settings | None) -> dict[str, Any]:
        if call is None:
            raise SettingsError(
                f"{text[:80]!r} is not a task call",
                where="stdin",
                next_step='give it one JSON object, at least {"params": {"config": "scalr.toml"}}',
            )
        return run_task(name, call)

    CommandContext(Path(call["params"]["config"]) if call else None, as_json=True, stage=name).run(work)


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        named = isinstance(found["params"]["config"], str)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return found if named else None
