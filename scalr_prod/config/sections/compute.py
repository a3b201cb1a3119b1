# SPDX-License-Identifier: Apache-2.0
"""Settings of Dask and of the translator's serving."""

from __future__ import annotations

import os
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection

__all__ = ["ComputeSettings", "ServingSettings"]


class ComputeSettings(SettingsSection):
    """Where Dask runs."""

    dask: str = Field(
        default="local",
        pattern=r"^(local|(tcp|tls|ws|wss|ucx)://\S+)$",
        description="local: processes of this machine; else the address of a Dask scheduler, such as tcp://host:8786",
    )
    workers: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 8),
        ge=1,
        le=1024,
        description="local worker processes; default: a core each, at most 8",
    )
    threads_per_worker: int = Field(default=1, ge=1, le=64, description="threads of a local worker")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where the sequential estimator learns, where calibration and figures are worked out, and where the local scorer "
        "works; auto: on a GPU where torch sees one. A Triton server has one of its own",
    )
    connect_timeout_s: float = Field(default=10.0, gt=0, description="seconds to wait for the scheduler")
    memory_mb: int = Field(
        default=1024, ge=64, description="what DuckDB may hold in ingest and histories; beyond it, it spills"
    )
    max_expansion: float = Field(
        default=200.0,
        ge=1,
        description="size of a compressed log unpacked, as a multiple of its size; a log that unpacks to more, and to over 64 MiB, is "
        "refused",
    )


class ServingSettings(SettingsSection):
    """Where the translator is served."""

    scorer: Literal["triton", "local"] = Field(
        default="triton", description="triton: a Triton server scores; local: the same module in each worker"
    )
    url: str | None = Field(
        default=None,
        description="host:port or unix:path of a Triton gRPC endpoint, or of several with commas between; none: a local one is started",
    )
    model_name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$",
        description="default: translator on a local server, translator_<project> on one at url, which projects may share",
    )
    repository: str | None = Field(default=None, description="model repository; default: <home>/triton")
    environment: str | None = Field(default=None, description="serving environment; default: .venv-triton")
    deadline_s: float = Field(default=60.0, gt=0, description="over all attempts of one request")
    startup_timeout_s: float = Field(default=120.0, gt=0, description="seconds to wait for a local Triton")
    in_flight: int = Field(default=2, ge=1, le=64, description="requests in flight per worker")
    max_request_mb: float = Field(
        default=64.0, gt=0, le=2000, description="MiB of a request's tensors at most; a larger one is never sent"
    )
    tls: bool = Field(default=False, description="encrypt the connection to the server at url, and check its certificate")
    ca_certificate: str | None = Field(default=None, description="PEM; default: the certificate authorities that gRPC knows")
    client_certificate: str | None = Field(default=None, description="PEM, for a server that asks who we are")
    client_key: str | None = Field(default=None, description="PEM of the client certificate's key")
    header: str | None = Field(
        default=None,
        repr=False,
        pattern=r"^[a-z0-9_.-]{1,64}=[\x21-\x7e]{1,1024}$",
        description="name=value, sent with every request: opens Triton's restricted protocols. Keep it in the environment",
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="CPU threads of a local Triton, or of the local scorer in all workers together; default: all",
    )
    instances: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="processes that hold the model in Triton, on each GPU where there are some, and share out its threads; "
        "default: 2 in a local Triton of two threads or more, if the model's file has no more than 256 MB, else 1",
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return value
        addresses = _addresses(value)
        for one in addresses:
            found = re.fullmatch(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", one)
            known = found is not None and 0 < int(found[1]) < 2**16
            if not known and not re.fullmatch(r"unix:/[^\x00-\x20]+", one):
                raise ValueError(f"{one!r} is neither host:port of a gRPC endpoint, such as 127.0.0.1:8001, nor unix:/path")
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{value!r} names a server twice")
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses in ``url``, in order, without ``grpc://``; empty where a local server is started."""
        return () if self.url is None else _addresses(self.url)

    @model_validator(mode="after")
    def _certificates(self) -> Self:
        files = (self.ca_certificate, self.client_certificate, self.client_key)
        if any(files) and not self.tls:
            raise ValueError("names certificates, but tls is off: set tls = true")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("needs client_certificate and client_key together")
        if (self.tls or self.header is not None) and self.url is None:
            raise ValueError("has tls or header but no url: the local server listens on a private socket and needs neither")
        return self


def _addresses(url: str) -> tuple[str, ...]:
    return tuple(one.strip().removeprefix("grpc://") for one in url.split(","))
