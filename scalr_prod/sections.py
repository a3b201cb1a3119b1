# SPDX-License-Identifier: Apache-2.0
"""The sections of scalr.toml beside ``[domains]``: what may stand in each, and what its values must be."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from scalr_prod.domains import Section as _Section
from scalr_prod.naming import PROJECT_NAME
from scalr_prod.plugins import ESTIMATORS, MODELS, RULES, Group

__all__ = [
    "ComputeSettings",
    "DownstreamSettings",
    "ExperimentSettings",
    "FeastSettings",
    "ForgettingSettings",
    "GenerationSettings",
    "HistorySettings",
    "LedgerSettings",
    "LineageSettings",
    "LoggingSettings",
    "MetricsSettings",
    "ProjectSettings",
    "PublicationSettings",
    "QualitySettings",
    "RetentionSettings",
    "ServingSettings",
    "TrainingSetSettings",
    "TranslatorSettings",
    "UiSettings",
]


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("is a naive timestamp: add its zone, for example 2024-05-01T00:00:00Z")
    return value


def _named_once(group: Group, names: tuple[str, ...], beside: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of plug-ins, each of which is there and stands once."""
    if len(set(names)) != len(names):
        raise ValueError(f"names a {group.kind} twice: name each once")
    for name in names:
        if name not in beside and (problem := group.problem(name)) is not None:
            raise ValueError(problem)
    return names


def _web(value: str) -> str:
    """A URL that can be read; what it says may be a password, and is not repeated."""
    try:
        parts = urlsplit(value)
        there = parts.hostname and parts.port != 0 and parts.netloc.count("@") == value.count("@") <= 1
    except ValueError:
        there = False
    if not there:
        raise ValueError("is no URL of a server: in a user or password, write [ ] @ : / ? # as %5B %5D %40 %3A %2F %3F %23")
    return value


def _open(value: str) -> str:
    """An address to link to."""
    if "@" in value:
        raise ValueError("names a user or password, which everybody who opens the page would see: leave it out")
    return value


Instant = Annotated[datetime, AfterValidator(_aware)]
WebAddress = Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(_web)]
PageAddress = Annotated[WebAddress, AfterValidator(_open)]
Weight = Annotated[float, Field(ge=0)]


class ProjectSettings(_Section):
    """The project's name, and where everything that it makes is kept."""

    name: str | None = Field(
        default=None,
        pattern=PROJECT_NAME,
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


class HistorySettings(_Section):
    """How much of the past a history holds."""

    length: int = Field(default=50, ge=1, le=1000, description="L: events that a history holds at most, the latest ones")
    trailing_days: int = Field(default=30, ge=1, le=3650, description="window of an item's trailing popularity")
    late_step_s: int = Field(
        default=0, ge=0, le=31_536_000, description="late events enter user histories at multiples of this; 0: once known"
    )


class TranslatorSettings(_Section):
    """What the translator is made of and how it is trained."""

    estimators: tuple[str, ...] = Field(
        default=("popularity", *ESTIMATORS.own), description="popularity, ours, or estimators of your own"
    )
    folds: int = Field(default=3, ge=2, le=20, description="user folds for cross-fitting (mode = backfill)")
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="last share of target time, for the mixture")
    dim: int = Field(
        default=64, ge=4, le=1024, description="length of item vectors; the sizes of other estimators follow from it"
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="passes of the sequential estimator over its events")
    batch_size: int = Field(
        default=256, ge=1, le=65536, description="target events of one training batch of the sequential estimator"
    )
    max_source_items: int = Field(default=100_000, ge=1, description="source items that are known, the most frequent ones")
    max_target_items: int = Field(default=100_000, ge=2, description="target items that are known, the most frequent ones")
    pretraining_events: int | None = Field(
        default=None,
        ge=1,
        description="source events, at most, that the sequential estimator learns from before it sees a target event; default: all",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of everything random in training")
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="CPU threads of training; default: all; the translator is the same with any number",
    )

    @field_validator("estimators")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one estimator")
        return _named_once(ESTIMATORS, value, beside=("popularity",))

    def recipe(self) -> dict[str, Any]:
        """What decides a version, as plain JSON values.

        A key that came with a later package is left out at its default: versions, and verdicts, of before stay those of these settings.
        """
        made = self.model_dump(mode="json", exclude={"threads"})
        return {key: value for key, value in made.items() if value is not None or key != "pretraining_events"}


