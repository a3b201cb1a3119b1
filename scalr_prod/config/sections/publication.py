# SPDX-License-Identifier: Apache-2.0
"""Settings of the quality gate, publication and experiments."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import check_plugin_names
from scalr_prod.plugins import RULES

__all__ = ["ExperimentSettings", "PublicationSettings", "QualitySettings"]


class QualitySettings(SettingsSection):
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
        if own := sorted(set(value) & set(RULES.builtin)):
            raise ValueError(f"names {', '.join(own)}, which always holds: leave it out")
        return check_plugin_names(RULES, value)


class PublicationSettings(SettingsSection):
    """How a run reaches the feature view."""

    online: bool = Field(default=False, description="also materialise to the online store")


class ExperimentSettings(SettingsSection):
    """Holdout users, who get no synthetic events so that the effect can be measured (`scalr experiment`), and canary users."""

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
        description="under which users are held out, and come first, at least 8 characters; another key is another choice of users. "
        "Default: one that the home got when it was made",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.holdout + self.canary > 1:
            raise ValueError(
                f"holdout ({self.holdout:g}) and canary ({self.canary:g}) add up to more than all users; "
                "held-out users are never in the canary"
            )
        return self
