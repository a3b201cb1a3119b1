# SPDX-License-Identifier: Apache-2.0
"""Factory of the scorer that the settings select."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scalr_prod.errors import TranslatorNotFound
from scalr_prod.serving.client.address import server_urls
from scalr_prod.serving.client.local import LocalScorer
from scalr_prod.serving.client.retry import RequestOptions
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel
from scalr_prod.serving.client.triton import TritonScorer
from scalr_prod.serving.client.wire import digest_to_int64
from scalr_prod.translator import load_version

if TYPE_CHECKING:
    from scalr_prod.config import Settings
    from scalr_prod.serving.client.latency import LatencyHistogram
    from scalr_prod.serving.client.scorer import Scorer


def open_scorer(
    settings: Settings,
    version: int,
    *,
    has_watchdog: bool = False,
    latencies: LatencyHistogram | None = None,
    server_index: int = 0,
) -> Scorer:
    """Open the scorer of one version. Each process opens its own.

    Args:
        settings: The project's settings; ``[serving] scorer`` decides.
        version: The translator version that must answer.
        has_watchdog: A watchdog restarts a failed local server (`watchdog.serve_with_watchdog`): wait for the restart, even after
            failures that the server would not recover from by itself.
        latencies: Records how long answers take: of a request to Triton, or of a batch in this process.
        server_index: Number of the server to ask first, modulo the number of servers; after a failure the next one is used.

    Raises:
        ServerUnreachable: Triton does not answer.
        ModelNotReady: Triton does not hold the version.
        ModelVersionMismatch: Another model answers.
        TranslatorNotFound: The local scorer does not find the version.
        SettingsError: The local scorer is configured for a GPU, and torch sees none.
    """
    serving = settings.serving
    if serving.scorer == "local":
        path = load_version(settings, version).path
        return LocalScorer(path, version, threads=serving.threads, device=settings.compute.device, latencies=latencies)
    return TritonScorer(
        lambda: server_urls(settings),
        version,
        model=settings.served_model,
        digest=local_model_digest(settings, version),
        options=RequestOptions(
            deadline_s=serving.deadline_s,
            in_flight=serving.in_flight,
            max_request_mb=serving.max_request_mb,
            restart_s=serving.startup_timeout_s if has_watchdog and serving.url is None else None,
        ),
        server_index=server_index,
        connect=partial(Channel, security=Security.from_settings(settings), latencies=latencies),
    )


def local_model_digest(settings: Settings, version: int) -> int | None:
    """Return `digest_to_int64` a version if its manifest is on this machine."""
    try:
        return digest_to_int64(load_version(settings, version).sha256)
    except TranslatorNotFound:  # a worker on another host reaches only the server
        return None
