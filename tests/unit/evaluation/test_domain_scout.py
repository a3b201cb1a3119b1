"""All pairs of several domains are ranked, with further sources for the best one."""

from __future__ import annotations

import json

import pytest
from support.domain_logs import domain_log

from benchmarks.worlds import World
from scalr_prod.config import settings_from_dict
from scalr_prod.errors import SettingsError
from scalr_prod.evaluation.domain_scout import compare_domains

SETTINGS = settings_from_dict(
    {
        "domains": {"source": {"name": "a", "events": "none"}, "target": {"name": "b", "events": "none"}},
        "translator": {"threads": 2},
    }
)


@pytest.mark.slow
def test_every_pair_is_listed_the_best_first_with_the_sources_that_add_information():
    """Two sources with few items tell half of what both tell; a fourth domain is of other users."""
    logs = World(signal=0.8, users=500, topics=16, source_items=16, target_items=320, source_events=24).make()
    domains = {name: domain_log(events) for name, events in logs.split().items()}
    domains |= {"shop": domain_log(logs.target), "strangers": domain_log(logs.source, first_user=10_000)}
    report = compare_domains(SETTINGS, domains)
    assert len({(pair.source, pair.target) for pair in report.pairs}) == 12
    assert report.best is not None
    assert report.best.target == "shop"
    assert set(report.sources) == {"even", "odd"}
    (further,) = report.further
    assert further.taken
    assert further.information is not None
    assert further.information.nats.low > 0.05
    alone = [pair for pair in report.pairs if "strangers" in {pair.source, pair.target}]
    assert list(report.pairs[-6:]) == alone
    assert {pair.reason for pair in alone} == {"no common users"}
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["best"]["target"] == "shop"
    assert len(report.rows()) == 12


def test_one_domain_is_no_pair():
    with pytest.raises(SettingsError, match="no pair of domains"):
        compare_domains(
            SETTINGS, {"a": domain_log(World(users=10, topics=2, source_items=4, target_items=4, own_topics=1).make().source)}
        )
