# SPDX-License-Identifier: Apache-2.0
"""Sampling thread of the web page: opens the scorer once and reuses it, as a worker of a run does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from scalr_prod.core.logging import bind_log_context
from scalr_prod.errors import ScoringError, ServingError

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.reporting.ui.users import TranslatedContext


class SamplingThread:
    """Samples events for one user at a time. On exit, closes the scorer and stops a Triton server that it started.

    Args:
        settings: The project's settings; ``[serving] scorer`` chooses the scorer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scalr ui draws")
        self._open_servers = ExitStack()
        self._served_versions: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def translate(self, spec: RunSpec, user: int | str, before: datetime | None) -> list[TranslatedContext]:
        """Translate one user, see `scalr_prod.reporting.ui.users.translate_user`; waits for earlier calls to finish."""
        return self._thread.submit(bind_log_context(self._translate), spec, user, before).result()

    def _translate(self, spec: RunSpec, user: int | str, before: datetime | None) -> list[TranslatedContext]:
        from scalr_prod.generation import open_session
        from scalr_prod.reporting.ui.users import translate_user
        from scalr_prod.serving import serve_with_watchdog

        try:
            if spec.translator_version not in self._served_versions:
                self._open_servers.enter_context(serve_with_watchdog(self._settings, spec.translator_version))
                self._served_versions.add(spec.translator_version)
            return translate_user(self._settings, spec, open_session(self._settings, spec), user, before=before)
        except (ScoringError, ServingError):
            self._close()  # reopened by the next call
            raise

    def _close(self) -> None:
        from scalr_prod.generation import close_session

        close_session()
        self._served_versions.clear()
        self._open_servers.close()
