# SPDX-License-Identifier: Apache-2.0
"""Settings of publication and experiments."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import Instant


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
    harmed_segments: Literal["warn", "drop"] = Field(
        default="warn",
        description="a segment of users for whom `scalr experiment` finds that synthetic events lower the outcome (the always-valid "
        "interval is below 0): every run warns about it; drop also sets its λ to 0, whatever else sets λ, until key or start changes",
    )
    start: Instant | None = Field(
        default=None,
        description="start of the experiment: outcomes are counted from it on, and a user's segment is that of earlier events. Default: "
        "the first publication of a run with the current key",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.holdout + self.canary > 1:
            raise ValueError(
                f"holdout ({self.holdout:g}) and canary ({self.canary:g}) add up to more than all users; "
                "held-out users are never in the canary"
            )
        return self
