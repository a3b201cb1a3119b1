# SPDX-License-Identifier: Apache-2.0
"""Settings: scalr.toml and ``SCALR_*`` environment variables, read into one frozen ``Settings``.

The environment takes precedence over the file (``SCALR_LEDGER__URL=…`` sets ``[ledger] url``), so that secrets need not be in the file.
Unknown keys are errors. Relative paths are relative to the file. No other module reads configuration.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from scalr_prod.config.domains import Domains, UserMapSettings
from scalr_prod.config.environment import (
    ENV_PREFIX,
    check_environment,
    invalid_json_error,
    known_keys,
    variable_for,
    variables_below,
)
from scalr_prod.config.sections import (
    ComputeSettings,
    DownstreamSettings,
    ExperimentSettings,
    FeastSettings,
    ForgettingSettings,
    GenerationSettings,
    HistorySettings,
    LedgerSettings,
    LineageSettings,
    LoggingSettings,
    MetricsSettings,
    ProjectSettings,
    PublicationSettings,
    QualitySettings,
    RetentionSettings,
    ServingSettings,
    TrainingSetSettings,
    TranslatorSettings,
    UiSettings,
)
from scalr_prod.core.directory_marker import read_marker
from scalr_prod.core.redaction import secrets_in
from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: Characters of a secret that is looked for in all output.
_SHORTEST_SECRET: Final = 8


class Settings(BaseSettings):
    """All settings of a project. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    project: ProjectSettings = ProjectSettings()
    domains: Domains
    users: UserMapSettings = UserMapSettings()
    histories: HistorySettings = HistorySettings()
    translator: TranslatorSettings = Field(default_factory=TranslatorSettings)
    # Factories: some defaults depend on which keys are set, and an instance as default would count as all keys set.
    generation: GenerationSettings = Field(default_factory=GenerationSettings)
    quality: QualitySettings = QualitySettings()
    publication: PublicationSettings = PublicationSettings()
    training_set: TrainingSetSettings = Field(default_factory=TrainingSetSettings)
    experiment: ExperimentSettings = ExperimentSettings()
    retention: RetentionSettings = RetentionSettings()
    forgetting: ForgettingSettings = ForgettingSettings()
    downstream: DownstreamSettings = Field(default_factory=DownstreamSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    feast: FeastSettings = FeastSettings()
    ledger: LedgerSettings = LedgerSettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    lineage: LineageSettings = LineageSettings()
    ui: UiSettings = UiSettings()

    #: Base of relative paths: the folder of scalr.toml.
    base: Path = Field(default_factory=Path.cwd, exclude=True)

    _named: frozenset[str] = PrivateAttr(default=frozenset())
    #: Content of the file and of the overrides, for `origin`.
    _read: tuple[dict[str, Any], dict[str, Any]] = PrivateAttr(default=({}, {}))
    #: The project's name in the home's marker: the project keeps it when a domain is renamed or a source added.
    _remembered: str | None = PrivateAttr(default=None)

    def __init__(self, **sections: Any) -> None:
        super().__init__(**sections)
        self._named = frozenset(_keys(sections) | _named_by_environment())
        mark = read_marker(self.home)
        self._remembered = mark.project if mark else None

    @property
    def explicit_keys(self) -> frozenset[str]:
        """Keys set by scalr.toml, an override or the environment, as ``section.key``; all others have their defaults."""
        return self._named

    def remember_sources(self, file: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """Remember the sources of the settings, for `origin`.

        Args:
            file: Content of scalr.toml.
            overrides: Overrides that were passed with it.

        Returns:
            These settings.
        """
        self._read = (dict(file), dict(overrides))
        return self

    @model_validator(mode="after")
    def _check_databases(self) -> Self:
        ledger, registry = self.ledger.url, self.feast.registry
        if ledger and registry and _database(ledger) == _database(registry):
            raise ValueError(
                "[ledger] url and [feast] registry name one database, and both have a table called projects: create a database for each"
            )
        return self

    @model_validator(mode="after")
    def _check_consent(self) -> Self:
        if self.translator.train_on == "consenting_users" and not self.domains.consent_domains:
            raise ValueError(
                '[translator] train_on = "consenting_users", but no source domain requires consent: name a file, [domains.source] '
                "consent, or a column, [domains.source] columns.consent"
            )
        return self

    def origin(self, keys: Sequence[str]) -> str:
        """Return where a key's value comes from: ``default``, ``file``, ``override``, or ``environment`` with the variable's name.

        For a table of texts, the variables of its entries are listed: ``SCALR_PROJECT__STORAGE_OPTIONS__KEY``.

        Args:
            keys: The key's path from the section on: ``("domains", "source", "columns", "user")``.

        Returns:
            One of these words.
        """
        if (variables := variables_below(list(keys)) or variable_for(list(keys))) is not None:
            return f"environment {variables}"
        file, overrides = self._read
        return "override" if _holds(overrides, keys) else "file" if _holds(file, keys) else "default"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes it by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give the environment precedence over the file's values."""
        return env_settings, init_settings

    def with_sections(self, **sections: Mapping[str, Any]) -> Settings:
        """Return a copy with some keys changed: ``generation={"mode": "causal"}``.

        Args:
            sections: Section → keys and values.

        Returns:
            New settings; these are unchanged.

        Raises:
            SettingsError: An unknown key or an invalid value; names the key.
        """
        named: dict[str, Any] = {}
        for name in self.explicit_keys:
            section, _, key = name.partition(".")
            named.setdefault(section, {})[key] = self.model_dump(include={section: {key}})[section][key]
        changed = _checked(_merge(named, sections), "the settings", base=self.base)
        return changed.remember_sources(self._read[0], _merge(self._read[1], sections))

    @property
    def secrets(self) -> list[str]:
        """Passwords, tokens and keys in the settings, which no output may repeat; short ones, which may be usual words, are left out."""
        named = [self.lineage.api_key, (self.serving.header or "").partition("=")[2]]
        found = {*filter(None, named), *secrets_in(self.model_dump(exclude={"base"}))}
        return sorted(secret for secret in found if len(secret) >= _SHORTEST_SECRET)

    @property
    def project_name(self) -> str:
        """The project's name in shared stores: ``[project] name``, else the name in the home's marker, else from the domains' names."""
        return self.project.name or self._remembered or self.domains.default_project_name

    @property
    def served_model(self) -> str:
        """The translator's name on its server: ``[serving] model_name``, else a default with the project's name on a shared server."""
        default = "translator" if self.serving.url is None else f"translator_{self.project_name}"
        return self.serving.model_name or default

    @property
    def home(self) -> Path:
        """Folder of everything local: models, staged parts, data docs, datasets."""
        return self.resolve(self.project.home)

    @property
    def lake_url(self) -> str:
        """Folder or URL of the Delta tables."""
        lake = self.project.lake
        if lake is not None and "://" in lake:
            return lake
        return str(self.resolve(lake) if lake else self.home / "lake")

    @property
    def feast_registry_url(self) -> str:
        """SQLAlchemy URL of Feast's registry."""
        return self.feast.registry or f"sqlite:///{self.home / 'feast_registry.db'}"

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger.url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def feast_repo(self) -> Path:
        """Folder of the Feast repository."""
        return self.resolve(self.feast.repo) if self.feast.repo else self.home / "feature_repo"

    @property
    def model_repository(self) -> Path:
        """Folder of the Triton model repository."""
        return self.resolve(self.serving.repository) if self.serving.repository else self.home / "triton"

    def resolve(self, path: str) -> Path:
        """Resolve a path of the settings.

        Args:
            path: A path; relative ones start from the folder of scalr.toml.

        Returns:
            The absolute path.
        """
        return (self.base / Path(path).expanduser()).resolve()


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """Read scalr.toml and the environment.

    Args:
        path: The file; default ``scalr.toml`` in the current folder.
        overrides: Sections as dictionaries, merged over the file's.

    Returns:
        All settings, with defaults filled in.

    Raises:
        SettingsError: No such file, not TOML, an unknown key or an invalid value; names the key.
    """
    path = Path(path) if path is not None else Path("scalr.toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            "no such file", where=str(path), next_step="write one: scalr init; or name it with --config"
        ) from error
    except OSError as error:
        step = (
            f"name the file in it: --config {path / 'scalr.toml'}"
            if path.is_dir()
            else "name a file that can be read: --config"
        )
        raise SettingsError(f"cannot be read: {error.strerror}", where=str(path), next_step=step) from error
    except (ValueError, RecursionError) as error:  # undecodable bytes, bad TOML, oversized numbers, too deep nesting
        raise SettingsError(f"cannot be read as TOML: {error}", where=str(path), next_step="correct the file") from error
    return _checked(_merge(raw, overrides), str(path), base=path.resolve().parent).remember_sources(raw, overrides)


def settings_from_dict(sections: Mapping[str, Any], *, base: str | Path | None = None) -> Settings:
    """Make settings from a dictionary instead of a file; the environment takes precedence here too.

    Args:
        sections: As in scalr.toml: ``{"domains": {"source": {…}, "target": {…}}, …}``.
        base: Folder that relative paths start from; default: the current one.

    Raises:
        SettingsError: As for `load_settings`.
    """
    return _checked(dict(sections), "the settings", base=Path(base or Path.cwd()).resolve()).remember_sources({}, sections)


def _checked(sections: dict[str, Any], where: str, *, base: Path) -> Settings:
    if (key := _zero_byte(sections)) is not None:
        raise SettingsError(
            "contains a zero byte, which paths and names cannot", where=f"{where}, {key}", next_step="remove it"
        )
    # Names of arguments of the settings' constructor.
    if (name := next((key for key in sections if key in {"base", "self"} or key.startswith("_")), None)) is not None:
        raise SettingsError(f"unknown key {name!r}", where=where, next_step="remove it")
    check_environment(Settings)
    try:
        return Settings(**sections, base=base)
    except ValidationError as error:
        raise _explain(error, where) from error
    except SourceError as error:
        raise invalid_json_error(error) from error


def _keys(sections: dict[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, values in sections.items() if isinstance(values, dict) for key in values}


def _named_by_environment() -> set[str]:
    """Return the keys set by ``SCALR_SECTION__KEY``, or by ``SCALR_SECTION`` with a JSON object."""
    sections: dict[str, Any] = {}
    for name, text in os.environ.items():
        prefix, _, rest = name.lower().partition("_")
        section, _, key = rest.partition("__")
        if prefix != "scalr" or section not in Settings.model_fields:
            continue
        values = {key.partition("__")[0]: text} if key else json.loads(text)
        sections.setdefault(section, {}).update(values)
    return _keys(sections)


def _database(url: str) -> tuple[str, str, str, str]:
    """Return what identifies a database: a URL without its driver and credentials."""
    parts = urlsplit(url)
    return parts.scheme.partition("+")[0], parts.netloc.rpartition("@")[2].removesuffix(":5432"), parts.path, parts.query


def _holds(sections: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not hasattr(sections, "keys") or key not in sections:
            return False
        sections = sections[key]
    return True


def _zero_byte(section: dict[str, Any]) -> str | None:
    """Return the first key whose text holds a zero byte."""
    for key, value in section.items():
        found = _zero_byte(value) if isinstance(value, dict) else "" if "\0" in str(value) else None
        if found is not None:
            return f"{key}.{found}".rstrip(".")
    return None


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def _explain(error: ValidationError, file: str) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    keys = [str(part) for part in first["loc"]]
    place = f"[{'.'.join(keys[:-1])}] {keys[-1]}" if len(keys) > 1 else f"[{keys[0]}]" if keys else "settings"
    variable = variable_for(keys)
    where = f"environment variable {variable}" if variable else file
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = known_keys(Settings, keys[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return SettingsError(f"unknown key {place}{more}", where=where, next_step=hint)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    next_step = f"correct {variable or f'{place} in {Path(file).name}'}"
    return SettingsError(f"{place}: {message}{more}", where=where, next_step=next_step)
