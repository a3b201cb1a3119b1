# SPDX-License-Identifier: Apache-2.0
"""Settings of training sets and of the downstream evaluation."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import Instant, Weight, check_plugin_names, text_of_form
from scalr_prod.plugins import MODELS

#: Default λ, used where neither a policy nor the settings give one (docs/adr/0019).
DEFAULT_SYNTHETIC_WEIGHT: Final = 0.1


class SegmentWeights(NamedTuple):
    """λ of cold, sparse and dense users."""

    cold: float
    sparse: float
    dense: float


class TrainingSetSettings(SettingsSection):
    """What the training set holds."""

    name: Annotated[
        str, text_of_form(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "1 to 64 letters, digits, '_' and '-', a letter or digit first")
    ] = Field(
        default="training_set",
        description="name of the training set's folder, and of its versions in Feast",
    )
    suite: str | None = Field(
        default=None,
        description="file or name of the suite that `scalr quality check` and the scheduled build use",
    )
    start: Instant | None = Field(
        default=None, description="time of the first label (inclusive); default: from the first event on"
    )
    cutoff: Instant | None = Field(
        default=None, description="no label, feature or row is from after this time; default: the data's end"
    )
    splits: dict[Literal["validation", "test"], datetime] = Field(
        default_factory=dict,
        description="times at which splits of the set begin, for a model that is tested by time: "
        '{ validation = "2024-05-01", test = "2024-06-01" }; rows before the first are train, and synthetic rows are in train alone. '
        "A time without a zone is in [project] timezone",
    )
    task: Literal["ranking", "classification"] = Field(
        default="ranking",
        description="task of your model; classification refuses a set with one label, and sets negatives_per_event to 4 by default",
    )
    negatives_per_event: int = Field(default=0, ge=0, le=1000, description="sampled rows of label 0 for each real event")
    negative_sampling: Literal["uniform", "popularity"] = Field(
        default="uniform", description="distribution over items that negatives are drawn from"
    )
    synthetic_weight: float | None = Field(
        default=None,
        ge=0,
        description="λ: total weight of the synthetic rows, as a share of the real rows' total weight; 0 leaves them out; "
        "default: 0.1, or 1 with segment_weights",
    )
    segment_weights: tuple[Weight, Weight, Weight] | None = Field(
        default=None,
        description="λ of cold, sparse and dense users (no, few, more real target events); multiplied by synthetic_weight",
    )
    popularity_discount: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="divide a synthetic row's weight by its item's popularity to this power, so that rare items get a larger share of λ: "
        "more variety in what a model shows; 0: off",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of the negatives")
    source_history: bool = Field(
        default=False,
        description="also join each user's source history, with source item ids and times: only for readers who may read the source log",
    )
    features: tuple[str, ...] = Field(default=(), description="your own features: Feast services, views, or view:feature")
    features_repo: str | None = Field(
        default=None, description="folder of the Feast repository of these features; default: the project's own"
    )
    feature_keys: dict[str, Literal["user", "item"]] = Field(
        default_factory=dict,
        description="join keys of these features that are the user's or the item's id: { account = \"user\" }; default: by name",
    )

    @property
    def feature_service(self) -> str:
        """Name of the Feast service whose features are joined."""
        return "downstream_training_v1" if self.source_history else "target_training_v1"

    @property
    def resolved_segment_weights(self) -> SegmentWeights:
        """λ of cold, sparse and dense users: `segment_weights` times `synthetic_weight`, or a default."""
        if self.segment_weights is None:
            weight = DEFAULT_SYNTHETIC_WEIGHT if self.synthetic_weight is None else self.synthetic_weight
            return SegmentWeights(weight, weight, weight)
        cold, sparse, dense = self.segment_weights
        factor = 1.0 if self.synthetic_weight is None else self.synthetic_weight
        return SegmentWeights(factor * cold, factor * sparse, factor * dense)

    @property
    def is_weighted_by_segment(self) -> bool:
        """Whether λ depends on the number of a user's real events."""
        return len(set(self.resolved_segment_weights)) > 1

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


class DownstreamSettings(SettingsSection):
    """Reference recommenders and their evaluation (`scalr evaluate`)."""

    models: tuple[str, ...] = Field(
        default=tuple(MODELS.builtin),
        description="built-in models, or your own as module:object; without `--full`, the first, unless set here",
    )
    cutoff: Instant | None = Field(
        default=None, description="test on events from this time on; default: the 80th percentile of target time"
    )
    cold_fraction: float = Field(default=0.0, ge=0, lt=1, description="share of users whose target history is hidden")
    k: int = Field(default=20, ge=1, le=1000, description="depth of NDCG, recall and MRR")
    seeds: int = Field(
        default=5,
        ge=1,
        le=100,
        description="number of trainings of each model, with different seeds; 2 without `--full`, unless set here",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of hidden users, trainings and intervals")
    cutoffs: int = Field(
        default=1,
        ge=1,
        le=20,
        description="number of rolling cutoffs: the events after the first one are split into windows of equal size",
    )
    windows: int = Field(
        default=2, ge=1, le=5, description="number of validation windows before the cutoff; 1 without `--full`, unless set here"
    )
    sparse_below: int = Field(default=5, ge=2, description="number of real target events below which a user counts as sparse")
    volumes: tuple[int, ...] = Field(default=(5, 20), description="numbers of synthetic events per user to try on validation")
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 0.5, 0.25), description="temperatures to try on validation; towards 0: top-k"
    )
    weights: tuple[float, ...] = Field(
        default=(0.03, 0.1, 0.3, 1.0), description="values of λ to try on validation, in addition to 0"
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="CPU threads of the models; default: all"
    )

    @field_validator("models")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_plugin_names(MODELS, value)

    @field_validator("volumes", "temperatures", "weights", "models")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or len(set(value)) != len(value) or any(isinstance(one, int | float) and one <= 0 for one in value):
            raise ValueError("must have at least one value, each once, numbers above 0")
        return value
