"""What a run's page and the list of runs say in words."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from scalr_prod.reporting.page import _describe_publication, _translator_metrics, _trend_charts


@pytest.mark.parametrize(
    ("held", "state", "head", "text"),
    [
        (1000, {}, "Published.", "1,000 synthetic events are in the feature view."),
        (990, {}, "Published.", "990 of its 1,000 events are in the feature view; the others were of erased users or items."),
        (0, {"is_hidden": True}, "Published, and disabled.", "scalr publication enable restores them."),
        (10, {"replaced_by": ["bf-2"]}, "Published, then replaced.", "bf-2 was published over its window."),
    ],
)
def test_why_events_of_a_published_run_are_missing(held, state, head, text):
    run = {"held": held, "published": 1000, "canary": None, "is_hidden": False, "replaced_by": []} | state
    told = _describe_publication(SimpleNamespace(**run))
    assert told["head"] == head
    assert told["text"].endswith(text)


def test_a_trend_is_in_the_order_of_its_axis():
    ends = {3: 500, 1: 10, 2: 100}  # as of the runs' last changes
    chart = _trend_charts([{"end": datetime(2026, month, 1, tzinfo=UTC), "rows": rows} for month, rows in ends.items()])
    assert chart[0]["summary"] == "From 10 to 500 rows."


def test_figures_of_no_or_few_users_are_left_out():
    own = {"nats": 0.5, "ci99": [0.5, 0.5]}
    measured = {"nll": 1.0, "ndcg@20": 0.0, "events": 9}
    metrics = {"all": {"mixture": measured}, "cold": {"mixture": measured | {"events": 0}}}
    manifest = {"metrics": metrics | {"information": {"users": 1, "own_over_others": own}}}
    told = _translator_metrics(manifest)
    assert told["information"] is None
    assert told["rows"][0]["cold"] == ""
    manifest["metrics"]["information"]["users"] = 20
    assert "0.50 nats" in _translator_metrics(manifest)["information"]