class GenerationSettings(_Section):
    """Which source events are translated, and how."""

    mode: Literal["causal", "backfill"] = Field(
        default="backfill",
        description="causal: by a translator that was trained until the window's start; backfill: cross-fitted over users",
    )
    start: Instant | None = Field(
        default=None,
        description="the window's first instant; default: that of the first source event, in causal mode a day before the end",
    )
    end: Instant | None = Field(default=None, description="the instant after the window; default: after all that is known")
    as_of: Instant | None = Field(
        default=None, description="nothing that became known later is read; default: the window's end"
    )
    contexts: Literal["events", "users"] = Field(
        default="events", description="translate every source event at its time, or every user once at the window's end"
    )
    events_per_source_event: int = Field(
        default=2, ge=1, le=100, description="synthetic events that are drawn for each source event, at most"
    )
    temperature: float = Field(default=1.0, gt=0, le=100, description="1 samples from P; towards 0 it becomes top-k")
    min_lift: float = Field(default=1.0, ge=0, description="drop draws with P(i|context) < min_lift * P(i)")
    exclude_consumed: bool = Field(default=True, description="never propose an item that the user had before")
    align: bool = Field(default=False, description="downsample value buckets towards the real distribution; costs ranking")
    align_buckets: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="buckets of items by popularity, in alignment and in the gate's distribution of values",
    )
    partitions: int = Field(default=8, ge=1, le=100_000, description="parts of a run, each a task of its own")
    batch_size: int = Field(default=512, ge=1, le=65536, description="contexts that are scored at once")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the draws: the same seed gives the same events")
    lookback: float = Field(
        default=0.0,
        ge=0,
        le=3650,
        description="days: windows that ended no longer ago are published again where source events arrived late; 0: never",
    )
    late_as_of: Literal["at_window_end", "latest"] = Field(
        default="at_window_end",
        description="what a window that is published again may know: what it knew then, or all that this run knows",
    )

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"window [start, end) is empty: start {self.start} is not before end {self.end}")
        if self.end is not None and self.as_of is not None and self.as_of < self.end:
            raise ValueError(f"as_of {self.as_of} is before the window's end {self.end}")
        return self


class QualitySettings(_Section):
    """What happens to rows that break a rule."""

    policy: Literal["strict", "quarantine"] = Field(
        default="strict", description="strict: one bad row refuses the run; quarantine: bad rows are put aside"
    )
    rules: tuple[str, ...] = Field(default=(), description="gate rules of your own, beside ours, which always hold")
    max_quarantine_share: float = Field(
        default=0.05, ge=0, le=1, description="share of bad rows above which a run is refused in spite of quarantine"
    )
    max_bucket_distance: float = Field(default=0.8, gt=0, le=1, description="total variation from the real value buckets")
    min_source_coverage: float = Field(default=0.01, ge=0, le=1, description="share of contexts with a translation")
    min_information: float = Field(
        default=0.001,
        ge=0,
        description="nats a target event that source histories must say at least, by the interval's lower end; 0: off",
    )
    max_drift_warn: float = Field(
        default=0.25, ge=0, description="PSI from the run published before, over which a warning is written; 0: off"
    )
    max_drift: float = Field(default=0.0, ge=0, description="the same, over which the run is refused; 0: off")

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if own := sorted(set(value) & set(RULES.own)):
            raise ValueError(f"names {', '.join(own)}, which always holds: leave it out")
        return _named_once(RULES, value)


class PublicationSettings(_Section):
    """How a run reaches the feature view."""

    online: bool = Field(default=False, description="also materialise to the online store")


