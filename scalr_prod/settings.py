"""scalr.toml and ``SCALR_*`` environment variables → one frozen ``Settings``.

The environment wins over the file (``SCALR_LEDGER__URL=…`` sets ``[ledger] url``), so that secrets need not be in the file.
Unknown keys are errors. Relative paths are relative to the file. Nothing else in the package reads configuration.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scalr_prod.errors import SettingsError
from scalr_prod.sections import (
    ComputeSettings,
    Domains,
    DownstreamSettings,
    FeastSettings,
    GenerationSettings,
    HistorySettings,
    LedgerSettings,
    ProjectSettings,
    PublicationSettings,
    QualitySettings,
    ServingSettings,
    TrainingSetSettings,
    TranslatorSettings,
)

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """All of it. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="SCALR_", env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    project: ProjectSettings = ProjectSettings()
    domains: Domains
    histories: HistorySettings = HistorySettings()
    translator: TranslatorSettings = Field(default_factory=TranslatorSettings)
    generation: GenerationSettings = GenerationSettings()
    quality: QualitySettings = QualitySettings()
    publication: PublicationSettings = PublicationSettings()
    training_set: TrainingSetSettings = TrainingSetSettings()
    downstream: DownstreamSettings = Field(default_factory=DownstreamSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    feast: FeastSettings = FeastSettings()
    ledger: LedgerSettings = LedgerSettings()

    #: Folder that relative paths start from (that of scalr.toml).
    base: Path = Field(default_factory=Path.cwd, exclude=True)

    _named: frozenset[str] = PrivateAttr(default=frozenset())

    def __init__(self, **sections: Any) -> None:
        super().__init__(**sections)
        self._named = frozenset(_keys(sections) | _named_by_environment())

    @property
    def named(self) -> frozenset[str]:
        """Keys that scalr.toml, an override or the environment gives a value, as ``section.key``; all others are defaults."""
        return self._named

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes it by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what `load_settings` read from the file."""
        return env_settings, init_settings

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
        """A path of the settings, absolute."""
        return (self.base / Path(path).expanduser()).resolve()


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """Read scalr.toml and the environment.

    Args:
        path: The file; default ``scalr.toml`` in the current folder.
        overrides: Whole sections as dictionaries, merged over the file's.

    Raises:
        SettingsError: No such file, not TOML, an unknown key, or an impossible value; names the key.
    """
    path = Path(path) if path is not None else Path("scalr.toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            "no such file", where=str(path), next_step="name it with --config, or write one: see README, 'Your own data'"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # of undecodable bytes, bad TOML, hostile numbers and depth
        raise SettingsError(f"cannot be read as TOML: {error}", where=str(path), next_step="correct the file") from error
    if (key := _zero_byte(raw)) is not None:
        raise SettingsError("holds a zero byte, which no path and no name can", where=f"{path}, {key}", next_step="remove it")
    if "base" in raw:
        raise SettingsError("unknown key 'base'", where=str(path), next_step="remove it")
    merged = _merge(raw, overrides)
    try:
        return Settings(**merged, base=path.resolve().parent)
    except ValidationError as error:
        raise _explain(error, path) from error


def _keys(sections: dict[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, values in sections.items() if isinstance(values, dict) for key in values}


def _named_by_environment() -> set[str]:
    """From ``SCALR_SECTION__KEY`` and from ``SCALR_SECTION`` with a JSON object."""
    sections: dict[str, Any] = {}
    for name, text in os.environ.items():
        prefix, _, rest = name.lower().partition("_")
        section, _, key = rest.partition("__")
        if prefix != "scalr" or section not in Settings.model_fields:
            continue
        values = {key.partition("__")[0]: text} if key else json.loads(text)
        sections.setdefault(section, {}).update(values)
    return _keys(sections)


def _zero_byte(section: dict[str, Any]) -> str | None:
    """The first key whose text holds a zero byte."""
    for key, value in section.items():
        found = _zero_byte(value) if isinstance(value, dict) else "" if "\0" in str(value) else None
        if found is not None:
            return f"{key}.{found}".rstrip(".")
    return None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def _explain(error: ValidationError, path: Path) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    keys = [str(part) for part in first["loc"]]
    place = f"[{'.'.join(keys[:-1])}] {keys[-1]}" if len(keys) > 1 else f"[{keys[0]}]" if keys else "settings"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return SettingsError(f"unknown key {place}{more}", where=str(path), next_step=hint)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    return SettingsError(f"{place}: {message}{more}", where=str(path), next_step=f"correct {place} in {path.name}")


def _known_keys(keys: list[str]) -> list[str]:
    model: Any = Settings
    for key in keys:
        model = model.model_fields[key].annotation
    return sorted(name for name in model.model_fields if name != "base")
