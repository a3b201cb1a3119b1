# SPDX-License-Identifier: Apache-2.0
"""Settings of storage, retention and erasure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scalr_prod.config.domains import SettingsSection
from scalr_prod.core.directory_marker import PROJECT_NAME_PATTERN

__all__ = [
    "FeastExportSettings",
    "FeastSettings",
    "ForgettingSettings",
    "LedgerSettings",
    "ProjectSettings",
    "RetentionSettings",
]


class ProjectSettings(SettingsSection):
    """The project's name and where its data is kept."""

    name: str | None = Field(
        default=None,
        pattern=PROJECT_NAME_PATTERN,
        description="1 to 63 small letters, digits and '_'; what stores that several projects share know it by; "
        "default: <source>_to_<target>, from the domains' names",
    )
    formerly: str | None = Field(default=None, description="the name that those stores know the project by: renames it")
    moved_from: str | None = Field(
        default=None, description="the lake or home that those stores know the project by: it was moved, not copied"
    )
    home: str = Field(
        default=".scalr", description="folder of everything that is made here: lake, ledger, models, training sets, reports"
    )
    lake: str | None = Field(default=None, description="folder or object-store URL of the Delta tables; default: <home>/lake")
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="passed to the library that opens a lake on an object store; may hold secrets",
    )


class LedgerSettings(SettingsSection):
    """Where run state is kept."""

    url: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")


class FeastExportSettings(SettingsSection):
    """Names of the definitions that `scalr feast export` writes to your own feature repository."""

    entity: str = Field(default="user", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="name of the entity of users")
    key: str = Field(
        default="user_id",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="its join key: what the column of users is called in your entity rows",
    )
    prefix: str | None = Field(
        default=None,
        pattern=r"^([A-Za-z][A-Za-z0-9_]*)?$",
        description="before the names of views and sources; default: <project>_",
    )
    owner: str = Field(default="", description="of the entity and the views, such as an e-mail address")
    tags: dict[str, str] = Field(default_factory=dict, description="of the entity and the views, beside the project's name")


class FeastSettings(SettingsSection):
    """Where the Feast repository is; by default one is created under the project's home."""

    repo: str | None = Field(default=None, description="folder of the feature repository; default: <home>/feature_repo")
    registry: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")
    online_store: Literal["sqlite", "redis"] = Field(default="sqlite", description="where online features are served from")
    redis: str = Field(
        default="localhost:6379",
        repr=False,
        description="address of Redis, where that is the online store; may hold a password",
    )
    writable: tuple[str, ...] = Field(
        default=(), description="Whole addresses of Delta tables of your own that write_to_offline_store may append to"
    )
    export: FeastExportSettings = Field(
        default_factory=FeastExportSettings, description="names of what `scalr feast export` writes"
    )


class RetentionSettings(SettingsSection):
    """What `scalr maintain` keeps, besides everything that a published, served or running item refers to."""

    days: float = Field(
        default=30,
        ge=0,
        le=36_500,
        description="age from which staged parts of ended runs, training sets and translators may go",
    )
    training_sets: int = Field(default=10, ge=1, description="latest versions of each training set that stay at any age")
    translators: int = Field(default=10, ge=1, description="latest versions of the translator that stay at any age")
    files_days: float = Field(
        default=7,
        ge=0,
        le=36_500,
        description="for how long a replaced version of a table can still be read; 0: not at all, not even by a command that has begun "
        "to read it",
    )


class ForgettingSettings(SettingsSection):
    """Consequences of erasing users (`scalr forget`)."""

    grace_days: float = Field(
        default=30,
        ge=0,
        description="for how long runs may go on using a translator that learned from a forgotten user; after it, train a new one",
    )
