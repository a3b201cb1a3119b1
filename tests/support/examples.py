"""How much of a sweep `make test` runs: few examples of hypothesis and few cases of a long list. Other tiers run the rest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["examples", "sweep"]


def examples(few: int) -> int:
    """So many, times what ``SCALR_TEST_EXAMPLES`` says; `make test-long` says 3, `make faults` says 12."""
    return few * int(os.environ.get("SCALR_TEST_EXAMPLES", "1"))


def sweep(cases: Iterable[Any], keep: int) -> list[Any]:
    """Return all cases of a parametrized test, and mark those after the first ``keep`` as long: they take the same lines."""
    return [
        case if number < keep else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for number, case in enumerate(cases)
    ]
