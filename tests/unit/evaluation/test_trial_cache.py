"""What choices are made by: NDCG, or for a class that says so what its probabilities tell."""

# ruff: noqa: ARG002, ARG005 - the protocol names what a rule does not need

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from scalr_prod.evaluation.arms import Arm
from scalr_prod.evaluation.models import selection_metric
from scalr_prod.evaluation.parallel_fits import FitPool
from scalr_prod.evaluation.probabilities import CalibratedPredictions, LabelledRows, PlattCalibrator
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.evaluation.translation import DrawOptions
from scalr_prod.evaluation.trial_cache import TrialCache, ValidationSplit
from scalr_prod.plugins import MODELS

USERS, PER_USER = 50, 200
REAL = Arm("my_models:Teller", "real", {}, DrawOptions(5, 1.0), (0.1, 0.1, 0.1), 1.0)


class Teller:
    """A model of one's own whose probabilities are what it is for."""

    selection_metric = "information"
    negatives = 9

    def fit(self, events, *, seed): ...

    def score(self, users):
        return np.zeros((len(users), 3), np.float32)


class Judge:
    """Labels follow logits of -2 ± 1; a model tells them with noise that grows with the λ of its choice."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        case = np.repeat(np.arange(USERS), PER_USER)
        self.logit = rng.normal(-2, 1, len(case))
        label = rng.random(len(case)) < 1 / (1 + np.exp(-self.logit))
        self.labelled = LabelledRows(case, case, case, label, (case % 3).astype(np.int8))
        self.noise, self.ranked, self.segments = rng.normal(0, 1, len(case)), 0, np.arange(USERS) % 3

    def fit(self, family, options, events, *, seed, threads):
        model = Teller()
        model.probability = lambda users, items: 1 / (1 + np.exp(-2 * (self.logit + events.weights[0] * self.noise)))
        return model

    def labelled_rows(self, negatives):
        assert negatives == Teller.negatives
        return self.labelled

    def evaluate(self, model, *, boost, half_life):
        self.ranked += 1
        ndcg = np.full(USERS, boost[0])
        others = dict.fromkeys(("recall", "mrr", "head", "tail"), ndcg)
        return SimpleNamespace(ranking=Ranking(top=np.zeros((USERS, 1), np.int32), gain=ndcg[:, None], ndcg=ndcg, **others))


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    maker = SimpleNamespace(events=lambda arm, seed: arm, max_contexts=None)
    return TrialCache(
        "my_models:Teller", [ValidationSplit(Judge(seed), maker) for seed in range(2)], 30.0, lambda *_: None, FitPool(1, 1)
    )


def test_a_class_says_what_it_is_chosen_by(trials):
    assert trials.selection_metric == "information"
    assert {family: selection_metric(family) for family in MODELS.builtin} == {
        "als": "ndcg", "sasrec": "ndcg", "two_tower": "ndcg", "feature_ranker": "information", "stacked_ranker": "information"
    }  # fmt: skip


def test_information_is_what_is_compared_and_no_boost_changes_it(trials):
    judges = [stage.evaluator for stage in trials._splits]
    good, bad = (replace(REAL, weights=(noise, 0, 0)) for noise in (0.1, 2.0))
    assert trials.mean_score(good) > trials.mean_score(bad) > 0
    assert trials.mean_score(replace(good, boost=(3.0, 3.0, 3.0))) == trials.mean_score(good)
    assert trials.user_scores(good).shape == (2 * USERS,)
    assert trials.fits["real"] == 4
    assert [judge.ranked for judge in judges] == [0, 0]
    assert [one["weights"][0] for one in trials.tried] == [0.1, 2.0]
    assert "ndcg" not in trials.tried[0]
    assert trials.ndcg(good).mean() == good.boost[0]
    assert [judge.ranked for judge in judges] == [1, 1]


def test_the_scale_undoes_what_the_models_of_all_scenes_get_wrong_alike(trials):
    """The logits are doubled: half of each is right."""
    scale = trials.fit_calibrator(replace(REAL, weights=(0.0, 0, 0)))
    assert scale.slope == pytest.approx([0.5] * 3, abs=0.15)
    assert scale.offset == pytest.approx([0.0] * 3, abs=0.35)


def test_information_is_one_less_ne_times_the_entropy_of_the_base_rate(trials):
    rows = trials._splits[0].evaluator.labelled
    told = CalibratedPredictions(rows, PlattCalibrator((0.5,) * 3, (0.0,) * 3)(np.full(len(rows.label), 0.2), rows.segment))
    base = rows.label.mean()
    entropy = -base * np.log(base) - (1 - base) * np.log(1 - base)
    assert told.information_gain().mean() == pytest.approx(entropy - told.log_loss.mean())


def test_arms_that_differ_in_their_boost_alone_are_fitted_once_though_they_are_ranked_at_once(monkeypatch):
    fits = []

    class Slow(Judge):
        def fit(self, family, options, events, *, seed, threads):
            fits.append(events.weights)
            time.sleep(0.05)
            return super().fit(family, options, events, seed=seed, threads=threads)

    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    maker = SimpleNamespace(events=lambda arm, seed: arm, max_contexts=None)
    monkeypatch.setattr(Teller, "selection_metric", "ndcg")
    trials = TrialCache(
        "my_models:Teller", [ValidationSplit(Slow(seed), maker) for seed in range(2)], 30.0, lambda *_: None, FitPool(4, 4)
    )
    boosts = [replace(REAL, boost=(boost, boost, boost)) for boost in (0.0, 0.5, 1.0)]
    trials.prepare([*boosts, replace(REAL, weights=(0.3, 0.3, 0.3))])
    assert sorted(fits) == [(0.1, 0.1, 0.1)] * 2 + [(0.3, 0.3, 0.3)] * 2
    assert [trials.ndcg(one).mean() for one in boosts] == [0.0, 0.5, 1.0]
    assert (trials.fits["real"], trials.rankings["real"]) == (4, 8)


def test_arms_are_fitted_once_also_where_the_first_one_s_ranking_was_kept(monkeypatch):
    """After an interruption the ranking without a boost comes from the cache, and no model is there for the others."""
    fits = []

    class Slow(Judge):
        def fit(self, family, options, events, *, seed, threads):
            fits.append(seed)
            time.sleep(0.05)
            return super().fit(family, options, events, seed=seed, threads=threads)

    monkeypatch.setitem(sys.modules, "my_models", sys.modules[__name__])
    monkeypatch.setattr(Teller, "selection_metric", "ndcg")
    maker = SimpleNamespace(events=lambda arm, seed: arm, max_contexts=None)
    trials = TrialCache("my_models:Teller", [ValidationSplit(Slow(0), maker)], 30.0, lambda *_: None, FitPool(4, 4))
    first = trials._find_hits

    def kept(index, arm, threads):
        return np.zeros((3, 0)) if arm.boost == (0.0, 0.0, 0.0) else first(index, arm, threads)

    monkeypatch.setattr(trials, "_find_hits", kept)
    trials.prepare([replace(REAL, boost=(boost, boost, boost)) for boost in (0.0, 0.5, 1.0, 3.0)])
    assert len(fits) == 1
