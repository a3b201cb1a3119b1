# SPDX-License-Identifier: Apache-2.0
"""A task in a Dask worker: the project's logging around it, and errors that can be sent back."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from scalr_prod.core.logging import configure_logging, log_context
from scalr_prod.errors import ComputeError, ScalrError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scalr_prod.config import Settings


def run_worker_task(settings: Settings, log_fields: Mapping[str, Any], task: Callable[..., Any], *arguments: Any) -> Any:
    """Call a task in a Dask worker.

    Args:
        settings: The project's settings.
        log_fields: Fields of the task's log lines, see `log_context`.
        task: The task.
        arguments: Its arguments.

    Raises:
        ScalrError: Of the task, without its causes.
        ComputeError: The task could not read or write a file, on another machine.
    """
    local = settings.compute.dask == "local"
    if local:
        import scalr_prod.compute.worker_preload  # noqa: F401 - already imported in forked workers
    options, logger = settings.logging, None if local else "scalr_prod"
    configure_logging(options.format, options.level, logger=logger, secrets=settings.secrets)
    with log_context(project=settings.project_name, **log_fields):
        try:
            return task(*arguments)
        except ScalrError as error:
            # Exceptions are pickled with their causes, and gRPC exceptions hold locks, which cannot be pickled.
            error.__cause__ = error.__context__ = None
            raise
        except OSError as error:
            if local:
                raise
            raise ComputeError(
                f"a worker on {socket.gethostname()} failed: {type(error).__name__}: {' '.join(str(error).split())}",
                where=f"[compute] dask = {settings.compute.dask}",
                next_step="check that the worker's disk has space, and that it has the network and the object store's credentials; then "
                "run the command again",
            ) from None
