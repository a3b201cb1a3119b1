# SPDX-License-Identifier: Apache-2.0
"""From histories to synthetic events: how much of the past is known, what translates it, and which source events are translated."""

from __future__ import annotations

import os
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import Instant, check_plugin_names
from scalr_prod.plugins import ESTIMATORS


class HistorySettings(SettingsSection):
    """How much of the past a history holds."""

    length: int = Field(default=50, ge=1, le=1000, description="L: number of latest events in a history")
    trailing_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="trailing_event_count counts an item's events in this many days before its last event",
    )
    late_step_s: int = Field(
        default=0,
        ge=0,
        le=31_536_000,
        description="seconds: late events enter user histories at multiples of this; 0: as soon as they are known",
    )


#: Largest number of items that torch draws from.
_MAX_ITEMS: Final = 2**24


class TranslatorSettings(SettingsSection):
    """What the translator is made of and how it is trained."""

    estimators: tuple[str, ...] = Field(
        default=("popularity", *ESTIMATORS.builtin),
        description="built-in estimators, or your own as module:object",
    )
    folds: int = Field(default=3, ge=2, le=20, description="user folds for cross-fitting (mode = backfill)")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=0.5, description="last share of target time, on which the mixture is fitted"
    )
    dim: int = Field(
        default=64, ge=4, le=1024, description="length of item vectors; the sizes of other estimators follow from it"
    )
    epochs: int = Field(
        default=3, ge=1, le=1000, description="passes of the sequential estimator over its events, see sequential_steps"
    )
    batch_size: int = Field(
        default=256, ge=1, le=65536, description="target events of one training batch of the sequential estimator"
    )
    max_source_items: int = Field(
        default=100_000, ge=1, le=_MAX_ITEMS, description="number of source items in the vocabulary, the most frequent ones"
    )
    max_target_items: int = Field(
        default=100_000, ge=2, le=_MAX_ITEMS, description="number of target items in the vocabulary, the most frequent ones"
    )
    pretraining_events: int = Field(
        default=250_000, ge=1, description="maximum number of source events to pretrain the sequential and topic estimators on"
    )
    sequential_steps: int = Field(
        default=12_000,
        ge=1,
        description="maximum number of training steps (batches) in each fit of the sequential estimator. A longer log gets fewer passes "
        "than epochs or, past one pass, a random part of its users' histories",
    )
    retrain_every: float = Field(
        default=7.0,
        ge=0,
        le=36_500,
        description="days, in the events' time: while events are only added, scalr run keeps a translator for this long, or until "
        "a log has grown by a tenth. 0: new events always train another",
    )
    recommended_events: Literal["drop", "keep"] = Field(
        default="drop",
        description="target events that a recommendation led to ([domains.target.columns] recommended_by): leave them out of training, "
        "where the translator would learn its own draws, or train on them. Users who had an item in this way are not proposed it again, "
        "unless exclude_consumed is false",
    )
    pin: bool = Field(
        default=False,
        description="scalr run keeps the latest trained version, even if events, settings or this package's recipe have changed; "
        "scalr translator train trains another",
    )
    train_on: Literal["all", "consenting_users"] = Field(
        default="all",
        description="users whose events the translator learns from: all, or those with consent ([domains.source] consent)",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of training")
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="CPU threads of training on this machine; default: all. The number does not change the translator",
    )

    @field_validator("estimators")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one estimator")
        return check_plugin_names(ESTIMATORS, value, also_allowed=("popularity",))

    def recipe(self) -> dict[str, Any]:
        """Return the settings that decide a version, as plain JSON values; ``recommended_events`` is in `training_inputs`."""
        # Omitted by default, so that verdicts from before these settings stay valid, also of logs that get fewer steps since then.
        added = ("train_on", "sequential_steps")
        defaults = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={"threads", "retrain_every", "pin", "recommended_events", *defaults})


class GenerationSettings(SettingsSection):
    """Which source events are translated, and how."""

    mode: Literal["causal", "backfill"] = Field(
        default="backfill",
        description="causal: by a translator that was trained until the window's start; backfill: cross-fitted over users",
    )
    start: Instant | None = Field(
        default=None,
        description="start of the window (inclusive); default: the first source event, in causal mode a day before the end",
    )
    end: Instant | None = Field(default=None, description="end of the window (exclusive); default: after the last known event")
    as_of: Instant | None = Field(default=None, description="read nothing that became known later; default: the window's end")
    contexts: Literal["events", "users"] = Field(
        default="users", description="translate every user once at the window's end, or every source event at its time"
    )
    events_per_source_event: int = Field(
        default=20,
        ge=1,
        le=100,
        description='maximum number of synthetic events for each context (a user, or a source event); 2 with contexts = "events"',
    )
    max_synthetic_ratio: float = Field(
        default=10.0,
        ge=0,
        le=1e6,
        description="maximum number of a run's synthetic events for each real target event: where there would be more, each context gets "
        "fewer, and likelier ones (down to half of the temperature, unless you set it); 0: no limit",
    )
    temperature: float = Field(default=0.5, gt=0, le=100, description="1 samples from P; towards 0 it becomes top-k")
    min_lift: float = Field(default=0.0, ge=0, description="drop draws with P(i|context) < min_lift * P(i); 0 keeps all")
    shortlist: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="number of likely items to draw from for each context, instead of the whole catalogue: for catalogues of over a "
        "million items, on CPUs. Each run measures the probability left out. Default: all items",
    )
    exclude_consumed: bool = Field(
        default=True, description="never draw an item that the user had before, nor twice in a window"
    )
    align: bool = Field(
        default=False, description="drop draws until their popularity distribution is like the real one; costs ranking quality"
    )
    align_buckets: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="number of popularity buckets, in alignment and in the quality gate",
    )
    partitions: int = Field(default=8, ge=1, le=100_000, description="number of partitions of a run; each is one task")
    batch_size: int = Field(default=512, ge=1, le=65536, description="number of contexts in a request")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the draws: the same seed gives the same events")
    lookback: float = Field(
        default=0.0,
        ge=0,
        le=3650,
        description="days: publish windows that ended within them again if source events arrived late; 0: never",
    )
    late_as_of: Literal["at_window_end", "latest"] = Field(
        default="at_window_end",
        description="what such a window may know: what it knew at first, or all that the current run knows",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_contexts(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("contexts") == "events":
            return {"events_per_source_event": 2} | data
        return data

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"window [start, end) is empty: start {self.start} is not before end {self.end}")
        if self.end is not None and self.as_of is not None and self.as_of < self.end:
            raise ValueError(f"as_of {self.as_of} is before the window's end {self.end}")
        return self
