"""The families behind the protocol: each learns tastes, weighs events, and is the same again from the same seed."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import spearmanr

from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation.interactions import Interactions, ProbabilisticModel
from scalr_prod.evaluation.models import make_model, uses_source_events
from scalr_prod.evaluation.models.cluster_popularity import ClusterPopularity, cluster_users

#: Trains three families once or twice more.
long = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]
#: The families that learn users by their numbers; the feature ranker has tests of its own.
FAMILIES = ("als", "sasrec", "two_tower")
USERS, ITEMS, TASTES = 120, 40, 4
SMALL = {
    "als": {"factors": 8, "iterations": 5},
    "sasrec": {"dim": 16, "layers": 1, "length": 12, "epochs": 20, "batch": 16, "negatives": 64, "dropout": 0.1},
    "two_tower": {"dim": 16, "epochs": 30, "batch": 64, "negatives": 5},
}


@pytest.fixture(scope="module")
def tastes() -> Interactions:
    """Users 0 … 109 choose 6 items of their taste; the last ten have no event."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS - 10), 6)
    item = rng.integers(0, ITEMS // TASTES, len(user)) * TASTES + user % TASTES
    time = rng.integers(0, 1000, len(user))
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), time, np.ones(len(user), np.float32), USERS, ITEMS, until=1000
    )


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def fitted(family: str, events: Interactions, seed: int = 0, **options):
    model = make_model(family, SMALL[family] | options, threads=1)
    model.fit(events, seed=seed)
    return model


def test_it_ranks_items_of_the_users_taste_first(family, tastes):
    users = np.arange(USERS - 10)
    scores = fitted(family, tastes).score(users)
    assert scores.shape == (len(users), ITEMS)
    top = np.argsort(-scores, axis=1)[:, :5]
    assert (top % TASTES == users[:, None] % TASTES).mean() > 0.6


def test_users_without_events_are_given_what_is_popular(family, tastes):
    hot = replace(
        tastes,
        **{
            name: np.concatenate([getattr(tastes, name), extra])
            for name, extra in {
                "user": np.arange(100, dtype=np.int32),
                "item": np.full(100, 7, np.int32),
                "time": np.zeros(100, np.int64),
                "weight": np.ones(100, np.float32),
            }.items()
        },
    )
    scores = fitted(family, hot).score(np.arange(USERS - 10, USERS))
    assert np.isfinite(scores).all()
    place = (scores > scores[:, 7:8]).sum(1)
    assert (place < 3).all()


