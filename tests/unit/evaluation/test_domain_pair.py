"""A pair is measured: signal is found where it is, and not where it is not; what cannot be measured is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.domain_logs import domain_log

from benchmarks.worlds import Events, World
from scalr_prod.config import Settings, settings_from_dict
from scalr_prod.evaluation.domain_pair import PairMeasurement, measure_pair
from scalr_prod.ingest import CellOrigin, IdParser

SMALL = {"users": 500, "topics": 16, "source_items": 64, "target_items": 320}


def settings(**sections: Any) -> Settings:
    domains = {"source": {"name": "a", "events": "none"}, "target": {"name": "b", "events": "none"}}
    return settings_from_dict({"domains": domains, "translator": {"threads": 1}, **sections})


def measured(world: World, **sections: Any) -> PairMeasurement:
    logs = world.make()
    return measure_pair(settings(**sections), ("a", "b"), domain_log(logs.source), domain_log(logs.target))


@pytest.mark.slow
def test_signal_is_found_and_measured_the_same_again():
    found = measured(World(signal=0.8, **SMALL))
    assert found.information is not None
    assert found.information.nats.low > 0.2
    assert found.lift is not None
    assert found.lift.comparison.ci95[0] > 0
    assert 0 < found.expected_gain_pct < found.lift.comparison.lift_pct  # shrunk
    assert found.reason is None
    assert (found.common_users, found.source_events, found.target_events) == (500, 10_000, 4_000)
    assert found.training_minutes > 0
    assert found.to_json() == measured(World(signal=0.8, **SMALL)).to_json()


@pytest.mark.slow
def test_logs_that_have_nothing_to_do_with_each_other_are_no_pair():
    """Popularity drifts, which the translator knows: that is no reason to join."""
    found = measured(World(signal=0.0, drift=1.0, **SMALL))
    assert found.information is not None
    assert found.information.nats.low < 0.001
    assert found.information.nats.high > -0.001
    assert found.lift is not None
    assert found.lift.comparison.ci95[0] < 0 < found.lift.comparison.ci95[1]
    assert found.expected_gain_pct == 0.0
    assert found.reason == "no information: own source histories are not measured to tell more than other users'"
    # Without that rule of the gate, the lift alone decides.
    without = replace(found, min_information=0.0)
    assert without.expected_gain_pct == pytest.approx(found.lift.gain.expected_pct)


def test_strangers_share_no_user():
    logs = World(**SMALL).make()
    found = measure_pair(settings(), ("a", "b"), domain_log(logs.source), domain_log(logs.target, first_user=10_000))
    assert (found.common_users, found.reason, found.expected_gain_pct) == (0, "no common users", None)
    assert found.to_json()["split_lift"] is None


def test_ids_of_different_types_are_told():
    logs = World(**SMALL).make()
    numbers, texts = (
        replace(domain_log(events), user_ids=IdParser(declared_type=kind, declared_at=CellOrigin(file, "user_id")))
        for events, kind, file in ((logs.source, "int64", "a.parquet"), (logs.target, "string", "b.parquet"))
    )
    found = measure_pair(settings(), ("a", "b"), numbers, texts)
    assert found.reason is not None
    assert found.reason.startswith("user ids of different types: contains string user ids, but a.parquet contains int64 ones")


@pytest.mark.parametrize("users", [1, 3])
def test_too_few_events_are_told(users):
    logs = World(**SMALL).make()

    def few(events: Events) -> Events:
        rows = events.user < users
        rows &= np.cumsum(rows) <= 2 * users
        return Events(events.user[rows], events.item[rows], events.time[rows])

    found = measure_pair(settings(), ("a", "b"), domain_log(few(logs.source)), domain_log(few(logs.target)))
    assert found.reason is not None
    assert found.reason.startswith("too few events: ")
    assert found.expected_gain_pct in {None, 0.0}


def test_pairs_worth_a_run_are_first_and_unmeasured_ones_last():
    plain = PairMeasurement("a", "b", 10, 100, 100, 1.0)
    told = [replace(plain, source=name, problem="no common users") for name in "zy"]
    assert [pair.source for pair in sorted([*told, plain], key=PairMeasurement.order)] == ["a", "y", "z"]
