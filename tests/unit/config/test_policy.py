"""A policy is applied if the settings leave a choice, and only under the settings that it was measured with."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import write_toml

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.result_cache import _computation_identity
from scalr_prod.generation.policy import Policy, apply_policy, logs_digest, policy_path, settings_digest, why_not_generated


def policy_of(settings, **changes) -> Policy:
    made = {
        "model": "als",
        "best_baseline": "popular_lately",
        "helps": True,
        "volume": 20,
        "temperature": 0.5,
        "min_lift": 0.0,
        "align": False,
        "segment_weights": (0.3, 0.1, 0.0),
        "sparse_below": 7,
        "settings": settings_digest(settings),
        "logs": logs_digest(settings),
        "report": "somewhere",
    }
    return Policy(**made | changes)


def test_without_a_policy_nothing_changes(settings):
    assert apply_policy(settings) == (settings, None)
    assert settings.training_set.resolved_segment_weights == (0.1, 0.1, 0.1)


def test_a_policy_sets_what_the_settings_leave_open(settings, caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    policy_of(settings).write(policy_path(settings))
    found, status = apply_policy(settings)
    assert (found.generation.events_per_source_event, found.generation.temperature) == (20, 0.5)
    assert (found.generation.min_lift, found.generation.align) == (0.0, False)
    assert found.training_set.resolved_segment_weights == found.training_set.segment_weights == (0.3, 0.1, 0.0)
    assert found.downstream.sparse_below == 7
    assert status.is_applied
    assert status.overridden == []
    assert json.loads(json.dumps(status.to_json()))["applied"]["generation.temperature"] == 0.5
    assert "generation.temperature = 0.5" in caplog.text
    assert found.domains == settings.domains


def test_what_the_settings_name_wins(two_domains, monkeypatch):
    monkeypatch.setitem(os.environ, "SCALR_GENERATION__MIN_LIFT", "2.0")
    settings = load_settings(
        write_toml(two_domains, "[generation]\ntemperature = 0.9\n[training_set]\nsynthetic_weight = 0.4\n")
    )
    policy_of(settings).write(policy_path(settings))
    found, status = apply_policy(settings)
    assert (found.generation.temperature, found.generation.min_lift) == (0.9, 2.0)
    assert found.generation.events_per_source_event == 20
    assert (found.training_set.resolved_segment_weights, found.training_set.segment_weights) == ((0.4, 0.4, 0.4), None)
    assert set(status.overridden) == {"generation.temperature", "generation.min_lift", "training_set.segment_weights"}


def test_a_policy_of_no_weight_says_that_nothing_is_generated(two_domains):
    settings = load_settings(write_toml(two_domains))
    policy_of(settings, helps=False, segment_weights=(0.0, 0.0, 0.0)).write(policy_path(settings))
    assert str(policy_path(settings)) in why_not_generated(settings)
    assert why_not_generated(apply_policy(settings)[0]) == why_not_generated(settings)
    weighed = load_settings(write_toml(two_domains, "[training_set]\nsynthetic_weight = 0.4\n"))
    other = load_settings(write_toml(two_domains, '[generation]\ncontexts = "users"\n'))
    assert why_not_generated(weighed) is why_not_generated(other) is None, "it is overridden, or not applied"


def test_a_policy_of_other_settings_is_not_applied(two_domains, caplog):
    settings = load_settings(write_toml(two_domains))
    policy_of(settings).write(policy_path(settings))
    other = load_settings(write_toml(two_domains, '[generation]\ncontexts = "users"\n'))
    found, status = apply_policy(other)
    assert found == other
    assert not status.is_applied
    assert "run scalr evaluate again" in caplog.text


def test_changed_logs_are_said_and_the_policy_still_holds(settings):
    policy_of(settings, logs="of last month").write(policy_path(settings))
    found, status = apply_policy(settings)
    assert found.generation.temperature == 0.5
    assert "changed since" in status.reason


def test_a_causal_project_is_told_that_a_backfill_was_measured(two_domains):
    settings = load_settings(write_toml(two_domains, '[generation]\nmode = "causal"\n'))
    policy_of(settings).write(policy_path(settings))
    assert "evaluations measure backfills" in apply_policy(settings)[1].reason


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weights": {"cold": "much"}}'])
def test_a_broken_policy_is_a_clear_error(settings, text):
    policy_path(settings).parent.mkdir(parents=True)
    policy_path(settings).write_text(text)
    with pytest.raises(EvaluationError, match="not a valid policy") as caught:
        apply_policy(settings)
    assert "scalr evaluate" in str(caught.value)


def test_a_policy_is_read_as_it_was_written(settings, tmp_path):
    written = policy_of(settings, bar={"harm_probability": 0.1, "max_harm_probability": 0.2, "p_value": 0.1})
    written.write(tmp_path / "a" / "policy.json")
    assert Policy.read(tmp_path / "a" / "policy.json") == written
    assert json.loads((tmp_path / "a" / "policy.json").read_text())["weights"] == {"cold": 0.3, "sparse": 0.1, "dense": 0.0}


def test_a_policy_of_before_the_bar_was_told_is_applied(settings):
    older = policy_of(settings).to_json()
    del older["bar"]
    policy_path(settings).parent.mkdir(parents=True)
    policy_path(settings).write_text(json.dumps(older))
    assert apply_policy(settings)[1].is_applied


def test_a_verdict_is_of_the_shortlists_that_were_drawn_from(two_domains):
    settings = load_settings(write_toml(two_domains))
    listed = [
        settings.model_copy(update={"generation": settings.generation.model_copy(update={"shortlist": n})}) for n in (50, 60)
    ]
    assert len({settings_digest(one) for one in (settings, *listed)}) == 3


def test_a_verdict_is_of_the_columns_that_are_mapped_and_of_the_pretraining(two_domains):
    settings = load_settings(write_toml(two_domains))
    columns = settings.domains.target.columns
    mapped = columns.model_copy(update={"event_type": "kind"})
    target = settings.domains.target.model_copy(update={"columns": mapped})
    other = settings.model_copy(update={"domains": settings.domains.model_copy(update={"target": target})})
    pretrained = settings.with_sections(translator={"pretraining_events": 1000})
    shorter = settings.with_sections(translator={"sequential_steps": 1000})
    assert len({settings_digest(one) for one in (settings, other, pretrained, shorter)}) == 4
    # A verdict from before this setting is of its default.
    assert "sequential_steps" not in settings.translator.recipe()


def test_a_policy_of_when_lambda_was_a_factor_on_each_row_is_not_applied(two_domains, caplog):
    """Its weights mean something else now."""
    settings = load_settings(write_toml(two_domains))
    asked = {"name", "events", "query", "columns"}
    told = settings.domains.model_dump(mode="json", include={"source": asked, "target": asked})
    for one in told.values():
        assert [one["columns"].pop(name) for name in ("event_id", "event_type", "value")] == [None] * 3
    made_of = [
        told,
        settings.histories.model_dump(mode="json"),
        settings.translator.model_dump(mode="json", exclude={"threads", "pretraining_events", "retrain_every", "pin"}),
        settings.generation.model_dump(mode="json", include={"contexts", "exclude_consumed"}),
    ]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    replace(policy_of(settings), settings=digest[:16]).write(policy_path(settings))
    assert apply_policy(settings)[0] == settings
    assert "by an earlier version" in caplog.text


def test_a_verdict_is_of_the_events_that_the_translator_learns_from(two_domains):
    settings = load_settings(write_toml(two_domains))
    weighed = {
        "types": {"view": 0.1, "buy": 1.0},
        "columns": settings.domains.target.columns.model_copy(update={"event_type": "t"}),
    }

    def with_target(**changes):
        target = settings.domains.target.model_copy(update=weighed | changes)
        return settings.model_copy(update={"domains": settings.domains.model_copy(update={"target": target})})

    learned, downstream = with_target(), with_target(weights_for="downstream")
    assert settings_digest(learned) != settings_digest(downstream)
    split = SimpleNamespace(settings=learned), SimpleNamespace(settings=downstream)
    assert len({json.dumps(_computation_identity(one), sort_keys=True) for one in split}) == 2
