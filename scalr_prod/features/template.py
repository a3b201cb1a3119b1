# SPDX-License-Identifier: Apache-2.0
"""A new feature repository over Delta tables, written from a template; it needs Feast and feast-delta alone."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scalr_prod.core import assets
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import FeatureStoreError, ForeignFiles

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Files of the template.
_FILES: Final = ("README.md", "feature_store.yaml", "definitions.py", "make_events.py", "retrieve.py")
_DEFAULT_NAME: Final = "recommender"


@dataclass(frozen=True)
class TemplateReport(Jsonable):
    """A feature repository that was written.

    Attributes:
        path: Its folder.
        project: The name of its Feast project.
        files: Its files.
        commands: What to run in the folder, in this order.
    """

    path: str
    project: str
    files: Sequence[str]
    commands: Sequence[str]


def write_template(folder: Path) -> TemplateReport:
    """Write a small recommendation repository: events, user histories and item popularity, with made-up data.

    Args:
        folder: A new or empty folder; its name is the Feast project's.

    Raises:
        ForeignFiles: The folder is not empty. Nothing was written.
        FeatureStoreError: The folder cannot be written to.
    """
    template = assets.asset_folder("feature_repo") / "template"
    folder = folder.absolute()
    project = _project_name(folder.name)
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise ForeignFiles("is not empty; nothing was written", where=str(folder), next_step="name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # All files at once: an interrupted command leaves no half of a repository.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
            unfinished = Path(made) / "repository"
            unfinished.mkdir()
            for name in _FILES:
                text = (template / name).read_text(encoding="utf-8")
                (unfinished / name).write_text(text.replace("$project", project), encoding="utf-8")
            if folder.is_dir():
                folder.rmdir()
            shutil.move(unfinished, folder)
    except OSError as error:
        raise FeatureStoreError(
            f"cannot be written to: {error.strerror or error}",
            where=str(folder),
            next_step="name a folder that you may write to",
        ) from error
    commands = [
        "python make_events.py",
        "feast apply",
        "feast materialize 2024-01-01T00:00:00 2024-02-01T00:00:00",
        "python retrieve.py",
    ]
    return TemplateReport(str(folder), project, _FILES, commands)


def _project_name(folder: str) -> str:
    """Return a name that Feast takes: letters, digits and _, a letter first."""
    return re.sub(r"[^A-Za-z0-9]+", "_", folder).strip("_").lstrip("0123456789_") or _DEFAULT_NAME
