"""What the project of `reported` (tests/integration/conftest.py) is made of: its runs are looked at by the report and by `scalr ui`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
HOSTILE_TITLE = "<script>document.title = 'taken'</script> & \"quoted\" 'title'"


def window(number):
    start = TRAINED + timedelta(days=14) * number
    return {"mode": "causal", "start": start, "end": start + timedelta(days=14), "as_of": start + timedelta(days=14)}
