# SPDX-License-Identifier: Apache-2.0
"""Identity of a project in the stores that several projects may share: its name, its lake and its home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from scalr_prod.core.directory_marker import ensure_marker, read_marker, rename_marker
from scalr_prod.errors import ProjectsMixed

if TYPE_CHECKING:
    from scalr_prod.config import Settings


@dataclass(frozen=True)
class ProjectIdentity:
    """A project as a store records it.

    Attributes:
        name: The project's name.
        lake: Folder or URL of its tables; ``./…`` (relative to the home) where the store lies in the home too.
        home: Its home; ``.`` where the store lies in it: the two move together.
        home_id: The home's own id, which identifies it when mounted elsewhere; None: none yet.
        formerly: An earlier name that the store may have recorded.
        moved_from: An earlier lake or home that the store may have recorded.
    """

    name: str
    lake: str
    home: str
    home_id: str | None = None
    formerly: str | None = None
    moved_from: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings, store_file: Path | None = None) -> Self:
        """Return the identity of the settings' project, as a store records it.

        Args:
            settings: The project's settings.
            store_file: The store's file, or None if it is not a single file on this machine.
        """
        project, home, lake = settings.project, settings.home, normalize_lake_url(settings.lake_url)
        alone = store_file is not None and store_file.resolve().is_relative_to(home)
        if alone and "://" not in lake and Path(lake).is_relative_to(home):
            lake = f"./{Path(lake).relative_to(home).as_posix()}"
        mark = read_marker(home)
        return cls(
            name=settings.project_name,
            lake=lake,
            home="." if alone else str(home),
            home_id=mark.id if mark else None,
            formerly=project.formerly,
            moved_from=_place(settings, project.moved_from) if project.moved_from else None,
        )

    @property
    def is_lake_in_home(self) -> bool:
        """Whether the tables lie in the project's own home."""
        return self.lake.startswith("./") or ("://" not in self.lake and Path(self.lake).is_relative_to(self.home))

    def is_located_at(self, lake: str | None, home: str | None, home_id: str | None) -> bool:
        """Return whether a recorded location is this project's: the same lake and home, or one from which it was moved."""
        return self.was_moved_from(lake, home) or (lake == self.lake and self.is_home(home, home_id))

    def was_moved_from(self, *places: str | None) -> bool:
        """Return whether ``moved_from`` names one of these lakes and homes, or a folder that contains one."""
        former = self.moved_from
        return former is not None and any(place == former or (place or "").startswith(f"{former}/") for place in places)

    def is_home(self, home: str | None, home_id: str | None) -> bool:
        """Return whether a recorded home is this one: the same path, or the same folder mounted elsewhere (not a copy)."""
        if home == self.home:
            return True
        return home is not None and home_id is not None and home_id == self.home_id and not Path(home).exists()


def bind_to_project(settings: Settings, folder: Path, setting: str) -> None:
    """Bind a folder to the project: mark an unmarked one, and update the mark of a renamed project.

    Args:
        settings: The project's settings.
        folder: An existing folder.
        setting: The settings key that names it, for the error.

    Raises:
        ProjectsMixed: It belongs to another project. Nothing was written.
        OSError: It cannot be written to.
    """
    name = settings.project_name
    mark = ensure_marker(folder, name)
    if mark.project == name:
        return
    if mark.project != settings.project.formerly:
        raise ProjectsMixed(
            f"this folder belongs to project '{mark.project}'; the settings name project '{name}'",
            where=str(folder),
            next_step=f"name another {setting} for '{name}'; if it is the same project under a new name, set "
            f'[project] formerly = "{mark.project}"',
        )
    rename_marker(folder, mark, name)


def normalize_lake_url(url: str) -> str:
    """Normalise a lake's folder or URL."""
    return url.removeprefix("file://").rstrip("/")


def _place(settings: Settings, text: str) -> str:
    """Return a location as stores record it."""
    text = normalize_lake_url(text)
    return text if "://" in text or text == "." or text.startswith("./") else str(settings.resolve(text))
