# SPDX-License-Identifier: Apache-2.0
"""Settings of the quality gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from scalr_prod.config.domains import SettingsSection
from scalr_prod.config.sections.values import check_plugin_names
from scalr_prod.plugins import RULES


class QualitySettings(SettingsSection):
    """What happens to rows that break a rule."""

    policy: Literal["strict", "quarantine"] = Field(
        default="strict", description="strict: one bad row rejects the run; quarantine: bad rows go to synthetic_quarantine"
    )
    rules: tuple[str, ...] = Field(
        default=(), description="your own gate rules as module:object, in addition to the built-in ones"
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
        description="smallest information of users' own source histories over other users', in nats per target event (lower end of its "
        "interval); 0: off",
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
        description="reject a run if an attack on its rows finds out which users' events trained the translator: if the lower end of the "
        "95 % interval of the attack's AUC is above this. Takes seconds of processor time. 1: off; `scalr privacy` measures it",
    )
    max_anonymity_risk: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="reject a run if a singling-out, linkability or inference attack on its rows succeeds because users' events trained "
        "the translator: if the lower end of the 95 % interval of its risk is above this. Takes seconds of processor time. 1: off; "
        "`scalr privacy` measures it",
    )
    min_evidence_users: int = Field(
        default=0,
        ge=0,
        description="number of users who must have had a row's item in the translator's training events; 0: off",
    )
    max_drift_warn: float = Field(
        default=0.25, ge=0, description="PSI from the previously published run above which a warning is logged; 0: off"
    )
    max_loop_drift_warn: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="fall of the real events' tail share or effective number of items, or of the translator's calibration, since synthetic "
        "events were first published, above which a warning is logged; 0: off",
    )
    max_drift: float = Field(default=0.0, ge=0, description="the same PSI above which the run is rejected; 0: off")

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if own := sorted(set(value) & set(RULES.builtin)):
            raise ValueError(f"names {', '.join(own)}, which is always true: leave it out")
        return check_plugin_names(RULES, value)