@long
def test_the_same_seed_gives_the_same_scores(family, tastes):
    few = {} if family == "als" else {"epochs": 4}
    first, again = (fitted(family, tastes, seed=3, **few).score(np.arange(20)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, fitted(family, tastes, seed=4, **few).score(np.arange(20)))


def test_weight_is_what_an_event_counts(family, tastes):
    """Half of the events contradict the tastes; nearly weightless, they do no harm."""
    other = replace(tastes, item=((tastes.item + 1) % ITEMS).astype(np.int32))
    light = fitted(family, tastes.joined([other.weighted(0.01)]))
    heavy = fitted(family, tastes.joined([other.weighted(5.0)]))
    users = np.arange(USERS - 10)

    def own(model):
        top = np.argsort(-model.score(users), axis=1)[:, :5]
        return (top % TASTES == users[:, None] % TASTES).mean()

    assert own(light) > own(heavy) + 0.2


@pytest.fixture(scope="module")
def skewed() -> Interactions:
    """400 users choose 4 items each of 200 by a Zipf law, one of four tastes; the last hundred have no event."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 201)
    user = np.repeat(np.arange(300), 4)
    item = np.concatenate(
        [
            rng.choice(
                200, 4, replace=False, p=(mine := np.where(np.arange(200) % 4 == n % 4, chance, chance / 10)) / mine.sum()
            )
            for n in range(300)
        ]
    )
    time = rng.integers(0, 1000, len(user))
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), time, np.ones(len(user), np.float32), 400, 200, until=1000
    )


def test_an_untrained_sasrec_ranks_by_popularity(skewed):
    model = make_model("sasrec", {"epochs": 0}, threads=1)
    model.fit(skewed, seed=0)
    popularity = skewed.popularity()
    for row in model.score(np.array([0, 7, 399])):
        assert spearmanr(row[popularity > 1], popularity[popularity > 1]).statistic > 0.9
        assert row[popularity == 0].max() < row[popularity > 2].min()


@long
def test_sasrec_with_default_settings_is_no_worse_than_popularity_on_a_small_log(skewed):
    """Users are asked for their last item; all but a tenth of it is in their taste, and half of that among ten items."""
    order = np.lexsort((skewed.time, skewed.user))
    last = order[np.flatnonzero(np.diff(skewed.user[order], append=-1))]
    rest = np.setdiff1d(np.arange(len(skewed)), last)
    model = make_model("sasrec", {}, threads=1)
    model.fit(skewed.take(rest), seed=0)
    users, wanted = skewed.user[last].astype(np.int64), skewed.item[last]
    seen = skewed.take(rest).matrix()[users].toarray() > 0

    def ndcg(scores):
        scores = np.where(seen, -np.inf, scores)
        place = (scores > np.take_along_axis(scores, wanted[:, None], 1)).sum(1)
        return np.where(place < 20, 1 / np.log2(place + 2), 0).mean()

    assert ndcg(model.score(users)) > 0.97 * ndcg(np.tile(skewed.take(rest).popularity(), (len(users), 1)))


@long
def test_sasrec_ranks_by_popularity_for_users_without_events_however_long_it_trains(skewed):
    """The state before a first event would rank by what users chose first, which is old."""
    popularity = skewed.popularity()
    first = replace(skewed, time=np.where(skewed.item % 4 == 0, 0, skewed.time + 1))
    model = make_model("sasrec", {"epochs": 12}, threads=1)
    model.fit(first, seed=0)
    for row in model.score(np.array([300, 399])):
        assert spearmanr(row, popularity).statistic > 0.99


@long
def test_sasrec_has_one_table_of_items(skewed):
    model = make_model("sasrec", {"epochs": 0}, threads=1)
    model.fit(skewed, seed=0)
    tables = [value for value in model._net.parameters() if value.dim() == 2 and len(value) >= skewed.n_items]
    assert len(tables) == 1
    assert float(tables[0].detach().std()) == pytest.approx(0.02, rel=0.1)


def test_sasrec_has_no_vector_for_a_user_with_observed_events(tastes):
    """Users of the same history have the same scores, with synthetic events and without."""
    other = replace(tastes, user=((tastes.user + 1) % USERS).astype(np.int32)).take(tastes.user == 0)
    twins = tastes.take(tastes.user > 1).joined([tastes.take(tastes.user == 0), other])
    first, second = fitted("sasrec", twins, epochs=4).score(np.arange(2))
    assert first == pytest.approx(second, abs=1e-5)
    told = replace(other, item=((other.item + 1) % ITEMS).astype(np.int32), time=np.full(len(other), 999)).synthetic()
    first, second = fitted("sasrec", twins.joined([told]), epochs=4).score(np.arange(2))
    assert first == pytest.approx(second, abs=1e-5)


def test_als_solves_for_confidence_one_plus_alpha_times_weight():
    """The last half step's normal equations (Hu, Koren, Volinsky 2008, equation 5), written out in numpy."""
    rng = np.random.default_rng(0)
    users, items, alpha, regularization = 30, 12, 10.0, 0.5
    user, item = (axis.astype(np.int32) for axis in np.nonzero(rng.random((users, items)) < 0.3))
    # Light synthetic cells among real ones: at alpha 10, 0.03 is confidence 1.3, no less than that of an unobserved cell.
    weight = rng.choice([0.03, 0.5, 1.0, 2.0], len(user)).astype(np.float32)
    time = np.zeros(len(user), np.int64)
    events = Interactions(user, item, time, weight, users, items, until=1)
    # The solver takes three conjugate-gradient steps, which are exact for three factors.
    model = make_model("als", {"factors": 3, "alpha": alpha, "regularization": regularization, "iterations": 4}, threads=1)
    model.fit(events, seed=0)

    weights = events.matrix().toarray().astype(np.float64)
    factors = model._users.astype(np.float64)
    for number in range(items):
        confidence = 1 + alpha * weights[:, number]
        left = factors.T @ (confidence[:, None] * factors) + regularization * np.eye(3)
        right = factors.T @ (confidence * (weights[:, number] > 0))
        assert model._items[number] == pytest.approx(np.linalg.solve(left, right), rel=1e-3, abs=1e-4)


def test_als_ranks_nothing_for_a_user_without_events(tastes):
    assert not fitted("als", tastes).score(np.arange(USERS - 10, USERS)).any()


def test_als_takes_a_cell_of_weight_zero_as_unobserved(tastes):
    """Decay lets old weights underflow to 0."""
    other = replace(tastes, item=((tastes.item + 1) % ITEMS).astype(np.int32), weight=np.zeros(len(tastes), np.float32))
    users = np.arange(USERS)
    with_zeros = fitted("als", tastes.joined([other])).score(users)
    assert with_zeros == pytest.approx(fitted("als", tastes).score(users), abs=1e-5)


def test_the_ranker_is_calibrated_on_what_it_was_trained_on(tastes):
    model = fitted("two_tower", tastes)
    assert isinstance(model, ProbabilisticModel)
    rng = np.random.default_rng(1)
    negative = rng.integers(0, ITEMS, (len(tastes), model.negatives)).ravel()
    users = np.concatenate([tastes.user, np.repeat(tastes.user, model.negatives)]).astype(np.int64)
    p = model.probability(users, np.concatenate([tastes.item, negative]).astype(np.int64))
    assert ((p > 0) & (p < 1)).all()
    assert p.sum() == pytest.approx(len(tastes), rel=0.4)
    assert p[: len(tastes)].mean() > 1.5 * p[len(tastes) :].mean()


class Broken:
    def fit(self, events, *, seed): ...


def test_a_model_of_ones_own(tastes, monkeypatch):
    """The one that docs/guides/evaluation.md shows."""
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "evaluation.md").read_text(), re.DOTALL)
    monkeypatch.setitem(sys.modules, "my_models", mine := ModuleType("my_models"))
    exec(shown, vars(mine))  # noqa: S102 - our own page
    mine.Broken = Broken
    model = make_model("my_models:Popular", {}, threads=1)
    model.fit(tastes, seed=0)
    assert np.argmax(model.score(np.array([0]))) == np.argmax(np.bincount(tastes.item))
    with pytest.raises(EvaluationError, match="score"):
        make_model("my_models:Broken", {}, threads=1)


