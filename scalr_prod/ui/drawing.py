# SPDX-License-Identifier: Apache-2.0
"""Sampling thread of the web page: opens the scorer once and reuses it, as a worker of a run does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from scalr_prod.errors import ScoringError, ServingError
from scalr_prod.logs import in_context

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from scalr_prod.ledger import RunSpec
    from scalr_prod.settings import Settings
    from scalr_prod.ui.users import Translation

__all__ = ["Drawing"]


class Drawing:
    """Samples events for one user at a time. On exit, closes the scorer and stops a Triton server that it started.

    Args:
        settings: The project's settings; ``[serving] scorer`` chooses the scorer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scalr ui draws")
        self._serving = ExitStack()
        self._served: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def translate(self, spec: RunSpec, user: int | str, before: datetime | None) -> list[Translation]:
        """Translate one user, see `scalr_prod.ui.users.translate`; waits for earlier calls to finish."""
        return self._thread.submit(in_context(self._translate), spec, user, before).result()

    def _translate(self, spec: RunSpec, user: int | str, before: datetime | None) -> list[Translation]:
        from scalr_prod.generation.partition import open_tools
        from scalr_prod.serving import guarded_serving
        from scalr_prod.ui.users import translate

        try:
            if spec.translator_version not in self._served:
                self._serving.enter_context(guarded_serving(self._settings, spec.translator_version))
                self._served.add(spec.translator_version)
            return translate(self._settings, spec, open_tools(self._settings, spec), user, before=before)
        except (ScoringError, ServingError):
            self._close()  # reopened by the next call
            raise

    def _close(self) -> None:
        from scalr_prod.generation.partition import close_tools

        close_tools()
        self._served.clear()
        self._serving.close()
