# SPDX-License-Identifier: Apache-2.0
"""Wheel of this package for the serving environment: client and server must run the same version."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Final

from scalr_prod.errors import ServingError

__all__ = ["build_wheel", "checkout_folder"]

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_NAME: Final = "scalr-prod"


def checkout_folder() -> Path | None:
    """Return the checkout that the package runs from; None if it was installed from a wheel."""
    project = _PACKAGE.parent / "pyproject.toml"
    try:
        named = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError):
        return None
    return _PACKAGE.parent if named == _NAME else None


def build_wheel(folder: Path) -> Path:
    """Build a wheel of the installed package, to install it elsewhere without a package index.

    Args:
        folder: Folder to write the wheel to.

    Raises:
        ServingError: The installed package has no metadata.
    """
    try:
        distribution = metadata.distribution(_NAME)
    except metadata.PackageNotFoundError as error:
        raise ServingError(
            f"{_NAME} is not installed in the running Python", where=str(_PACKAGE), next_step="install it with pip"
        ) from error
    info = f"scalr_prod-{distribution.version}.dist-info"
    content = {f"{info}/{name}": (distribution.read_text(name) or "").encode() for name in ("METADATA", "WHEEL")}
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content[f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"] = path.read_bytes()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in content.items())
    wheel = folder / f"scalr_prod-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