class TrainingSetSettings(_Section):
    """What the training set holds."""

    name: str = Field(
        default="training_set",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
        description="names the training set's folder, and its versions in Feast",
    )
    suite: str | None = Field(
        default=None,
        description="a suite's file or name: what `scalr quality check` and the scheduled build check a version by",
    )
    start: Instant | None = Field(default=None, description="the first instant of a label; default: from the beginning")
    cutoff: Instant | None = Field(default=None, description="no row, feature or label from after it; default: the data's end")
    task: Literal["ranking", "classification"] = Field(
        default="ranking",
        description="what is trained on it; classification: a set has both labels or is refused, and negatives_per_event is 4 by default",
    )
    negatives_per_event: int = Field(default=0, ge=0, le=1000, description="sampled rows of label 0 for each positive one")
    negative_sampling: Literal["uniform", "popularity"] = Field(
        default="uniform", description="draw negatives alike over items, or by their popularity"
    )
    synthetic_weight: float = Field(
        default=1.0, ge=0, description="λ: multiplies the weight of synthetic rows; 0 leaves them out"
    )
    segment_weights: tuple[Weight, Weight, Weight] | None = Field(
        default=None,
        description="λ of cold, sparse and dense users (no, few, more real target events), beside synthetic_weight",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the sampling of negatives")
    features: tuple[str, ...] = Field(
        default=(), description="features of your own beside ours: Feast services, views, or view:feature"
    )
    features_repo: str | None = Field(
        default=None, description="folder of the Feast repository that has features; default: the project's own"
    )
    feature_keys: dict[str, Literal["user", "item"]] = Field(
        default_factory=dict,
        description="which join key of features is the user's id and which the item's: { account = \"user\" }; default: by its name",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_task(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("task") == "classification":
            return {"negatives_per_event": 4} | data
        return data

    @model_validator(mode="after")
    def _both_labels(self) -> Self:
        if self.task == "classification" and not self.negatives_per_event:
            raise ValueError("task is classification, which needs rows of label 0, but negatives_per_event is 0")
        return self


class ExperimentSettings(_Section):
    """Users that get no synthetic event, so that the effect can be measured (`scalr experiment`), and users that get theirs first."""

    holdout: float = Field(default=0.0, ge=0, le=0.5, description="share of users that are held out; 0: nobody")
    canary: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of users for whom runs are published first; `scalr publication widen` publishes them for all others. 0: runs "
        "are published for everybody at once",
    )
    key: str | None = Field(
        default=None,
        min_length=8,
        repr=False,
        description="under which users are held out, and come first; another key is another choice of users. Default: one that the home "
        "got when it was made",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.holdout + self.canary > 1:
            raise ValueError(
                f"holdout ({self.holdout:g}) and canary ({self.canary:g}) are more than all users together; no held-out user is in a canary"
            )
        return self


class RetentionSettings(_Section):
    """What `scalr maintain` keeps, beside all that something published, served or at work refers to."""

    days: float = Field(
        default=30, ge=0, description="age from which staged parts of ended runs, training sets and translators may go"
    )
    training_sets: int = Field(default=10, ge=1, description="latest versions of each training set that stay at any age")
    translators: int = Field(default=10, ge=1, description="latest versions of the translator that stay at any age")
    files_days: float = Field(
        default=7, ge=0, description="for how long a replaced version of a table can still be read; 0: not at all"
    )


class ForgettingSettings(_Section):
    """What follows when users are forgotten (`scalr forget`)."""

    grace_days: float = Field(
        default=30,
        ge=0,
        description="for how long runs may go on using a translator that learned from a forgotten user; after it, train a new one",
    )


class DownstreamSettings(_Section):
    """Reference recommenders and their evaluation (`scalr evaluate`)."""

    models: tuple[str, ...] = Field(
        default=tuple(MODELS.own),
        description="ours, or models of your own",
    )
    cutoff: Instant | None = Field(default=None, description="test from then on; default: the 80th percentile of target time")
    cold_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of users whose target history is hidden")
    k: int = Field(default=20, ge=1, le=1000, description="depth of NDCG, recall and MRR")
    seeds: int = Field(default=5, ge=1, le=100, description="how often each model is trained, by other random numbers")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of hidden users, trainings and intervals")
    cutoffs: int = Field(default=1, ge=1, le=20, description="rolling cutoffs: what comes after the first, in equal parts")
    windows: int = Field(default=2, ge=1, le=5, description="windows of time before the cutoff that choices are validated on")
    sparse_below: int = Field(default=5, ge=2, description="real target events under which a user counts as sparse")
    volumes: tuple[int, ...] = Field(default=(5, 20), description="synthetic events a user, tried on validation")
    temperatures: tuple[float, ...] = Field(default=(1.0, 0.5, 0.02), description="tried on validation; towards 0: top-k")
    weights: tuple[float, ...] = Field(default=(0.03, 0.1, 0.3, 1.0), description="λ, tried on validation besides 0")
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="CPU threads of the models; default: all"
    )

    @field_validator("models")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _named_once(MODELS, value)

    @field_validator("volumes", "temperatures", "weights", "models")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or len(set(value)) != len(value) or any(isinstance(one, int | float) and one <= 0 for one in value):
            raise ValueError("must hold at least one value, each once, numbers above 0")
        return value


class ComputeSettings(_Section):
    """Where Dask runs."""

    dask: str = Field(
        default="local",
        pattern=r"^(local|(tcp|tls|ws|wss|ucx)://\S+)$",
        description="local: processes of this machine; else the address of a Dask scheduler, such as tcp://host:8786",
    )
    workers: int = Field(
        default_factory=lambda: min(os.cpu_count() or 1, 8),
        ge=1,
        le=1024,
        description="local worker processes; default: a core each, at most 8",
    )
    threads_per_worker: int = Field(default=1, ge=1, le=64, description="threads of a local worker")
    connect_timeout_s: float = Field(default=10.0, gt=0, description="seconds to wait for the scheduler")
    memory_mb: int = Field(
        default=1024, ge=64, description="what DuckDB may hold in ingest and histories; beyond it, it spills"
    )


class ServingSettings(_Section):
    """Where the translator is served."""

    scorer: Literal["triton", "local"] = Field(
        default="triton", description="triton: a Triton server scores; local: the same module in each worker"
    )
    url: str | None = Field(
        default=None, description="host:port or unix:path of a Triton gRPC endpoint; none: a local one is started"
    )
    model_name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$",
        description="default: translator on a local server, translator_<project> on one at url, which projects may share",
    )
    repository: str | None = Field(default=None, description="model repository; default: <home>/triton")
    environment: str | None = Field(default=None, description="serving environment; default: .venv-triton")
    deadline_s: float = Field(default=60.0, gt=0, description="over all attempts of one request")
    startup_timeout_s: float = Field(default=120.0, gt=0, description="seconds to wait for a local Triton")
    in_flight: int = Field(default=2, ge=1, le=64, description="requests in flight per worker")
    max_request_mb: float = Field(
        default=64.0, gt=0, le=2000, description="MiB of a request's tensors at most; a larger one is never sent"
    )
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
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="CPU threads of a local Triton, or of the local scorer in all workers together; default: all",
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"unix:/[^\x00-\x20]+", value):
            return value
        found = re.fullmatch(r"(?:grpc://)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", value) if value else None
        if value is not None and (found is None or not 0 < int(found[1]) < 2**16):
            raise ValueError(f"{value!r} is no host:port of a gRPC endpoint, such as 127.0.0.1:8001, and no unix:/path of one")
        return value

    @model_validator(mode="after")
    def _certificates(self) -> Self:
        files = (self.ca_certificate, self.client_certificate, self.client_key)
        if any(files) and not self.tls:
            raise ValueError("names certificates, but tls is off: set tls = true")
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("needs client_certificate and client_key together")
        if (self.tls or self.header is not None) and self.url is None:
            raise ValueError("has tls or header but no url: the local server listens on a private socket and needs neither")
        return self


