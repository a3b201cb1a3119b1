# SPDX-License-Identifier: Apache-2.0
"""Where the servers are, and the secret of a local one: the settings' address, or what was written down when it was started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scalr_prod.errors import ServerUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.settings import Settings

__all__ = ["secret_file", "server_file", "server_urls"]


def server_file(settings: Settings) -> Path:
    """The file in which the local server's address, process and ports are written down."""
    return settings.home / "triton" / "server.json"


def secret_file(settings: Settings) -> Path:
    """The file (mode 0600) that holds the secret which opens the local server's control protocols; each start makes a new one."""
    return settings.home / "triton-server" / "secret"


def server_urls(settings: Settings) -> tuple[str, ...]:
    """Addresses of the gRPC endpoints, one or more: host:port, or unix:path of a local one.

    Raises:
        ServerUnreachable: The settings name none, and no local server was started.
    """
    if settings.serving.urls:
        return settings.serving.urls
    path = server_file(settings)
    try:
        return (str(json.loads(path.read_text(encoding="utf-8"))["url"]),)
    except (OSError, ValueError, KeyError) as error:
        raise ServerUnreachable(
            "no local Triton is running, and [serving] url names none",
            where=str(path),
            next_step='run: scalr triton start (or set [serving] url, or scorer = "local")',
        ) from error
