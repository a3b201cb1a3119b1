# SPDX-License-Identifier: Apache-2.0
"""Parameters of a draw."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Race"]


@dataclass(frozen=True)
class Race:
    """Parameters of a draw, see `TranslatorModule.sample`."""

    k: int
    temperature: float
    min_lift: float
    member: str
    #: Number of items that are scored for a context; None: all.
    shortlist: int | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Components whose distributions are needed."""
        return tuple(dict.fromkeys(("popularity", self.member)))
