"""scalr.toml and ``SCALR_*`` environment variables → one frozen ``Settings``.

The environment wins over the file (``SCALR_LEDGER__URL=…`` sets ``[ledger] url``), so that secrets need not be in the file.
Unknown keys are errors. Relative paths are relative to the file. Nothing else in the package reads configuration.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scalr_prod.errors import SettingsError

if TYPE_CHECKING:
    from scalr_prod.contracts import Domain

__all__ = ["DomainSettings", "Settings", "load_settings"]


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("is a naive timestamp: add its zone, for example 2024-05-01T00:00:00Z")
    return value


Instant = Annotated[datetime, AfterValidator(_aware)]
Estimator = Literal["popularity", "frequency", "linear", "factorisation", "sequential"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ProjectSettings(_Section):
    """Where everything that this project makes is kept."""

    home: str = ".scalr"
    lake: str | None = Field(default=None, description="folder or object-store URL of the Delta tables; default: <home>/lake")
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False)


class Columns(_Section):
    """Which column of the log holds what. ``created``: from when on the row may be known (default: the event's own time)."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    created: str | None = None
    weight: str | None = None


class ItemColumns(_Section):
    """Which column of the item file holds what."""

    item: str = "item_id"
    title: str | None = "title"
    category: str | None = "category"
    value: str | None = "value"


class DomainSettings(_Section):
    """One domain's log: files (path, glob or fsspec URL) or a SQL query."""

    name: str
    events: str | None = None
    query: str | None = None
    url: str | None = Field(default=None, repr=False)
    format: Literal["parquet", "csv", "jsonl"] | None = None
    columns: Columns = Columns()
    timezone: str | None = None
    items: str | None = None
    item_columns: ItemColumns = ItemColumns()
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}", value):
            raise ValueError("must be 1 to 64 letters, digits, '_', '.', '-' or spaces")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError) as error:
                raise ValueError(f"{value!r} is no IANA time zone, such as 'UTC' or 'Europe/Paris'") from error
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.events is None) == (self.query is None):
            raise ValueError("needs either 'events' (path, glob or URL of files) or 'query' with 'url' (SQL)")
        if self.query is not None and self.url is None:
            raise ValueError("has a 'query' but no 'url' (a SQLAlchemy URL; keep its password in the environment)")
        return self


class Domains(_Section):
    """The two domains."""

    source: DomainSettings
    target: DomainSettings

    def __getitem__(self, domain: Domain) -> DomainSettings:
        return self.source if domain == "source" else self.target


class HistorySettings(_Section):
    """How much of the past a history holds."""

    length: int = Field(default=50, ge=1, le=1000)
    trailing_days: int = Field(default=30, ge=1, le=3650, description="window of an item's trailing popularity")
    late_step_s: int = Field(
        default=0, ge=0, le=31_536_000, description="late events enter user histories at multiples of this; 0: once known"
    )


