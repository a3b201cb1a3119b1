"""λ goes to 0 where synthetic events do not help, and to where they do, on judgements made by hand."""

# ruff: noqa: ARG002, ARG005 - a rule looks at what it needs

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scalr_prod.downstream.arms import RIVAL
from scalr_prod.downstream.tuning import Stage, fits_of, tune
from scalr_prod.sections import DownstreamSettings, GenerationSettings

USERS = 600
SETTINGS = SimpleNamespace(
    downstream=DownstreamSettings(volumes=(5, 20), temperatures=(1.0, 0.5, 0.02), weights=(0.1, 1.0)),
    generation=GenerationSettings(),
)


class Maker:
    def events(self, arm, choice, seed):
        return arm, choice


class Judge:
    """A user's NDCG by a rule; users 0 mod 3 are cold, 1 sparse, 2 dense."""

    def __init__(self, rule):
        self.rule, self.fits = rule, 0
        self.segments = np.arange(USERS) % 3
        self.noise = np.random.default_rng(0).gamma(1.0, 0.05, USERS)

    def trial(self, family, options, events, *, seed):
        self.fits += 1
        arm, choice = events
        gain = self.rule(arm, choice, self.segments)
        return SimpleNamespace(ranking=SimpleNamespace(ndcg=self.noise * (1 + gain)))


def chosen(*rules):
    """What is chosen on a validation scene for each rule, the latest first."""
    judges = [Judge(rule) for rule in rules]
    choice, figures = tune("als", [Stage(judge, Maker()) for judge in judges], SETTINGS, lambda _: None)
    settings = SimpleNamespace(downstream=SETTINGS.downstream.model_copy(update={"windows": len(rules)}))
    assert sum(judge.fits for judge in judges) <= fits_of(settings, "als")
    return choice, figures


def test_the_users_of_every_window_count():
    """What gains most in the latest window and loses in the one before is not chosen; what gains in both is."""

    def rule(gains):
        return lambda arm, choice, segment: np.full(
            USERS, gains[choice.draw.temperature] if arm == "real+scalr" and any(choice.weights) else 0.0
        )

    latest, before = rule({1.0: 0.5, 0.5: 0.4, 0.02: 0.6}), rule({1.0: 0.5, 0.5: 0.4, 0.02: -0.3})
    assert chosen(latest)[0].draw.temperature == 0.02
    choice, figures = chosen(latest, before)
    assert choice.draw.temperature == 1.0
    assert figures["lift_pct"] == pytest.approx(50, abs=1)


def test_it_finds_what_helps_and_for_whom():
    def rule(arm, choice, segment):
        if arm != "real+scalr":
            return np.zeros(USERS)
        fitting = (choice.draw.temperature == 0.02) + (choice.draw.volume == 5)
        weight = np.asarray(choice.weights)[segment]
        # Cold users gain, sparse users do not care, dense users lose.
        return weight * np.where(segment == 0, 1 + fitting, np.where(segment == 1, 0, -0.5))

    choice, figures = chosen(rule)
    assert (choice.draw.temperature, choice.draw.volume) == (0.02, 5)
    assert choice.weights == (1.0, 0.0, 0.0)
    assert figures["real+scalr"] > figures["real"]


def test_what_others_gain_is_no_reason_to_harm_those_who_get_the_events():
    """Sparse users' events teach the model items that cold users like, and spoil the sparse users' own ranking."""

    def rule(arm, choice, segment):
        cold, sparse, _ = choice.weights if arm == "real+scalr" else (0.0, 0.0, 0.0)
        return np.where(segment == 0, cold + 2 * sparse, np.where(segment == 1, -0.3 * sparse, 0.0))

    choice, figures = chosen(rule)
    assert choice.weights == (1.0, 0.0, 0.0)
    assert figures["real+scalr"] < max(tried["ndcg"] for tried in figures["tried"]), "harm to some was worth more to others"


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_weight_is_zero_where_nothing_helps(gain, caplog):
    choice, figures = chosen(lambda arm, choice, segment: np.full(USERS, gain if arm == "real+scalr" else 0.0))
    assert choice.weights == (0.0, 0.0, 0.0)
    assert "λ is 0" in caplog.text
    assert figures["ci95"][0] <= 0


def test_a_gain_within_the_noise_is_no_reason():
    noise = np.random.default_rng(1).normal(0.02, 1.0, USERS)
    choice, figures = chosen(lambda arm, choice, segment: noise if arm == "real+scalr" else np.zeros(USERS))
    assert figures["ci95"][0] < 0 < figures["ci95"][1]
    assert choice.weights == (0.0, 0.0, 0.0)


def test_the_rival_gets_the_weight_that_suits_it():
    choice, _ = chosen(lambda arm, choice, segment: np.full(USERS, -abs(choice.source_weight - 0.5) if arm == RIVAL else 0.0))
    assert choice.source_weight == 0.5


def test_the_model_is_tuned_for_real_events_alone():
    choice, _ = chosen(
        lambda arm, choice, segment: np.full(
            USERS, float(arm == "real" and choice.options == {"alpha": 40.0, "regularization": 1.0})
        )
    )
    assert choice.options == {"alpha": 40.0, "regularization": 1.0}
