# SPDX-License-Identifier: Apache-2.0
"""Settings of observability: logs, metrics, lineage and the web page."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import PageAddress, WebAddress, text_of_form


class LoggingSettings(SettingsSection):
    """Log lines on stderr."""

    format: Literal["text", "json"] = Field(default="text", description="one line of text or one JSON object for each message")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level of the package's own messages; other libraries log from warning on"
    )
    heartbeat_s: float = Field(
        default=60.0, gt=0, le=3600, description="seconds between two progress lines, if no progress bar is shown"
    )


class MetricsSettings(SettingsSection):
    """Where metrics for Prometheus are written, when a stage begins, while it runs and when it ends."""

    textfile: Annotated[str, text_of_form(r"(?s).*\.prom", "a file whose name ends with .prom")] | None = Field(
        default=None,
        description="file in the folder of node_exporter's textfile collector; one for each project",
    )
    push: WebAddress | None = Field(
        default=None, repr=False, description="URL of a push gateway; may contain a user and a password"
    )


class LineageSettings(SettingsSection):
    """Where OpenLineage events of stages are sent; disabled by default. Needs the extra ``lineage``."""

    file: str | None = Field(default=None, description="file to append events to, one JSON object per line")
    url: WebAddress | None = Field(
        default=None, repr=False, description="URL of a lineage server; events are sent to its api/v1/lineage"
    )
    api_key: str | None = Field(default=None, repr=False, description="bearer token for the server. Keep it in the environment")
    namespace: str = Field(
        default="scalr", min_length=1, description="namespace of the jobs, which are named <project>.<stage>"
    )


class UiSettings(SettingsSection):
    """The page that `scalr ui` serves on this machine."""

    port: int = Field(default=8700, ge=0, le=65535, description="port on 127.0.0.1; 0: any free port")
    dask: PageAddress | None = Field(default=None, description="address of the Dask dashboard, to link to")
    airflow: PageAddress | None = Field(default=None, description="address of Airflow's pages, to link to")