class TranslatorSettings(_Section):
    """What the translator is made of and how it is trained."""

    estimators: tuple[Estimator, ...] = ("popularity", "frequency", "linear", "factorisation", "sequential")
    folds: int = Field(default=3, ge=2, le=20, description="user folds for cross-fitting (mode = backfill)")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="last share of target time, for the mixture")
    dim: int = Field(default=64, ge=4, le=1024)
    epochs: int = Field(default=5, ge=1, le=1000)
    batch_size: int = Field(default=256, ge=1, le=65536)
    max_source_items: int = Field(default=100_000, ge=1)
    max_target_items: int = Field(default=100_000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @field_validator("estimators")
    @classmethod
    def _distinct(cls, value: tuple[Estimator, ...]) -> tuple[Estimator, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("must name at least one estimator, each once")
        return value


class GenerationSettings(_Section):
    """Which source events are translated, and how."""

    mode: Literal["causal", "backfill"] = "backfill"
    start: Instant | None = None
    end: Instant | None = None
    as_of: Instant | None = None
    contexts: Literal["events", "users"] = Field(
        default="events", description="translate every source event at its time, or every user once at the window's end"
    )
    events_per_source_event: int = Field(default=2, ge=1, le=100)
    temperature: float = Field(default=1.0, gt=0, le=100, description="1 samples from P; towards 0 it becomes top-k")
    min_lift: float = Field(default=1.0, ge=0, description="drop draws with P(i|context) < min_lift * P(i)")
    exclude_consumed: bool = True
    align: bool = True
    align_buckets: int = Field(default=10, ge=1, le=1000)
    partitions: int = Field(default=8, ge=1, le=100_000)
    batch_size: int = Field(default=512, ge=1, le=65536)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"window [start, end) is empty: start {self.start} is not before end {self.end}")
        if self.end is not None and self.as_of is not None and self.as_of < self.end:
            raise ValueError(f"as_of {self.as_of} is before the window's end {self.end}")
        return self


class QualitySettings(_Section):
    """What happens to rows that break a rule."""

    policy: Literal["strict", "quarantine"] = "strict"
    max_quarantine_share: float = Field(default=0.05, ge=0, le=1)
    max_bucket_distance: float = Field(default=0.35, gt=0, le=1, description="total variation from the real value buckets")
    min_source_coverage: float = Field(default=0.01, ge=0, le=1, description="share of source events with a translation")


class PublicationSettings(_Section):
    """How a run reaches the feature view."""

    online: bool = Field(default=False, description="also materialise to the online store")


class TrainingSetSettings(_Section):
    """What the training set holds."""

    name: str = Field(default="training_set", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    start: Instant | None = None
    cutoff: Instant | None = Field(default=None, description="no row, feature or label from after it; default: the data's end")
    negatives_per_event: int = Field(default=0, ge=0, le=1000)
    negative_sampling: Literal["uniform", "popularity"] = "uniform"
    synthetic_weight: float = Field(default=1.0, ge=0, description="λ: multiplies the weight of synthetic rows")
    seed: int = Field(default=0, ge=0, lt=2**63)


class DownstreamSettings(_Section):
    """Reference recommenders and their evaluation (`scalr evaluate`)."""

    models: tuple[str, ...] = Field(
        default=("als", "sasrec", "two_tower"), description="families, or classes of your own as package.module:Class"
    )
    cutoff: Instant | None = Field(default=None, description="test from then on; default: the 80th percentile of target time")
    cold_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of users whose target history is hidden")
    k: int = Field(default=20, ge=1, le=1000, description="depth of NDCG, recall and MRR")
    seeds: int = Field(default=5, ge=1, le=100)
    seed: int = Field(default=0, ge=0, lt=2**63)
    sparse_below: int = Field(default=5, ge=2, description="real target events under which a user counts as sparse")
    volumes: tuple[int, ...] = Field(default=(5, 20), description="synthetic events a user, tried on validation")
    temperatures: tuple[float, ...] = Field(default=(1.0, 0.5, 0.02), description="tried on validation; towards 0: top-k")
    weights: tuple[float, ...] = Field(default=(0.03, 0.1, 0.3, 1.0), description="λ, tried on validation besides 0")
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @field_validator("volumes", "temperatures", "weights", "models")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or len(set(value)) != len(value) or any(isinstance(one, int | float) and one <= 0 for one in value):
            raise ValueError("must hold at least one value, each once, numbers above 0")
        return value


class ComputeSettings(_Section):
    """Where Dask runs."""

    dask: str = Field(default="local", pattern=r"^(local|(tcp|tls|ws|wss|ucx)://\S+)$")
    workers: int = Field(default_factory=lambda: min(os.cpu_count() or 1, 8), ge=1, le=1024)
    threads_per_worker: int = Field(default=1, ge=1, le=64)
    connect_timeout_s: float = Field(default=10.0, gt=0)
    memory_mb: int = Field(
        default=1024, ge=64, description="what DuckDB may hold in ingest and histories; beyond it, it spills"
    )


class ServingSettings(_Section):
    """Where the translator is served."""

    scorer: Literal["triton", "local"] = "triton"
    url: str | None = Field(default=None, description="host:port of a Triton gRPC endpoint; none: a local one is started")
    model_name: str = Field(default="translator", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
    repository: str | None = Field(default=None, description="model repository; default: <home>/triton")
    environment: str | None = Field(default=None, description="serving environment; default: .venv-triton")
    deadline_s: float = Field(default=60.0, gt=0, description="over all attempts of one request")
    startup_timeout_s: float = Field(default=120.0, gt=0)
    in_flight: int = Field(default=2, ge=1, le=64, description="requests in flight per worker")
    max_request_mb: float = Field(default=64.0, gt=0, le=2000)
    tls: bool = Field(default=False, description="encrypt the connection to the server at url, and check its certificate")
    ca_certificate: str | None = Field(default=None, description="PEM; default: the certificate authorities that gRPC knows")
    client_certificate: str | None = Field(default=None, description="PEM, for a server that asks who we are")
    client_key: str | None = Field(default=None, description="PEM of the client certificate's key")
    header: str | None = Field(
        default=None,
        repr=False,
        pattern=r"^[a-z0-9_.-]{1,64}=[\x21-\x7e]{1,1024}$",
        description="name=value, sent with every request: opens Triton's restricted protocols. Keep it in the environment",
    )
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        found = re.fullmatch(r"(?:grpc://)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", value) if value else None
        if value is not None and (found is None or not 0 < int(found[1]) < 2**16):
            raise ValueError(f"{value!r} is no host:port of a gRPC endpoint, such as 127.0.0.1:8001")
        return value

    @model_validator(mode="after")
    def _certificates(self) -> Self:
        files = (self.ca_certificate, self.client_certificate, self.client_key)
        if any(files) and not self.tls:
            raise ValueError("names certificates, but tls is off: set tls = true")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("needs client_certificate and client_key together")
        if (self.tls or self.header is not None) and self.url is None:
            raise ValueError("has tls or header but no url: the local server is on loopback and needs neither")
        return self


class FeastSettings(_Section):
    """Where the Feast repository is; by default one is laid under the project's home."""

    repo: str | None = None
    registry: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis: str = Field(default="localhost:6379", repr=False)


class LedgerSettings(_Section):
    """Where run state is kept."""

    url: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")


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
