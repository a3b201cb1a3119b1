"""A new translator takes the served one's place only if it is no worse on events that neither has learned from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.dataset as ds
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.features import apply_feature_repo
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.serving import promote_if_better, served_version
from scalr_prod.translator import load_version, train
from scalr_prod.translator.challenger_test import compare_versions

pytestmark = pytest.mark.slow

START = datetime(2024, 1, 1, tzinfo=UTC)
LOCAL = '[serving]\nscorer = "local"\n'
GOOD = ("popularity", "frequency", "linear")


def day(number: int) -> datetime:
    return START + timedelta(days=number)


@pytest.fixture(scope="module")
def project(make_project, tmp_path_factory):
    settings = make_project(tmp_path_factory.mktemp("logs"), LOCAL, users=400)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    return settings.base / "scalr.toml"


def trained(config, until: datetime, estimators=GOOD):
    settings = load_settings(config, translator={"estimators": estimators, "threads": 1})
    return settings, train(settings, trained_until=until).version


@pytest.fixture(scope="module")
def decisions(project):
    """Four versions in turn: the first; a worse recipe, later; the same recipe, later; the worse one, hours later."""
    made = {}
    for name, until, estimators in (
        ("first", day(120), GOOD),
        ("worse", day(150), ("popularity",)),
        ("later", day(150), GOOD),
        ("few", day(150) + timedelta(hours=3), ("popularity",)),
    ):
        settings, version = trained(project, until, estimators)
        made[name] = (promote_if_better(settings, version), version, served_version(settings))
    return made


def test_the_first_one_is_served(decisions):
    decision, version, served = decisions["first"]
    assert (decision.promoted, decision.served, served) == (True, version, version)
    assert decision.comparison is None


def test_a_worse_one_is_not(decisions):
    decision, version, served = decisions["worse"]
    first = decisions["first"][1]
    assert (decision.promoted, decision.served, served) == (False, first, first)
    assert version != first
    found = decision.comparison
    assert found["candidate_nll"] > found["served_nll"] + 2 * found["error"]
    assert str(found["candidate_nll"]) in decision.reason


def test_the_same_recipe_with_later_events_is(decisions):
    decision, version, served = decisions["later"]
    assert (decision.promoted, decision.served, served) == (True, version, version)
    found = decision.comparison
    assert found["candidate_nll"] == pytest.approx(found["served_nll"], abs=0.02), "what differs is the training's noise"


def test_with_too_few_new_events_the_served_one_stays(decisions):
    decision, _, served = decisions["few"]
    assert (decision.promoted, served) == (False, decisions["later"][1])
    assert "too few events" in decision.reason


def test_the_served_one_is_not_promoted_again(project, decisions):
    settings = load_settings(project)
    decision = promote_if_better(settings, served_version(settings))
    assert (decision.promoted, decision.reason) == (False, "it is served already")


def test_the_events_compared_on_are_those_between_the_two(project, decisions):
    """The served version's likelihood is the one that its own module gives for exactly these events."""
    settings = load_settings(project, translator={"estimators": GOOD, "threads": 1})
    first, later = decisions["first"][1], decisions["later"][1]
    found = compare_versions(settings, later, first)
    old = load_version(settings, first)
    assert (found.since, found.until) == (day(120).isoformat(), day(150).isoformat())
    past = Lake.open(settings).read(Table.TARGET_EVENTS, where=ds.field("event_timestamp") < day(150)).to_pandas()
    new = past.sort_values("event_timestamp").drop_duplicates(["user_id", "item_id"])  # runs propose nothing that a user had
    events = new[new["event_timestamp"] >= day(120)]
    known = old.vocabulary().target_index(events["item_id"].tolist()) >= 0
    assert found.events == int(np.sum(known)) >= 30
