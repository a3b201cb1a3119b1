# SPDX-License-Identifier: Apache-2.0
"""Attacks on a run's rows: what they reveal about the users on whom the translator was trained, and about source histories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from scalr_prod.privacy.measurement import (
        PrivacyReport,
        describe_privacy,
        measure_privacy,
        measure_run_membership,
        privacy_file,
    )

__all__ = ["PrivacyReport", "describe_privacy", "measure_privacy", "measure_run_membership", "privacy_file"]

__getattr__ = lazy_exports(
    __name__,
    {
        "PrivacyReport": "measurement",
        "describe_privacy": "measurement",
        "measure_privacy": "measurement",
        "measure_run_membership": "measurement",
        "privacy_file": "measurement",
    },
)
