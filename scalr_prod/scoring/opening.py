"""The scorer that the settings ask for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scalr_prod.errors import TranslatorNotFound
from scalr_prod.scoring.address import server_url
from scalr_prod.scoring.local import LocalScorer
from scalr_prod.scoring.protocol import digest_of
from scalr_prod.scoring.triton import TritonScorer

if TYPE_CHECKING:
    from pathlib import Path

    from scalr_prod.scoring.scorer import Scorer
    from scalr_prod.settings import Settings

__all__ = ["known_digest", "open_scorer", "version_folder"]


def open_scorer(settings: Settings, version: int, *, threads: int | None = None) -> Scorer:
    """Open the scorer of one version. Each process opens its own.

    Args:
        settings: The project's settings; ``[serving] scorer`` decides.
        version: The translator version that must answer.
        threads: Threads of the local scorer; default ``[serving] threads``.

    Raises:
        ServerUnreachable: Triton does not answer.
        ModelNotReady: Triton does not hold the version.
        ModelVersionMismatch: Another model answers.
        TranslatorNotFound: The local scorer finds no such version.
    """
    serving = settings.serving
    if serving.scorer == "local":
        return LocalScorer(version_folder(settings, version), version, threads=threads or serving.threads)
    return TritonScorer(
        lambda: server_url(settings),
        version,
        model=serving.model_name,
        deadline_s=serving.deadline_s,
        in_flight=serving.in_flight,
        max_request_mb=serving.max_request_mb,
        digest=known_digest(settings, version),
    )


def version_folder(settings: Settings, version: int) -> Path:
    """Folder of a trained version.

    Raises:
        TranslatorNotFound: There is none.
    """
    folder = settings.home / "models" / "translator" / str(version)
    if not (folder / "manifest.json").is_file():
        there = sorted(path.name for path in folder.parent.glob("[0-9]*"))
        raise TranslatorNotFound(
            f"there is no version {version}; there are: {', '.join(there) or 'none'}",
            where=str(folder),
            next_step="train one: scalr translator train; list them: scalr translator list",
        )
    return folder


def known_digest(settings: Settings, version: int) -> int | None:
    """`digest_of` a version, where its manifest lies on this machine."""
    try:
        manifest = json.loads((version_folder(settings, version) / "manifest.json").read_text(encoding="utf-8"))
    except TranslatorNotFound:  # a worker on another host has only the server
        return None
    return digest_of(manifest["sha256"])
