# SPDX-License-Identifier: Apache-2.0
"""Result of one check of `scalr doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from scalr_prod.jsonable import Jsonable

__all__ = ["Check"]


@dataclass(frozen=True)
class Check(Jsonable):
    """Describe the outcome of one check.

    Attributes:
        name: What was looked at.
        ok: Whether it can be used.
        found: What was found, in one sentence.
        next_step: What to do, where it cannot be used.
    """

    name: str
    ok: bool
    found: str
    next_step: str | None = None
