"""The stacked ranker: it trusts a collaborative score as far as an earlier one deserved it, and no row knows what came after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalr_prod.evaluation.interactions import Interactions, ProbabilisticModel
from scalr_prod.evaluation.models import family_hyperparameters, make_model, uses_earlier_events
from scalr_prod.evaluation.models.stacked_ranker import StackedRanker, StackedRankerHyperparameters

#: Trains the ranker once more.
long = pytest.mark.long

USERS, ITEMS, THINGS, TASTES = 300, 80, 60, 4
COLD = np.arange(USERS - 60, USERS)
#: Cold at the earlier instant as well, not any more after it.
LATE = np.arange(USERS - 140, USERS - 60)
END, BEFORE = 1000, 700
OPTIONS = {"min_sum_hessian": 5, "factors": 16, "stacking_min_sum_hessian": 5.0}


def events_of(rng, user, items, *, taste=None, begin=0, end=END):
    """Events on items of each user's taste."""
    taste = user % TASTES if taste is None else taste
    item = rng.integers(0, items // TASTES, len(user)) * TASTES + taste
    columns = user.astype(np.int32), item.astype(np.int32), np.sort(rng.integers(begin, end, len(user)))
    return Interactions(*columns, np.ones(len(user), np.float32), USERS, items, END)


@pytest.fixture(scope="module")
def real():
    """No source domain: what a user without target events likes is in synthetic events alone."""
    rng = np.random.default_rng(0)
    early = events_of(rng, np.repeat(np.arange(LATE[0]), 6), ITEMS, end=BEFORE)
    return early.joined([events_of(rng, np.repeat(np.arange(COLD[0]), 4), ITEMS, begin=BEFORE)])


def drawn(shift, seed=1):
    """Synthetic events of every user: of their taste, or of another one."""
    user = np.repeat(np.arange(USERS), 6)
    return events_of(np.random.default_rng(seed), user, ITEMS, taste=(user + shift) % TASTES).synthetic().weighted(0.3)


def as_of_before(real, synthetic):
    kept = real.take(real.time < BEFORE)
    return replace(kept if synthetic is None else kept.joined([synthetic]), until=BEFORE)


def fitted(events, before, seed=0, **options):
    model = make_model("stacked_ranker", OPTIONS | options, threads=1)
    model.fit(replace(events, before=before), seed=seed)
    return model


def share_of_taste(model, shift=0):
    top = np.argsort(-model.score(COLD), axis=1)[:, :5]
    return (top % TASTES == ((COLD + shift) % TASTES)[:, None]).mean()


@pytest.mark.slow
def test_cold_users_are_ranked_by_a_score_that_was_right_before(real):
    ours = fitted(real.joined([drawn(0)]), as_of_before(real, drawn(0, seed=2)))
    assert share_of_taste(ours) > 0.9
    assert share_of_taste(fitted(real, as_of_before(real, None))) < 0.5, "or the test needs no synthetic events"


def test_a_score_that_was_wrong_before_is_not_trusted(real):
    """Wrong then and now: the factorisation ranks another taste first, and the trees have seen what that is worth."""
    wrong = fitted(real.joined([drawn(1)]), as_of_before(real, drawn(1, seed=2)))
    alone = wrong._als.score(COLD)[:, :ITEMS]
    assert ((np.argsort(-alone, axis=1)[:, :5] % TASTES) == ((COLD + 1) % TASTES)[:, None]).mean() > 0.9
    assert share_of_taste(wrong, shift=1) < 0.3


def test_synthetic_events_are_in_no_feature_and_in_no_row_of_the_ranker(real):
    ours, alone = fitted(real.joined([drawn(0)]), as_of_before(real, drawn(0))), fitted(real, as_of_before(real, None))
    assert ours._ranker is alone._ranker
    before = as_of_before(real, None)
    rows = ours._labelled_rows(real, before)
    assert rows is alone._labelled_rows(real, before)


def test_rows_are_of_what_came_after_the_earlier_instant_and_know_nothing_of_it(real):
    model, before = StackedRanker(StackedRankerHyperparameters(**OPTIONS)), as_of_before(real, None)
    rows = model._labelled_rows(real, before)
    after = real.take(real.time >= BEFORE)
    pairs = set(zip(after.user.tolist(), after.item.tolist(), strict=True))
    assert rows.label.any()
    assert {
        pair for pair, one in zip(zip(rows.user.tolist(), rows.item.tolist(), strict=True), rows.label, strict=True) if one
    } <= pairs
    everything = set(zip(real.user.tolist(), real.item.tolist(), strict=True))
    assert not everything & {
        (u, i) for u, i, one in zip(rows.user.tolist(), rows.item.tolist(), rows.label, strict=True) if not one
    }
    # Half of what came after taken away: the rows that are left have the features that they had.
    fewer = model._labelled_rows(real.take((real.time < BEFORE) | (real.time % 2 == 0)), before)
    known = {(u, i): features for u, i, features in zip(rows.user, rows.item, rows.features, strict=True)}
    shared = [
        (known[u, i], features)
        for u, i, features in zip(fewer.user, fewer.item, fewer.features, strict=True)
        if (u, i) in known
    ]
    assert len(shared) > 100
    assert all(np.array_equal(*pair, equal_nan=True) for pair in shared)


def test_where_nothing_is_known_of_before_the_feature_ranker_alone_scores(real):
    model = fitted(real.joined([drawn(0)]), None)
    assert np.array_equal(model.score(COLD), model._ranker.score(COLD))
    distrusted = fitted(real.joined([drawn(0)]), as_of_before(real, drawn(0)), stacking_trees=0)
    assert np.array_equal(distrusted.score(COLD), distrusted._ranker.score(COLD))
    nothing_after = fitted(real, replace(real, until=END))
    assert np.array_equal(nothing_after.score(COLD), nothing_after._ranker.score(COLD))


@long
@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores(real):
    events, before = real.joined([drawn(0)]), as_of_before(real, drawn(0, seed=2))
    first, again, other = (fitted(events, before, seed=seed).score(COLD) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@long
def test_the_order_of_events_decides_no_row(real):
    """A training set has an order of its own: the negatives that stand beside what happened must not depend on it."""
    model, before = StackedRanker(StackedRankerHyperparameters(**OPTIONS)), as_of_before(real, None)
    shuffled = real.take(np.random.default_rng(7).permutation(len(real)))
    rows, others = model._labelled_rows(real, before), model._labelled_rows(shuffled, before)
    assert rows is not others
    for column in ("user", "item", "label", "features"):
        assert np.array_equal(getattr(rows, column), getattr(others, column), equal_nan=column == "features")


def test_it_gives_probabilities_beside_its_negatives(real):
    model = fitted(real.joined([drawn(0)]), as_of_before(real, drawn(0, seed=2)))
    assert isinstance(model, ProbabilisticModel)
    users, items = np.repeat(COLD, ITEMS), np.tile(np.arange(ITEMS), len(COLD))
    own = items % TASTES == users % TASTES
    p = model.probability(users, items)
    assert p[own].mean() > 3 * p[~own].mean()
    # A pair's probability depends on nothing that is asked beside it.
    assert np.allclose(model.probability(users[::7], items[::7]), p[::7])


def test_the_rival_factorises_both_domains_and_ranks_the_target_s(real):
    """Source events of the right taste: the factorisation knows cold users by them, and no label is of a source item."""
    rng = np.random.default_rng(5)
    source = events_of(rng, np.repeat(np.arange(USERS), 40), THINGS)

    def both(events, source):
        shifted = replace(source, item=source.item + np.int32(ITEMS), n_items=ITEMS + THINGS)
        return replace(events, n_items=ITEMS + THINGS, catalogue=ITEMS).joined([shifted])

    early = source.take(source.time < BEFORE)
    before = replace(both(as_of_before(real, None), early), until=BEFORE)
    models = [fitted(both(real, source), before, seed=seed) for seed in range(3)]
    assert models[0]._ranker._log.events.n_items == ITEMS
    assert models[0]._als.score(COLD).shape == (len(COLD), ITEMS + THINGS)
    # One seed differs from the next by up to .15.
    assert np.mean([share_of_taste(model) for model in models]) > 0.45, "chance gives .25"


def test_what_the_search_tries_are_options_of_the_model():
    assert uses_earlier_events("stacked_ranker")
    assert not uses_earlier_events("feature_ranker")
    make_model(
        "stacked_ranker",
        {knob.name: knob.values[0] for knob in family_hyperparameters("stacked_ranker") if knob.name != "half_life"},
        threads=1,
    )
