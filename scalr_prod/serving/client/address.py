# SPDX-License-Identifier: Apache-2.0
"""Server addresses and the local server's secret, from the settings or from files of the running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scalr_prod.errors import ServerUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.config import Settings


def server_file(settings: Settings) -> Path:
    """Return the file that holds the local server's address, process and ports."""
    return settings.home / "triton" / "server.json"


def secret_file(settings: Settings) -> Path:
    """Return the file (mode 0600) with the secret for the local server's control protocols; each start writes a new one."""
    return settings.home / "triton-server" / "secret"


def server_urls(settings: Settings) -> tuple[str, ...]:
    """Return the addresses of the gRPC endpoints: host:port, or unix:path for a local one.

    Raises:
        ServerUnreachable: The settings name no server, and no local one was started.
    """
    if settings.serving.urls:
        return settings.serving.urls
    path = server_file(settings)
    try:
        return (str(json.loads(path.read_text(encoding="utf-8"))["url"]),)
    except (OSError, ValueError, KeyError) as error:
        raise ServerUnreachable(
            "no local Triton is running, and [serving] url is not set",
            where=str(path),
            next_step='run: scalr triton start (or set [serving] url, or scorer = "local")',
        ) from error
