"""Times that the Python API is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from scalr_prod import Project, pipeline
from scalr_prod.core.timestamps import as_utc


def test_a_time_without_a_zone_is_utc():
    naive, there = datetime(2024, 5, 1, 2, tzinfo=UTC).replace(tzinfo=None), timezone(timedelta(hours=2))
    assert as_utc(naive) == naive.replace(tzinfo=UTC)
    assert as_utc(naive.replace(tzinfo=there)) == datetime(2024, 5, 1, 0, tzinfo=UTC)
    assert as_utc(None) is None


@pytest.mark.parametrize(
    ("method", "argument", "field"), [("ingest", "replace", "replace_from"), ("train", "trained_until", "trained_until")]
)
def test_the_python_api_reads_it_so_too(monkeypatch, method, argument, field):
    contexts = []
    monkeypatch.setattr(pipeline, "execute_single", lambda context, *_: contexts.append(context))
    project = SimpleNamespace(settings=None, progress=False)
    getattr(Project, method)(project, **{argument: datetime(2024, 5, 1, tzinfo=UTC).replace(tzinfo=None)})
    assert getattr(contexts[0], field) == datetime(2024, 5, 1, tzinfo=UTC)
