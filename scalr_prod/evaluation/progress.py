# SPDX-License-Identifier: Apache-2.0
"""Progress reporting of an evaluation: a progress bar, or periodic log lines."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from scalr_prod.core import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


logger = logging.getLogger(__name__)

Step = TypeVar("Step")


class EvaluationProgress(progress.ProgressTracker):
    """Current task, and number of models fitted out of the expected number.

    A step (tuning or evaluating one arm of a family) has an expected number of fits. When it ends it counts as that many, whatever it took.
    """

    def __init__(self) -> None:
        super().__init__("starting", unit="expected fits")
        self.models_fitted = 0
        self._end_of_step = 0

    def start_task(self, task: str) -> None:
        """Start another task and log it."""
        self.label = task
        logger.info("%s (%d s so far, %d models fitted)", task, self.seconds, self.models_fitted)

    def count_fits(self, task: str, count: int = 1) -> None:
        """Record fitted models."""
        self.label, self.models_fitted = task, self.models_fitted + count
        self.done = max(self.done, min(self.done + count, self._end_of_step))

    def track_steps(self, steps: Iterable[Step], expected_fits: Callable[[Step], int]) -> Iterator[Step]:
        """Yield steps; a step counts as done when the next one is requested.

        Args:
            steps: The steps.
            expected_fits: Expected number of fits of a step.
        """
        for step in steps:
            self._end_of_step += expected_fits(step)
            yield step
            self.done = self._end_of_step

    def describe(self, snapshot: dict[str, Any]) -> str:
        """Return the text of a log line."""
        return f"{super().describe(snapshot)}, {self.models_fitted} models fitted"


class _ProgressBar(EvaluationProgress):
    """Progress that also advances a bar which counts fits."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._advance = stack.enter_context(progress.track("evaluate", show=True, unit="fits"))

    def count_fits(self, task: str, count: int = 1) -> None:
        """Record fitted models."""
        super().count_fits(task, count)
        self._advance(count)


@contextmanager
def evaluation_progress(*, show_bar: bool) -> Iterator[EvaluationProgress]:
    """Report progress by a bar, or else by periodic log lines, also during long steps.

    Args:
        show_bar: Show a progress bar on stderr.
    """
    with ExitStack() as stack:
        reporter = _ProgressBar(stack) if show_bar else EvaluationProgress()
        yield stack.enter_context(progress.heartbeat(reporter))
