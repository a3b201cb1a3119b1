# SPDX-License-Identifier: Apache-2.0
"""The ``[domains]`` section: where each domain's log is, and its column names."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from scalr_prod.core.redaction import redact_url
from scalr_prod.plugins import READERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scalr_prod.schemas import Domain


_NAME_LENGTH: Final = 63
#: Weight of an event type; float32 in the lake.
EventWeight = Annotated[float, Field(ge=1e-9, le=1e6)]


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{value!r} is not an IANA time zone, such as 'UTC' or 'Europe/Paris'") from error
    return value


#: IANA name of a time zone.
ZoneName = Annotated[str, AfterValidator(_known_zone)]


class SettingsSection(BaseModel):
    """Base of the sections of scalr.toml: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, redact_url(value) if isinstance(value, str) else value


class LogColumns(SettingsSection):
    """Column names of a log. ``created`` is the knowledge time (default: the event's own time)."""

    user: str = Field(default="user_id", description="column of the user's id")
    item: str = Field(default="item_id", description="column of the item's id")
    timestamp: str = Field(default="timestamp", description="column of the event's time")
    created: str | None = Field(
        default=None, description="column of the time from which the row was known; default: the event's time"
    )
    weight: str | None = Field(
        default=None, description="column of the event's weight, a finite number of at least 0; default: 1 for every event"
    )
    event_id: str | None = Field(
        default=None, description="column of the event's id: a known id changes the event and never counts twice"
    )
    event_type: str | None = Field(default=None, description="column of the event's type, such as view or purchase")
    value: str | None = Field(default=None, description="column of a number, such as the price paid; stored but not used")
    consent: str | None = Field(
        default=None,
        description="column of the user's consent to the use of source events, true or false; a user's latest event decides, and null is "
        "false. Source domains only; default: consent is not required",
    )
    recommended_by: str | None = Field(
        default=None,
        description="of the target: column of the model or variant whose recommendation led to the event, empty for all other events; see "
        "[translator] recommended_events",
    )


class ItemColumns(SettingsSection):
    """Column names of an item file."""

    item: str = Field(default="item_id", description="column of the item's id")
    title: str | None = Field(default="title", description="column of the title")
    category: str | None = Field(default="category", description="column of the category")
    value: str | None = Field(default="value", description="column of a number, such as the price")


def _reader(value: str | None) -> str | None:
    if value is not None and (problem := READERS.find_problem(value)) is not None:
        raise ValueError(problem)
    return value


class UserMapColumns(SettingsSection):
    """Column names of the user map."""

    source: str | None = Field(default=None, description="column of the source's ids; default: guessed from its name")
    target: str | None = Field(default=None, description="column of the target's ids; default: guessed from its name")


class UserMapSettings(SettingsSection):
    """The map from users of the source logs to users of the target log: files, a table or a SQL query."""

    map: str | None = Field(
        default=None, description="pairs of a source id and a target id: path, glob, folder or URL, as for a domain's events"
    )
    query: str | None = Field(default=None, description="SQL that returns the pairs, instead of map")
    url: str | None = Field(
        default=None, repr=False, description="SQLAlchemy URL that the query is put to; keep a password in the environment"
    )
    format: str | None = Field(default=None, description="format of map, as for a domain")
    columns: UserMapColumns = Field(default=UserMapColumns(), description="what the map's columns are called")
    storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="passed to the library that opens the map; may contain secrets"
    )

    @property
    def is_configured(self) -> bool:
        """Whether a map is configured."""
        return self.map is not None or self.query is not None

    @property
    def sql_source(self) -> tuple[str, str] | None:
        """Database URL and query, if the map comes from SQL."""
        return None if self.query is None or self.url is None else (self.url, self.query)

    @field_validator("format")
    @classmethod
    def _known_reader(cls, value: str | None) -> str | None:
        return _reader(value)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.map is not None and self.query is not None:
            raise ValueError("has both 'map' and 'query': name one of them")
        if self.query is not None and self.url is None:
            raise ValueError("has a 'query' but no 'url' (a SQLAlchemy URL; keep its password in the environment)")
        return self


