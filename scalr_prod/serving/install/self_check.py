# SPDX-License-Identifier: Apache-2.0
"""Result of one check of `scalr doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from scalr_prod.core.jsonable import Jsonable


@dataclass(frozen=True)
class DiagnosticCheck(Jsonable):
    """Describe the outcome of one check.

    Attributes:
        name: What was checked.
        ok: Whether it is usable.
        found: The finding, in one sentence.
        next_step: What to do if it is not usable; for a usable one, a warning's remedy.
    """

    name: str
    ok: bool
    found: str
    next_step: str | None = None
