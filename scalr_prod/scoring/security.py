# SPDX-License-Identifier: Apache-2.0
"""Connection security: TLS, client certificate, and the header for restricted protocols."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from scalr_prod.errors import SettingsError
from scalr_prod.scoring.address import secret_file

if TYPE_CHECKING:
    from scalr_prod.settings import Settings

__all__ = ["CONTROL", "HEADER", "Security"]

#: Protocols of Triton that change the server or tell about it: only those who send the secret may use them.
CONTROL: Final = ("model-repository", "shared-memory", "statistics", "trace", "logging")
#: Name of the header that carries a local server's secret.
HEADER: Final = "scalr"


@dataclass(frozen=True)
class Security:
    """Credentials of a connection; the default is plain text.

    Attributes:
        tls: Whether to encrypt, and to check the server's certificate.
        authorities: Certificates (PEM) to check it against; None: those that gRPC knows.
        certificate: Our own certificate (PEM), where the server asks for one.
        key: Its key (PEM).
        header: Name and value sent with every request.
    """

    tls: bool = False
    authorities: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    header: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Self:
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
    def control(cls, settings: Settings) -> Self:
        """Return the credentials for control calls: of ``[serving]``, or the secret of a local server that was started.

        Raises:
            SettingsError: A certificate or key cannot be read.
        """
        if settings.serving.url is not None:
            return cls.of(settings)
        try:
            return cls(header=(HEADER, secret_file(settings).read_text(encoding="ascii")))
        except OSError:  # no server was started, or another user's: without the secret the server refuses, and says so
            return cls()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the gRPC metadata of a request."""
        # Triton looks for its restricted protocols' header under this prefix.
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