class DomainSettings(SettingsSection):
    """One domain's log: a Delta or Iceberg table, files (path, glob or fsspec URL), or a SQL query."""

    name: str = Field(description="the domain's name: 1 to 64 letters, digits, '_', '.', '-' or spaces")
    formerly: str | None = Field(default=None, description="the domain's previous name in the project's tables: renames it")
    events: str | None = Field(default=None, description="the log: path, glob or folder, or fsspec URL")
    query: str | None = Field(default=None, description="SQL that returns the log, instead of events")
    url: str | None = Field(
        default=None, repr=False, description="SQLAlchemy URL that the query is put to; keep a password in the environment"
    )
    format: str | None = Field(
        default=None, description="parquet, csv, jsonl, delta, iceberg, or your own log reader; default: detected"
    )
    version: int | None = Field(
        default=None, ge=0, description="Delta version or Iceberg snapshot id of events; default: latest"
    )
    columns: LogColumns = Field(default=LogColumns(), description="what the log's columns are called")
    timezone: ZoneName | None = Field(
        default=None, description="IANA zone of times without a zone; by default they are refused"
    )
    timestamp_format: str | None = Field(
        default=None, description="strptime format of local times that are not ISO 8601, such as %d.%m.%Y %H:%M"
    )
    ahead_days: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="refuse an event that happened, or became known, more than this many days after now",
    )
    earliest: AwareDatetime | None = Field(default=None, description="refuse an event before this time")
    bad_times: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="refuse a log with an event beyond ahead_days or earliest, or leave such events out and count them",
    )
    bad_ids: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="refuse a log with an event without a user or item id (null, blank, or a word such as NULL in a text file), or "
        "leave such events out and count them",
    )
    types: dict[str, EventWeight] = Field(
        default_factory=dict,
        description="weight of an event by its type, times its own weight: { view = 0.1, purchase = 1.0 }; default: 1 each",
    )
    unknown_types: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="refuse a log with an event of another type than those in types, or leave such events out and count them",
    )
    weights_for: Literal["all", "downstream"] = Field(
        default="all",
        description="where type weights apply: translator, training sets and downstream models, or only the latter two. In a source "
        "domain the translator counts every event once: there, type weights other than 1 require downstream",
    )
    max_user_day: int | None = Field(
        default=None,
        ge=1,
        description="largest number of events of a user on one day of [project] timezone, against bots; default: no limit",
    )
    over_user_day: Literal["drop", "cap"] = Field(
        default="drop", description="of a user's day above max_user_day, leave out all events, or all after the first ones"
    )
    duplicates: Literal["notice", "keep", "drop"] = Field(
        default="notice",
        description="rows that are equal in every column: notice keeps and counts them, and refuses a log that occurs twice; "
        "keep never refuses; drop takes each once",
    )
    max_left_out: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="refuse the log if these limits leave out more than this share of its rows",
    )
    max_removed_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the domain's events that scalr ingest --replace may remove; above it, it is refused",
    )
    consent: str | None = Field(
        default=None,
        description="file of the users' consents, instead of columns.consent: path or URL as for events, with a row for each user: the "
        "log's column of users, and consent. Users without a row have not consented",
    )
    items: str | None = Field(default=None, description="file of items with their titles; path or URL as for events")
    items_version: int | None = Field(default=None, ge=0, description="version of items, as for events")
    item_columns: ItemColumns = Field(default=ItemColumns(), description="what its columns are called")
    storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="passed to the library that opens the log; may contain secrets"
    )

    @property
    def sql_source(self) -> tuple[str, str] | None:
        """Database URL and query, if the log comes from SQL."""
        return None if self.query is None or self.url is None else (self.url, self.query)

    @property
    def requires_consent(self) -> bool:
        """Whether the domain's events may be used with their user's consent only."""
        return self.consent is not None or self.columns.consent is not None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}", value):
            raise ValueError("must be 1 to 64 letters, digits, '_', '.', '-' or spaces")
        return value

    @field_validator("format")
    @classmethod
    def _known_reader(cls, value: str | None) -> str | None:
        return _reader(value)

    @field_validator("timestamp_format")
    @classmethod
    def _whole_date(cls, value: str | None) -> str | None:
        if value is not None and "%Y" not in value:
            raise ValueError(f"{value!r} has no four-digit year (%Y), as in %d.%m.%Y")
        if unread := {"%f", "%z", "%Z"} & set(re.findall("%.", value or "")):
            raise ValueError(
                f"{value!r} has {' and '.join(sorted(unread))}, but reads local times in whole seconds: leave timestamp_format out if the "
                "times are ISO 8601, with offsets or fractions; write other times as ISO 8601 before"
            )
        return value

    @model_validator(mode="after")
    def _weights_of_types(self) -> Self:
        if self.types and self.columns.event_type is None:
            raise ValueError("has 'types', but no column of event types: map columns.event_type")
        return self

    @model_validator(mode="after")
    def _one_consent(self) -> Self:
        if self.consent is not None and self.columns.consent is not None:
            raise ValueError("has both 'consent' and 'columns.consent': name the file or the column")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.events is None) == (self.query is None):
            raise ValueError("needs either 'events' (path, glob or URL of files) or 'query' with 'url' (SQL)")
        if self.query is not None and self.url is None:
            raise ValueError("has a 'query' but no 'url' (a SQLAlchemy URL; keep its password in the environment)")
        if (self.query is not None and self.version is not None) or (self.items is None and self.items_version is not None):
            raise ValueError("has a version without its source: 'version' belongs to 'events', 'items_version' to 'items'")
        return self


