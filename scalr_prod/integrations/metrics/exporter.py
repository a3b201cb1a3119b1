# SPDX-License-Identifier: Apache-2.0
"""Export of a project's metrics when a stage begins, while it runs and when it ends.

Best effort: a failure is logged as a warning and never fails a stage.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from scalr_prod.core.progress import repeated
from scalr_prod.core.redaction import redact, url_host, url_secrets
from scalr_prod.errors import QualityGateFailed
from scalr_prod.pipeline import has_failed_last, read_stage_heartbeats, record_stage_heartbeat, record_stage_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from prometheus_client import CollectorRegistry

    from scalr_prod.config import Settings
    from scalr_prod.pipeline import StageScope


logger = logging.getLogger(__name__)

_PUSH_JOB: Final = "scalr"
_PUSH_TIMEOUT_S: Final = 5.0
#: Longest interval between two exports of a running stage; the alert on a lost driver waits for 15 minutes.
_MAX_HEARTBEAT_S: Final = 60.0


class MetricsHook:
    """Records begin, outcome and duration of each stage, and exports the metrics to the targets in ``[metrics]``."""

    def around_run(self) -> AbstractContextManager[None]:
        """Do nothing: metrics are exported with each stage."""
        return nullcontext()

    @contextmanager
    def around_stage(self, scope: StageScope) -> Iterator[None]:
        """Record the stage's outcome and export the metrics, at its start, at each heartbeat and at its end.

        A light stage is not recorded at its start, and at its end only if it failed, took longer than a heartbeat, or had failed before.
        Work that may be refused is recorded only at its end.
        """
        settings = scope.settings
        if settings.metrics.textfile is None and settings.metrics.push is None:
            yield
            return
        started, outcome = time.perf_counter(), "interrupted"
        try:
            with nullcontext() if scope.refusals else _heartbeat(settings, scope.name, at_begin=not scope.light):
                yield
            outcome = "done"
        except scope.refusals:
            outcome = "refused"
            raise
        except QualityGateFailed:
            outcome = "rejected"
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            if outcome != "refused":
                _record_outcome(settings, scope.name, outcome, time.perf_counter() - started, light=scope.light)


@contextmanager
def _heartbeat(settings: Settings, stage: str, *, at_begin: bool) -> Iterator[None]:
    """Record the stage as running and export the metrics within the block: at its begin, and then at regular intervals."""

    def beat() -> None:
        try:
            record_stage_heartbeat(settings, stage)
        except Exception as error:  # best effort: never fails the stage
            logger.warning("heartbeat of stage %s was not recorded: %s: %s", stage, type(error).__name__, error)
        export_metrics(settings)

    if at_begin:
        beat()
    with repeated(beat, min(settings.logging.heartbeat_s, _MAX_HEARTBEAT_S), name="metrics"):
        yield


def _record_outcome(settings: Settings, stage: str, outcome: str, seconds: float, *, light: bool) -> None:
    try:
        if light and outcome == "done" and not (has_failed_last(settings, stage) or stage in read_stage_heartbeats(settings)):
            return
        record_stage_outcome(settings, stage, outcome, seconds)
    except Exception as error:  # best effort: never fails the stage
        logger.warning("outcome of stage %s was not recorded: %s: %s", stage, type(error).__name__, error)
    export_metrics(settings)


def export_metrics(settings: Settings) -> bool:
    """Export the metrics to the textfile and the push gateway, if ``[metrics]`` names them.

    Returns:
        Whether every export succeeded; failures are logged as warnings.
    """
    targets = settings.metrics
    succeeded = True
    if targets.textfile is not None:
        succeeded = _try_export(settings, _write_textfile, f"to {targets.textfile}")
    if targets.push is not None:
        succeeded = _try_export(settings, _push_metrics, f"to the push gateway at {url_host(targets.push)}") and succeeded
    return succeeded


def _try_export(settings: Settings, export: Callable[[Settings, CollectorRegistry], None], target: str) -> bool:
    try:
        from prometheus_client import CollectorRegistry

        from scalr_prod.integrations.metrics.collect import ProjectCollector

        registry = CollectorRegistry()
        registry.register(ProjectCollector(settings))
        export(settings, registry)
    except Exception as error:  # best effort: never fails the stage
        secrets = [secret for url in (settings.metrics.push, settings.ledger_url) for secret in url_secrets(url)]
        logger.warning("metrics were not exported %s: %s: %s", target, type(error).__name__, redact(str(error), secrets))
        return False
    return True


def _write_textfile(settings: Settings, registry: CollectorRegistry) -> None:
    from prometheus_client import write_to_textfile

    path = settings.resolve(str(settings.metrics.textfile))
    write_to_textfile(str(path), registry)  # atomic: a scrape never sees a partial file
    path.chmod(0o644)  # whoever scrapes it is another user; it holds counts


def _push_metrics(settings: Settings, registry: CollectorRegistry) -> None:
    from prometheus_client import push_to_gateway
    from prometheus_client.exposition import basic_auth_handler, default_handler

    push = str(settings.metrics.push)
    address = urlsplit(push)

    def handler(url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes) -> object:
        if address.username is None:
            return default_handler(url, method, timeout, headers, data)
        user, password = unquote(address.username), unquote(address.password or "")
        return basic_auth_handler(url, method, timeout, headers, data, user, password)

    gateway = f"{address.scheme}://{url_host(push)}{address.path}"
    push_to_gateway(gateway, _PUSH_JOB, registry, {"project": settings.project_name}, timeout=_PUSH_TIMEOUT_S, handler=handler)
