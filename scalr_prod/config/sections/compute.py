# SPDX-License-Identifier: Apache-2.0
"""Settings of Dask and of the translator's serving."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import text_of_form


class ComputeSettings(SettingsSection):
    """Where Dask runs."""

    dask: Annotated[
        str,
        text_of_form(r"local|(tcp|tls|ws|wss|ucx)://\S+", "local, or the address of a scheduler: tcp:// or tls://host:port"),
    ] = Field(
        default="local",
        description="local: processes of this machine; else the address of a Dask scheduler, such as tls://host:8786",
    )
    ca_certificate: str | None = Field(
        default=None, description="PEM, for a tls:// scheduler; default for all three: Dask's own settings"
    )
    client_certificate: str | None = Field(default=None, description="PEM, which the scheduler checks")
    client_key: str | None = Field(default=None, description="PEM of the client certificate's key")
    workers: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 8),
        ge=1,
        le=1024,
        description="number of local worker processes; default: one per core, at most 8",
    )
    threads_per_worker: int = Field(default=1, ge=1, le=64, description="threads of a local worker")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="device of the sequential estimator's training, of calibration and metrics, and of the local scorer; "
        "auto: a GPU if torch finds one. A Triton server chooses its own",
    )
    connect_timeout_s: float = Field(default=10.0, gt=0, description="seconds to wait for the scheduler")
    memory_mb: int = Field(default=1024, ge=64, description="DuckDB's memory limit in MB; beyond it, it spills to disk")
    max_expansion: float = Field(
        default=200.0,
        ge=1,
        description="maximum unpacked size of a compressed log, as a multiple of its size; a log that unpacks to more, and to over "
        "64 MiB, is refused",
    )

    @property
    def is_encrypted(self) -> bool:
        """Whether the address of the scheduler is encrypted; the local cluster always is."""
        return self.dask == "local" or self.dask.startswith(("tls://", "wss://"))

    @model_validator(mode="after")
    def _certificates(self) -> Self:
        files = (self.ca_certificate, self.client_certificate, self.client_key)
        if any(files) and (self.dask == "local" or not self.is_encrypted):
            raise ValueError("names certificates, but dask is not a tls:// address")
        if any(files) and not all(files):
            raise ValueError("needs ca_certificate, client_certificate and client_key together")
        return self


class ServingSettings(SettingsSection):
    """Where the translator is served."""

    scorer: Literal["triton", "local"] = Field(
        default="triton", description="triton: a Triton server scores; local: the same module in each worker"
    )
    url: str | None = Field(
        default=None,
        description="host:port or unix:path of a Triton gRPC endpoint, or several separated by commas; default: start a local one",
    )
    model_name: (
        Annotated[
            str,
            text_of_form(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", "1 to 64 letters, digits, '_', '.' and '-', no '.' or '-' first"),
        ]
        | None
    ) = Field(
        default=None,
        description="name of the model; default: translator on a local server, translator_<project> on a server at url",
    )
    repository: str | None = Field(default=None, description="model repository; default: <home>/triton")
    environment: str | None = Field(default=None, description="serving environment; default: .venv-triton")
    deadline_s: float = Field(default=60.0, gt=0, description="seconds for all attempts of one request")
    startup_timeout_s: float = Field(default=120.0, gt=0, description="seconds to wait for a local Triton")
    in_flight: int = Field(default=2, ge=1, le=64, description="requests in flight per worker")
    max_request_mb: float = Field(
        default=64.0, gt=0, le=2000, description="largest size of a request's tensors, MiB; a larger request is an error"
    )
    tls: bool = Field(default=False, description="encrypt the connection to the server at url, and check its certificate")
    ca_certificate: str | None = Field(default=None, description="PEM; default: the certificate authorities that gRPC knows")
    client_certificate: str | None = Field(default=None, description="PEM, for a server that requires client certificates")
    client_key: str | None = Field(default=None, description="PEM of the client certificate's key")
    header: (
        Annotated[
            str,
            text_of_form(
                r"[a-z0-9_.-]{1,64}=[\x21-\x7e]{1,1024}", "name=value: a name in lower case, and a value without spaces"
            ),
        ]
        | None
    ) = Field(
        default=None,
        repr=False,
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
        description="model processes in Triton (per GPU, if there are GPUs), which share its threads; "
        "default: 2 in a local Triton with two or more threads if the model's file has at most 256 MB, else 1",
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return value
        addresses = _addresses(value)
        for address in addresses:
            match = re.fullmatch(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
            known = match is not None and 0 < int(match[1]) < 2**16
            if not known and not re.fullmatch(r"unix:/[^\x00-\x20]+", address):
                raise ValueError(f"{address!r} is neither host:port of a gRPC endpoint, such as 127.0.0.1:8001, nor unix:/path")
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{value!r} names a server twice")
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses in ``url``, in order, without ``grpc://``; empty if a local server is started."""
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
    return tuple(address.strip().removeprefix("grpc://") for address in url.split(","))
