# SPDX-License-Identifier: Apache-2.0
"""Settings of storage, retention and erasure."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection, ZoneName
from scalr_prod.config.sections.values import Identifier, text_of_form
from scalr_prod.core.directory_marker import PROJECT_NAME_PATTERN


class ProjectSettings(SettingsSection):
    """The project's name and where its data is kept."""

    name: (
        Annotated[str, text_of_form(PROJECT_NAME_PATTERN, "1 to 63 lower-case letters, digits and '_', no '_' first")] | None
    ) = Field(
        default=None,
        description="the project's name in shared stores: 1 to 63 lower-case letters, digits and '_'; "
        "default: <source>_to_<target>, from the domains' names",
    )
    formerly: str | None = Field(default=None, description="the project's previous name in these stores: renames it")
    moved_from: str | None = Field(default=None, description="the previous lake or home, if it was moved (not copied)")
    timezone: ZoneName = Field(
        default="UTC",
        description="IANA zone of the project's calendar: a daily window is a day of it, in scheduled runs and backfills",
    )
    home: str = Field(
        default=".scalr", description="folder of the project's files: lake, ledger, models, training sets, reports"
    )
    lake: str | None = Field(default=None, description="folder or object-store URL of the Delta tables; default: <home>/lake")
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="passed to the library that opens a lake on an object store; may contain secrets",
    )


class LedgerSettings(SettingsSection):
    """Where run state is kept."""

    url: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")


class FeastExportSettings(SettingsSection):
    """Names of the definitions that `scalr feast export` writes to your own feature repository."""

    entity: Identifier = Field(default="user", description="name of the entity of users")
    key: Identifier = Field(
        default="user_id",
        description="its join key: the name of the user column in your entity rows",
    )
    prefix: Annotated[str, text_of_form(r"([A-Za-z][A-Za-z0-9_]*)?", "letters, digits and '_', a letter first")] | None = Field(
        default=None,
        description="prefix of the names of views and sources; default: <project>_",
    )
    source_history: bool = Field(
        default=False,
        description="also export users' source histories, with source item ids and times: only for readers who may read the source log",
    )
    owner: str = Field(default="", description="owner of the entity and the views, such as an e-mail address")
    tags: dict[str, str] = Field(
        default_factory=dict, description="tags of the entity and the views, in addition to the project's name"
    )


class FeastSettings(SettingsSection):
    """Where the Feast repository is; by default one is created under the project's home."""

    repo: str | None = Field(default=None, description="folder of the feature repository; default: <home>/feature_repo")
    registry: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")
    online_store: Literal["sqlite", "redis"] = Field(default="sqlite", description="store that serves online features")
    redis: str = Field(
        default="localhost:6379",
        repr=False,
        description="address of Redis, if it is the online store; may contain a password",
    )
    writable: tuple[str, ...] = Field(
        default=(), description="addresses of your own Delta tables that write_to_offline_store may append to"
    )
    owner: str = Field(
        default="", description="owner of the Feast project, its entities, views and services, such as an e-mail address"
    )
    tags: dict[str, str] = Field(
        default_factory=dict, description="tags of the Feast project, its entities, views and services"
    )
    label_view: bool = Field(
        default=False,
        description="register published synthetic events as a Feast label view, synthetic_target_labels, too: their key is user and item, "
        "and a run is a labeler",
    )
    operator_roles: tuple[str, ...] = Field(
        default=(),
        description="roles that Feast's permissions give every action on every object, provenance and source events among them; default: "
        "no permission is defined",
    )
    reader_roles: tuple[str, ...] = Field(
        default=(),
        description="roles that Feast's permissions let read the views of the target domain, and nothing else; default: no permission is "
        "defined",
    )
    export: FeastExportSettings = Field(
        default_factory=FeastExportSettings, description="names in the file that `scalr feast export` writes"
    )

    @field_validator("tags")
    @classmethod
    def _no_clock(cls, value: dict[str, str]) -> dict[str, str]:
        if "knowledge_time" in value:
            raise ValueError(
                "has 'knowledge_time', which would change when rows become visible: this project's views have the strict clock"
            )
        return value

    @model_validator(mode="after")
    def _roles(self) -> Self:
        if self.reader_roles and not self.operator_roles:
            raise ValueError(
                "has 'reader_roles' without 'operator_roles': nobody could then apply definitions by a Feast server"
            )
        if shared := sorted(set(self.reader_roles) & set(self.operator_roles)):
            raise ValueError(f"has {', '.join(shared)} both in 'reader_roles' and in 'operator_roles'")
        return self


class RetentionSettings(SettingsSection):
    """What `scalr maintain` keeps, in addition to everything that a published, served or running item refers to."""

    days: float = Field(
        default=30,
        ge=0,
        le=36_500,
        description="days after which staged files of ended runs, training sets and translators may be removed",
    )
    training_sets: int = Field(
        default=10, ge=1, description="number of latest versions of each training set that are always kept"
    )
    translators: int = Field(default=10, ge=1, description="number of latest translator versions that are always kept")
    files_days: float = Field(
        default=7,
        ge=0,
        le=36_500,
        description="days for which a replaced version of a table can still be read; unfinished runs and commands at work can read theirs "
        "for longer",
    )


class ForgettingSettings(SettingsSection):
    """Consequences of erasing users (`scalr forget`)."""

    grace_days: float = Field(
        default=30,
        ge=0,
        le=36_500,
        description="days for which runs may use a translator that learned from an erased user; then a new one must be trained",
    )
    model_grace_days: float = Field(
        default=30,
        ge=0,
        le=36_500,
        description="days within which a registered model (`scalr dataset register-model`) is to be trained without an erased user's "
        "rows; `scalr forget` and `scalr status` show the date",
    )
