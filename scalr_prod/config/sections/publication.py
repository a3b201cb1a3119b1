# SPDX-License-Identifier: Apache-2.0
"""Settings of the quality gate, publication and experiments."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import Instant, check_plugin_names
from scalr_prod.plugins import RULES


class QualitySettings(SettingsSection):
    """What happens to rows that break a rule."""

    policy: Literal["strict", "quarantine"] = Field(
        default="strict", description="strict: one bad row rejects the run; quarantine: bad rows go to synthetic_quarantine"
    )
    rules: tuple[str, ...] = Field(
        default=(), description="your own gate rules as module:object; the built-in ones always apply"
    )
    max_quarantine_share: float = Field(
        default=0.05, ge=0, le=1, description="share of bad rows above which a run is rejected in spite of quarantine"
    )
    max_bucket_distance: float = Field(
        default=0.8, gt=0, le=1, description="largest total variation distance from the popularity buckets of real events"
    )
    min_source_coverage: float = Field(default=0.01, ge=0, le=1, description="smallest share of contexts that become an event")
    max_item_excess: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="largest share of an item among accepted events above its share of real events; 0: off",
    )
    min_effective_items: float = Field(
        default=0.03,
        ge=0,
        le=0.5,
        description="smallest effective number of items, exp(entropy), as a share of that of real events; 0: off",
    )
    max_user_item_copies: int | None = Field(
        default=None,
        ge=0,
        description="largest number of accepted events of one user on one item in a run; 0: off. Default: 1, or off where [generation] "
        "exclude_consumed is false",
    )
    min_information: float = Field(
        default=0.001,
        ge=0,
        description="smallest information of source histories, in nats per target event (lower end of its interval); 0: off",
    )
    max_probability_factor: float = Field(
        default=0.0,
        ge=0,
        description="refuse a translator whose observed rates differ from its probabilities by more than chance and this factor; 0: off",
    )
    max_membership_auc: float = Field(
        default=1.0,
        ge=0.5,
        le=1,
        description="reject a run if an attack on its rows tells whose events trained the translator with an AUC above this (lower end of "
        "its interval); takes seconds of processor time. 1: off; `scalr privacy` measures it",
    )
    min_evidence_users: int = Field(
        default=0,
        ge=0,
        description="number of users who must have had a row's item in the translator's training events; 0: off",
    )
    max_drift_warn: float = Field(
        default=0.25, ge=0, description="PSI from the previously published run above which a warning is logged; 0: off"
    )
    max_drift: float = Field(default=0.0, ge=0, description="the same PSI above which the run is rejected; 0: off")

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if own := sorted(set(value) & set(RULES.builtin)):
            raise ValueError(f"names {', '.join(own)}, which always holds: leave it out")
        return check_plugin_names(RULES, value)


class PublicationSettings(SettingsSection):
    """How a run reaches the feature view."""

    online: bool = Field(default=False, description="also write each publication to the online store")
    provenance: Literal["separate", "none"] = Field(
        default="separate",
        description="separate: the source event of each published event is kept in the table synthetic_event_provenance; none: it is not "
        "kept, and `scalr explain` cannot explain published events",
    )


class ExperimentSettings(SettingsSection):
    """Holdout users, who get no synthetic events so that the effect can be measured (`scalr experiment`), and canary users."""

    holdout: float = Field(default=0.0, ge=0, le=0.5, description="share of users that are held out; 0: nobody")
    canary: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of users for whom runs are published first; `scalr publication widen` publishes for all others. 0: publish "
        "for everybody at once",
    )
    key: str | None = Field(
        default=None,
        min_length=8,
        repr=False,
        description="key of the hash that chooses held-out and canary users, at least 8 characters; another key chooses other users. "
        "Default: a key created with the home",
    )
    harmful_segments: Literal["notice", "drop"] = Field(
        default="notice",
        description="a segment of users whose outcomes `scalr experiment` finds to be lower by synthetic events (the always-valid interval "
        "is below 0): notice tells it in every run; drop also sets its λ to 0, whatever else sets λ, for as long as key and start stay",
    )
    start: Instant | None = Field(
        default=None,
        description="start of the experiment: outcomes are counted from it on, and a user's segment is that of earlier events. Default: "
        "the first publication of a run with the present key",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.holdout + self.canary > 1:
            raise ValueError(
                f"holdout ({self.holdout:g}) and canary ({self.canary:g}) add up to more than all users; "
                "held-out users are never in the canary"
            )
        return self