class FeastExportSettings(_Section):
    """What the definitions of `scalr feast export` are called in a feature repository of your own."""

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


class FeastSettings(_Section):
    """Where the Feast repository is; by default one is laid under the project's home."""

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


class LedgerSettings(_Section):
    """Where run state is kept."""

    url: str | None = Field(default=None, repr=False, description="SQLAlchemy URL; default: SQLite under home")


class LoggingSettings(_Section):
    """What is told while work goes on, on stderr."""

    format: Literal["text", "json"] = Field(default="text", description="a line of text, or a JSON object, a message")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="of the package's own lines; those of other libraries are shown from warning on"
    )
    heartbeat_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds between two lines on work that is under way, where no bar is shown"
    )


class MetricsSettings(_Section):
    """Where figures of the project go for Prometheus, after each stage."""

    textfile: str | None = Field(
        default=None,
        pattern=r"\.prom$",
        description="a file of this project alone, in the folder of node_exporter's textfile collector",
    )
    push: WebAddress | None = Field(
        default=None, repr=False, description="URL of a push gateway; may hold a user and a password"
    )


class LineageSettings(_Section):
    """Where OpenLineage events of stages go; nowhere by default. Needs the extra ``lineage``."""

    file: str | None = Field(default=None, description="events are added to it, one JSON object a line")
    url: WebAddress | None = Field(default=None, repr=False, description="of a lineage server; events go to its api/v1/lineage")
    api_key: str | None = Field(
        default=None, repr=False, description="sent to it as a bearer token. Keep it in the environment"
    )
    namespace: str = Field(default="scalr", min_length=1, description="of the jobs, <project>.<stage>")


class UiSettings(_Section):
    """The page that `scalr ui` serves on this machine."""

    port: int = Field(default=8700, ge=0, le=65535, description="on 127.0.0.1; 0: any that is free")
    dask: PageAddress | None = Field(default=None, description="address of the Dask dashboard, to link to")
    airflow: PageAddress | None = Field(default=None, description="address of Airflow's pages, to link to")
