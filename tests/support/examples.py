"""How many examples hypothesis tries: few in `make test`, several times as many by night."""

from __future__ import annotations

import os

__all__ = ["examples"]


def examples(few: int) -> int:
    """So many, times what ``SCALR_TEST_EXAMPLES`` says; `make faults` says 4."""
    return few * int(os.environ.get("SCALR_TEST_EXAMPLES", "1"))
