"""What the project of `reported` (tests/integration/conftest.py) is made of: its runs are looked at by the report and by `scalr ui`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
HOSTILE_TITLE = "<script>document.title = 'taken'</script> & \"quoted\" 'title'"
#: Width and colours of a browser. Each width and each of the two schemes once; all four by night.
PAGES = [
    (1200, "light"),
    (390, "dark"),
    *(pytest.param(*page, marks=pytest.mark.nightly(reason="CONTRIBUTING.md")) for page in ((1200, "dark"), (390, "light"))),
]


def window(number):
    start = TRAINED + timedelta(days=14) * number
    return {"mode": "causal", "start": start, "end": start + timedelta(days=14), "as_of": start + timedelta(days=14)}
