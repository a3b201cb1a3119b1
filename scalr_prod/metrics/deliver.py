"""Hand a project's metrics over after each stage. What fails here is a warning, and fails no stage."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from scalr_prod.errors import QualityGateFailed
from scalr_prod.masking import masked
from scalr_prod.metrics.ended import note_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry

    from scalr_prod.settings import Settings

__all__ = ["deliver", "measured"]

logger = logging.getLogger(__name__)

_JOB: Final = "scalr"
_PUSH_S: Final = 5.0


@contextmanager
def measured(settings: Settings, stage: str, *, light: bool = False) -> Iterator[None]:
    """Note how the stage in the block ends and how long it takes, and deliver the metrics; nothing where the settings name no place.

    Args:
        settings: The project's settings; ``[metrics]`` decides.
        stage: The stage's name.
        light: It takes no time where nothing has changed: only its failures are noted.
    """
    if settings.metrics.textfile is None and settings.metrics.push is None:
        yield
        return
    started, outcome = time.perf_counter(), "interrupted"
    try:
        yield
        outcome = "done"
    except QualityGateFailed:
        outcome = "rejected"
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        if not light or outcome != "done":
            try:
                note_end(settings, stage, outcome, time.perf_counter() - started)
            except Exception as error:  # eyes only: whatever is wrong with them, the stage ends as it ended
                logger.warning("how the stage %s ended could not be noted: %s: %s", stage, type(error).__name__, error)
            deliver(settings)


def deliver(settings: Settings) -> bool:
    """Write the textfile and push to the gateway, as far as ``[metrics]`` names them.

    Returns:
        Whether all of it went well; what did not is a warning in the log.
    """
    wanted = settings.metrics
    fine = True
    if wanted.textfile is not None:
        path = settings.resolve(wanted.textfile)
        fine = _tried(settings, lambda registry: _write(str(path), registry), f"to {path}")
    if wanted.push is not None:
        pushed = _tried(settings, lambda registry: _push(settings, registry), f"to the push gateway at {_host(wanted.push)}")
        fine = fine and pushed
    return fine


def _tried(settings: Settings, work: Callable[[CollectorRegistry], None], where: str) -> bool:
    from prometheus_client import CollectorRegistry

    from scalr_prod.metrics.collect import ProjectCollector

    try:
        registry = CollectorRegistry()
        registry.register(ProjectCollector(settings))
        work(registry)
    except Exception as error:  # eyes only: whatever is wrong with them, the stage ends as it ended
        secrets = [part for url in (settings.metrics.push or "", settings.ledger_url) for part in _secrets(url)]
        logger.warning("metrics did not get %s: %s: %s", where, type(error).__name__, masked(str(error), secrets))
        return False
    return True


def _write(path: str, registry: CollectorRegistry) -> None:
    from prometheus_client import write_to_textfile

    write_to_textfile(path, registry)  # under another name first: a scrape sees the former file, or all of this one


def _push(settings: Settings, registry: CollectorRegistry) -> None:
    from prometheus_client import push_to_gateway
    from prometheus_client.exposition import basic_auth_handler, default_handler

    address = urlsplit(str(settings.metrics.push))

    def handler(url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes) -> object:
        if address.username is None:
            return default_handler(url, method, timeout, headers, data)
        return basic_auth_handler(url, method, timeout, headers, data, address.username, address.password)

    gateway = f"{address.scheme}://{_host(str(settings.metrics.push))}{address.path}"
    push_to_gateway(gateway, _JOB, registry, {"project": settings.project_name}, timeout=_PUSH_S, handler=handler)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _secrets(url: str) -> Iterator[str]:
    password = urlsplit(url).password
    if password:
        yield password
