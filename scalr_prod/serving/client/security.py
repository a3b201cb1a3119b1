# SPDX-License-Identifier: Apache-2.0
"""Connection security: TLS, client certificate, and the header for restricted protocols."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from scalr_prod.errors import SettingsError
from scalr_prod.serving.client.address import secret_file

if TYPE_CHECKING:
    from scalr_prod.config import Settings


#: Triton protocols that change the server or reveal its state: restricted to clients with the secret.
CONTROL_PROTOCOLS: Final = ("model-repository", "shared-memory", "statistics", "trace", "logging")
#: Name of the header with a local server's secret.
CONTROL_HEADER: Final = "scalr"


@dataclass(frozen=True)
class Security:
    """Credentials of a connection; the default is plain text.

    Attributes:
        tls: Whether to encrypt the connection and verify the server's certificate.
        authorities: Certificates (PEM) to verify it with; None: gRPC's defaults.
        certificate: Client certificate (PEM), if the server requires one.
        key: The client certificate's key (PEM).
        header: Name and value sent with every request.
    """

    tls: bool = False
    authorities: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    header: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the credentials of ``[serving]``.

        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        serving = settings.serving
        name, _, value = (serving.header or "").partition("=")
        return cls(
            tls=serving.tls,
            authorities=_read(settings, "ca_certificate"),
            certificate=_read(settings, "client_certificate"),
            key=_read(settings, "client_key"),
            header=(name, value) if serving.header else None,
        )

    @classmethod
    def for_control(cls, settings: Settings) -> Self:
        """Return the credentials for control calls: of ``[serving]``, or the secret of a local server that was started.

        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        if settings.serving.url is not None:
            return cls.from_settings(settings)
        try:
            return cls(header=(CONTROL_HEADER, secret_file(settings).read_text(encoding="ascii")))
        except OSError:  # no local server, or another user's: without the secret the server refuses with a clear error
            return cls()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the gRPC metadata of a request."""
        # Triton expects the header of restricted protocols under this prefix.
        return ((f"triton-grpc-protocol-{self.header[0]}", self.header[1]),) if self.header else ()


def _read(settings: Settings, name: str) -> bytes | None:
    path = getattr(settings.serving, name)
    if path is None:
        return None
    try:
        return settings.resolve(path).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"cannot be read: {error.strerror or error}",
            where=f"[serving] {name} = {path!r}",
            next_step="name a PEM file that this user may read",
        ) from error