def test_an_attribute_by_its_former_name_is_refused_with_the_new_one(monkeypatch):
    """It would be ignored otherwise: joint training would be tried for a model that uses source events by itself."""
    monkeypatch.setitem(sys.modules, "my_models", mine := ModuleType("my_models"))
    mine.Former = type("Former", (), {"fit": make_model, "score": make_model, "knows_source": True})
    with pytest.raises(EvaluationError, match="knows_source, which is called uses_source_events now") as caught:
        uses_source_events("my_models:Former")
    assert "rename knows_source" in caught.value.next_step


@pytest.mark.parametrize("name", ["magic", "no_such_module:Model", "json:Model", ":x"])
def test_an_unknown_model_is_an_error(name):
    with pytest.raises(EvaluationError, match="there is no model"):
        make_model(name, {}, threads=1)


def test_interactions_refuse_what_does_not_fit(tastes):
    with pytest.raises(ValueError, match="differ in length"):
        replace(tastes, time=tastes.time[1:])
    with pytest.raises(ValueError, match="item contains a number"):
        replace(tastes, n_items=3)
    assert len(tastes.weighted(0.0)) == 0
    assert tastes.matrix().sum() == len(tastes)


def test_a_synthetic_event_is_a_term_of_the_loss_and_never_a_history(tastes, monkeypatch):
    """Once trained, dropping a user's synthetic events from the tables that scores are made of must change nothing."""
    from scalr_prod.evaluation.models.ragged import RaggedInteractions

    lone = np.arange(USERS - 10, USERS, dtype=np.int32)
    told = replace(
        tastes.take(np.zeros(40, int)),
        user=np.repeat(lone, 4),
        item=(np.tile(np.arange(4), 10) * TASTES + np.repeat(lone, 4) % TASTES).astype(np.int32),
        time=np.full(40, 999),
    ).synthetic()
    for family in ("sasrec", "two_tower"):
        model = fitted(family, tastes.joined([told]), epochs=4)
        scores = model.score(lone.astype(np.int64))
        monkeypatch.setattr(model, "_synthetic", RaggedInteractions.from_interactions(told.take(np.zeros(0, int))))
        assert (model._history.count[lone] == 0).all(), family
        assert np.array_equal(model.score(lone.astype(np.int64)), scores), family


