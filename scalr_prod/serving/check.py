# SPDX-License-Identifier: Apache-2.0
"""One thing that `scalr doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass

from scalr_prod.jsonable import Jsonable

__all__ = ["Check"]


@dataclass(frozen=True)
class Check(Jsonable):
    """One thing that was looked at.

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
