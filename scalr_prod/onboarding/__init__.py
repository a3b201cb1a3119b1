# SPDX-License-Identifier: Apache-2.0
"""Onboarding: `scalr init` inspects two logs and writes a scalr.toml that reads them."""

from __future__ import annotations

from scalr_prod.onboarding.asking import corrected, until_right
from scalr_prod.onboarding.guess import Asked, ItemGuess, LogGuess
from scalr_prod.onboarding.start import Beginning, Understood, check_free, understand

__all__ = ["Asked", "Beginning", "ItemGuess", "LogGuess", "Understood", "check_free", "corrected", "understand", "until_right"]