def test_users_without_history_are_ranked_by_their_synthetic_events(family, tastes):
    lone = np.arange(USERS - 10, USERS, dtype=np.int32)
    told = replace(
        tastes.take(np.zeros(60, int)),
        user=np.repeat(lone, 6),
        item=(np.tile(np.arange(6), 10) * TASTES + np.repeat(lone, 6) % TASTES).astype(np.int32),
        time=np.full(60, 999),
    ).synthetic()
    top = np.argsort(-fitted(family, tastes.joined([told])).score(lone.astype(np.int64)), axis=1)[:, :5]
    assert (top % TASTES == lone[:, None] % TASTES).mean() > 0.6


@long
def test_synthetic_events_alone_teach_tastes(family, tastes):
    users = np.arange(USERS - 10)
    top = np.argsort(-fitted(family, tastes.synthetic()).score(users), axis=1)[:, :5]
    assert (top % TASTES == users[:, None] % TASTES).mean() > 0.6


def test_observed_events_lose_weight_with_age_and_synthetic_ones_do_not(tastes):
    day = 86_400_000_000
    events = replace(tastes.take(np.arange(3)), time=np.array([0, 5, 10]) * day, until=10 * day)
    assert events.decayed(5.0).weight == pytest.approx([0.25, 0.5, 1.0])
    assert events.synthetic().decayed(5.0).weight == pytest.approx([1, 1, 1])
    mixed = events.joined([events.synthetic()])
    assert mixed.in_history().tolist() == [True] * 3 + [False] * 3
    assert mixed.take(mixed.in_history()).joined([]).observed.all()


def test_popularity_by_cluster_follows_the_source_domain():
    """Users of two cities, told by their source items alone; a user without source events gets what all users like."""
    rng = np.random.default_rng(0)
    users, city = 200, np.arange(200) % 2
    source_user = np.repeat(np.arange(users - 1), 6)
    source_item = rng.integers(0, 15, len(source_user)) * 2 + city[source_user]
    real_user = np.repeat(np.arange(users), 2)
    real_item = rng.integers(0, 5, len(real_user)) * 2 + city[real_user]
    source, real = (
        Interactions(
            user=user.astype(np.int32), item=item.astype(np.int32), time=np.zeros(len(user), np.int64),
            weight=np.ones(len(user), np.float32), n_users=users, n_items=30, until=1,
        )
        for user, item in ((source_user, source_item), (real_user, real_item))
    )  # fmt: skip
    cluster = cluster_users(source, 2, seed=0)
    assert cluster[-1] == -1
    assert {len(set(cluster[:-1][city[:-1] == one])) for one in (0, 1)} == {1}
    assert np.array_equal(cluster, cluster_users(source, 2, seed=0))
    model = ClusterPopularity(cluster, np.inf)
    model.fit(real, seed=0)
    top = np.argsort(-model.score(np.arange(users)), axis=1, kind="stable")[:, :5]
    assert (top[:-1] % 2 == city[:-1, None]).all()
    assert top[-1].tolist() == np.argsort(-real.popularity(), kind="stable")[:5].tolist()
    assert (cluster_users(source.take(np.zeros(len(source), bool)), 2, seed=0) == -1).all()
