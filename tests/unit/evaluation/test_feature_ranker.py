"""The feature ranker: tastes come from the other domain, synthetic events are rows of its loss, probabilities are right."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.interactions import Interactions, ProbabilisticModel
from scalr_prod.evaluation.models import family_hyperparameters, make_model

USERS, ITEMS, THINGS, TASTES = 300, 200, 60, 4
COLD = np.arange(USERS - 40, USERS)
END = 1000


def events_of(rng, user, items, source=None):
    """Events on items of each user's taste."""
    item = rng.integers(0, items // TASTES, len(user)) * TASTES + user % TASTES
    columns = user.astype(np.int32), item.astype(np.int32), rng.integers(0, END, len(user))
    return Interactions(*columns, np.ones(len(user), np.float32), USERS, items, END, source=source)


@pytest.fixture(scope="module")
def log():
    """All users have source events; the last forty have no target event."""
    rng = np.random.default_rng(0)
    source = events_of(rng, np.repeat(np.arange(USERS), 12), THINGS)
    return events_of(rng, np.repeat(np.arange(USERS - len(COLD)), 8), ITEMS, source)


def fitted(events, seed=0, **options):
    model = make_model("feature_ranker", {"num_trees": 30, "min_sum_hessian": 10} | options, threads=1)
    model.fit(events, seed=seed)
    return model


def of_own_taste(model):
    top = np.argsort(-model.score(COLD), axis=1)[:, :5]
    return (top % TASTES == COLD[:, None] % TASTES).mean()


def test_users_without_target_events_are_ranked_by_what_the_source_says(log):
    assert of_own_taste(fitted(log)) > 0.9
    assert of_own_taste(fitted(replace(log, source=None))) < 0.6, "or the test needs no source"


def test_synthetic_events_are_rows_of_the_loss_with_their_weight(log):
    """Synthetic events that contradict the source: heavy ones turn the ranking round, light ones do not, and features stay."""
    user = np.repeat(np.arange(USERS), 6)
    other = replace(events_of(np.random.default_rng(1), (user + 1) % USERS, ITEMS), user=user.astype(np.int32)).synthetic()
    other = replace(other, time=np.full(len(other), END))
    real, light, heavy = fitted(log), fitted(log.joined([other.weighted(0.01)])), fitted(log.joined([other.weighted(30.0)]))
    assert of_own_taste(light) > 0.9
    assert of_own_taste(heavy) < 0.3
    assert np.array_equal(real._log.shortlist(COLD)[2], heavy._log.shortlist(COLD)[2], equal_nan=True)


def test_the_same_seed_gives_the_same_scores(log):
    first, again, other = (fitted(log, seed=seed).score(COLD) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_items_off_the_shortlist_follow_in_order_of_popularity(log, monkeypatch):
    monkeypatch.setattr("scalr_prod.evaluation.models.feature_rows._SHORTLIST_ITEMS", 20)
    late = replace(log, until=END + 1)  # another log, whose shortlists are not kept yet
    model = fitted(late)
    users = COLD[:7]
    scores = model.score(users)
    row, item, _ = model._log.shortlist(users)
    listed = np.zeros(scores.shape, bool)
    listed[row, item] = True
    assert 20 <= listed.sum(1).min() <= listed.sum(1).max() <= 80
    place = np.argsort(np.argsort(-model._log.latest_snapshot().log_popularity[-2], kind="stable"))
    for mine, score in zip(listed, scores, strict=True):
        assert score[~mine].max() < score[mine].min()
        assert (np.diff(score[~mine][np.argsort(place[~mine])]) < 0).all()


def test_it_is_calibrated_on_what_it_was_trained_on(log):
    model = fitted(log)
    assert isinstance(model, ProbabilisticModel)
    rows = model._log.observed_rows(model.hyperparameters.sampled_negatives)
    p = 1 / (1 + np.exp(-model.logits(rows.features)))
    weight = np.where(rows.label, 1, model.negatives / model.hyperparameters.sampled_negatives)
    assert (weight * p).sum() == pytest.approx(rows.label.sum(), rel=0.05)
    some = log.user[:50].astype(int), log.item[:50].astype(int)
    assert model.probability(*some) == pytest.approx(
        1 / (1 + np.exp(-model.logits(model._log.latest_snapshot().features(*some))))
    )


def test_settings_of_the_search_are_options_of_the_model():
    options = {knob.name: knob.values[0] for knob in family_hyperparameters("feature_ranker") if knob.name != "half_life"}
    assert options
    make_model("feature_ranker", options, threads=1)


def test_without_an_observed_event_all_pairs_are_alike_and_a_warning_says_so(log, caplog):
    """The arm with synthetic events alone: there is nothing that its features could count."""
    model = fitted(log.synthetic())
    assert "has no training rows" in caplog.text
    assert model.probability(COLD, COLD - 200) == pytest.approx(np.full(len(COLD), 1 / 11))
    scores = model.score(COLD)
    assert np.isfinite(scores).all()
    assert (scores == scores[0]).all()


def test_it_can_be_the_rival_of_both_domains(log):
    """Source items follow the target's in one catalogue, as `joint_interactions` numbers them."""
    source = log.source
    both = replace(log, n_items=ITEMS + THINGS).joined([replace(source, item=source.item + ITEMS, n_items=ITEMS + THINGS)])
    scores = fitted(both).score(COLD)
    assert scores.shape == (len(COLD), ITEMS + THINGS)
    top = np.argsort(-scores[:, :ITEMS], axis=1)[:, :5]
    assert (top % TASTES == COLD[:, None] % TASTES).mean() > 0.9


def test_a_missing_library_is_an_error_that_says_what_to_install(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(EvaluationError, match="scalr-prod\\[downstream\\]"):
        fitted(log)
