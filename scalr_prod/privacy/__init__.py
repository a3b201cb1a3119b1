# SPDX-License-Identifier: Apache-2.0
"""Attacks on a run's rows: what they reveal about the users on whom the translator was trained, and about source histories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.privacy.measurement import (
        PrivacyReport,
        RunAttacks,
        attack_run,
        describe_privacy,
        measure_privacy,
        privacy_file,
    )
    from scalr_prod.privacy.promise import PROMISE

__all__ = ["PROMISE", "PrivacyReport", "RunAttacks", "attack_run", "describe_privacy", "measure_privacy", "privacy_file"]

__getattr__ = lazy_exports(
    __name__,
    {
        "PROMISE": "promise",
        "PrivacyReport": "measurement",
        "RunAttacks": "measurement",
        "attack_run": "measurement",
        "describe_privacy": "measurement",
        "measure_privacy": "measurement",
        "privacy_file": "measurement",
    },
)
