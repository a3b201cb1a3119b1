# SPDX-License-Identifier: Apache-2.0
"""Hooks around runs and stages: lineage, metrics, and those of other packages.

A hook is a plug-in (`scalr_prod.plugins.STAGE_HOOKS`): the pipeline enters it around each stage and knows nothing else about it.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scalr_prod.plugins import STAGE_HOOKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from scalr_prod.config import Settings
    from scalr_prod.errors import ScalrError


@dataclass(frozen=True)
class StageScope:
    """A stage, or an operation such as a rollback, that is about to begin.

    Attributes:
        settings: The project's settings.
        name: The stage's name.
        run_id: Returns the id of the stage's run; None if there is no run yet.
        light: Whether the stage takes no time if nothing has changed.
        refusals: Errors that mean that the work did not begin; a hook must not count them as failures.
    """

    settings: Settings
    name: str
    run_id: Callable[[], str | None]
    light: bool = False
    refusals: tuple[type[ScalrError], ...] = ()


class StageHook(Protocol):
    """Observes runs and stages. A hook must never fail the stage that it observes."""

    def around_run(self) -> AbstractContextManager[object]:
        """Return a context that is entered once for all stages of a run."""

    def around_stage(self, scope: StageScope) -> AbstractContextManager[object]:
        """Return a context that is entered around one stage; the stage's exception passes through it."""


@contextmanager
def run_hooks() -> Iterator[None]:
    """Enter every hook's `around_run`."""
    with ExitStack() as stack:
        for hook in _hooks():
            stack.enter_context(hook.around_run())
        yield


@contextmanager
def stage_hooks(scope: StageScope) -> Iterator[None]:
    """Enter every hook's `around_stage`, in the order of their names in the registry."""
    with ExitStack() as stack:
        for hook in _hooks():
            stack.enter_context(hook.around_stage(scope))
        yield


@functools.cache
def _hooks() -> tuple[StageHook, ...]:
    return tuple(STAGE_HOOKS.load(name, StageHook)() for name in STAGE_HOOKS.names())
