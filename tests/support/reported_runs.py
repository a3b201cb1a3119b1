"""What the project of `reported` (tests/integration/conftest.py) is made of: its runs are looked at by the report and by `scalr ui`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
HOSTILE_TITLE = "<script>document.title = 'taken'</script> & \"quoted\" 'title'"


def pages(width, scheme):
    """Widths and colours of a browser: this one, and the other three by night."""
    others = [(wide, colours) for wide in (1200, 390) for colours in ("light", "dark") if (wide, colours) != (width, scheme)]
    return [(width, scheme), *(pytest.param(*page, marks=pytest.mark.nightly(reason="CONTRIBUTING.md")) for page in others)]


def window(number):
    start = TRAINED + timedelta(days=14) * number
    return {"mode": "causal", "start": start, "end": start + timedelta(days=14), "as_of": start + timedelta(days=14)}