class Domains(SettingsSection):
    """The target domain, and one source domain (``source``) or several by name (``sources``).

    A *place* is the key of a log's settings below ``[domains]``: ``source``, ``sources.<name>`` or ``target``.
    """

    source: DomainSettings | None = Field(default=None, description="the source domain")
    sources: dict[str, DomainSettings] = Field(
        default_factory=dict, description="several source domains, by name, instead of source"
    )
    target: DomainSettings = Field(description="the target domain")

    @field_validator("sources", mode="before")
    @classmethod
    def _named_by_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names: dict[str, str] = {}
        for key in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", str(key)):
                raise ValueError(f"'{key}' is not a valid name: 1 to 64 letters, digits and '_', no digit first")
            # DuckDB's tables and views of each log have its name, without regard to case.
            if (other := names.setdefault(str(key).lower(), key)) != key:
                raise ValueError(f"'{other}' and '{key}' differ in case only: rename one of them")
        return {key: {"name": key} | source if isinstance(source, dict) else source for key, source in value.items()}

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.source is None) == (not self.sources):
            both = "has both 'source' and 'sources'" if self.sources else "names no source domain"
            raise ValueError(f"{both}: write [domains.source] for one, or [domains.sources.<name>] for each of several")
        for key, source in self.sources.items():
            if source.name != key:
                raise ValueError(f"[domains.sources.{key}] name is '{source.name}': leave it out, its name is '{key}'")
            if key == self.target.name:
                raise ValueError(f"[domains.sources.{key}] has the name of the target domain: rename one of them")
            if source.formerly is not None and self.has_several_sources:
                raise ValueError(
                    f"[domains.sources.{key}] formerly: one of several sources cannot be renamed, since its name is part of "
                    "its items' ids; name another [project] home"
                )
        return self

    @model_validator(mode="after")
    def _consent_of_sources(self) -> Self:
        if self.target.requires_consent:
            raise ValueError(
                "[domains.target] requires consent, but consent is to the use of source events: set it in the source domain"
            )
        return self

    @model_validator(mode="after")
    def _weights_of_source_types(self) -> Self:
        for place in self.log_keys("source"):
            source = self[place]
            if source.columns.recommended_by is not None:
                raise ValueError(f"[domains.{place}.columns] has recommended_by, which only the target domain has: remove it")
            if source.weights_for == "all" and any(weight != 1 for weight in source.types.values()):
                raise ValueError(
                    f"[domains.{place}] has types of other weights than 1, which the translator does not know in a source domain: a "
                    'history holds every event once. Set weights_for = "downstream" where they are to weigh downstream alone; to leave '
                    'a type out of everything, take it out of types and set unknown_types = "drop"'
                )
        return self

    @property
    def has_several_sources(self) -> bool:
        """Whether there are two or more source domains; source items are then identified by domain and id (`schemas.item_id_prefix`)."""
        return len(self.sources) > 1

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the source domains, in the order of the settings."""
        return tuple(self.sources) or ((self.source.name,) if self.source else ())

    @property
    def consent_domains(self) -> tuple[str, ...]:
        """Names of the source domains whose events may be used with their user's consent only, sorted."""
        sections = (self[place] for place in self.log_keys("source"))
        return tuple(sorted(section.name for section in sections if section.requires_consent))

    @property
    def default_project_name(self) -> str:
        """Default project name: derived from the domains' names, 1 to 63 characters of a-z, 0-9 and _."""
        names = ("_and_".join(self.source_names), self.target.name)
        full = "_to_".join(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "domain" for name in names)
        if len(full) <= _NAME_LENGTH:
            return full
        digest = hashlib.sha256(full.encode()).hexdigest()[:8]
        return f"{full[: _NAME_LENGTH - len(digest) - 1].rstrip('_')}_{digest}"

    def log_keys(self, domain: Domain) -> tuple[str, ...]:
        """Return the keys, below ``[domains]``, of a domain's logs."""
        if domain == "target" or self.source is not None:
            return (domain,)
        return tuple(f"sources.{name}" for name in self.sources)

    def __getitem__(self, place: str) -> DomainSettings:
        section = self.sources[place.removeprefix("sources.")] if place.startswith("sources.") else getattr(self, place)
        if section is None:
            raise KeyError(place)
        return section
