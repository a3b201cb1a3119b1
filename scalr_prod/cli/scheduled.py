# SPDX-License-Identifier: Apache-2.0
"""The command that a scheduler's tasks call where the scheduler has an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scalr_prod.cli.apps import app
from scalr_prod.cli.door import Door
from scalr_prod.errors import SettingsError


@app.command("task")
def task(
    name: Annotated[str, typer.Argument(help="events, window, translator, evaluate, promote, dataset, check or maintain.")],
) -> None:
    """Do one task of a scheduler. Its call comes on stdin and its outcome goes to stdout, each as one JSON object.

    The DAGs call it where SCALR_COMMAND names this command.

    Example: echo '{"params": {"config": "scalr.toml"}}' | scalr task maintain
    """
    from scalr_prod.tasks import perform

    text = sys.stdin.read()
    call = _call(text)

    def work(_: Any, __: bool) -> dict[str, Any]:
        if call is None:
            raise SettingsError(
                f"{text[:80]!r} is no call of a task",
                where="stdin",
                next_step='give it one JSON object, at least {"params": {"config": "scalr.toml"}}',
            )
        return perform(name, call)

    Door(Path(call["params"]["config"]) if call else None, as_json=True, stage=name).show(work)


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        named = isinstance(found["params"]["config"], str)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return found if named else None
