# SPDX-License-Identifier: Apache-2.0
"""Parameters of a draw."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SampleRequest"]


@dataclass(frozen=True)
class SampleRequest:
    """Parameters of a draw, see `TranslatorModule.sample`."""

    k: int
    temperature: float
    min_lift: float
    component: str
    #: Number of items that are scored for a context; None: all.
    shortlist: int | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Components whose distributions are needed."""
        return tuple(dict.fromkeys(("popularity", self.component)))
