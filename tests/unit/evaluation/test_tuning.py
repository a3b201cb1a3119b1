"""What is chosen for each arm, on judgements made by hand: λ goes to 0 where events do not help, and to where they do."""

# ruff: noqa: ARG002, ARG005 - a rule looks at what it needs

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.config.sections import DownstreamSettings, GenerationSettings
from scalr_prod.evaluation.arms import JOINT_BASELINE
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.evaluation.trial_cache import ValidationSplit
from scalr_prod.evaluation.tuning import Tuner, tune_half_life

USERS, ITEMS = 600, 1000
NO_BOOST = (0.0, 0.0, 0.0)
#: Each user's NDCG with real events only.
NOISE = np.random.default_rng(0).gamma(1.0, 0.05, USERS)
SETTINGS = SimpleNamespace(
    downstream=DownstreamSettings(volumes=(5, 20), temperatures=(1.0, 0.5, 0.02), weights=(0.1, 1.0)),
    generation=GenerationSettings(),
)
OURS = "real+scalr"


class Maker:
    """Events that are their arm and choice; what its translator was measured to know of users."""

    max_contexts = None

    def __init__(self, information=None):
        self.translation = SimpleNamespace(information=information)

    def events(self, arm, seed):
        return arm


class Judge:
    """A user's NDCG by a rule; users 0 mod 3 are cold, 1 sparse, 2 dense."""

    def __init__(self, rule, listed):
        self.rule, self.listed, self.fits = rule, listed, 0
        self.segments = np.arange(USERS) % 3
        self.noise = NOISE
        items = SimpleNamespace(items=pa.array(np.arange(ITEMS)))
        self.split = SimpleNamespace(users=np.arange(USERS), numbering=items, segments=lambda: self.segments, cutoff=object())

    def recent_popularity(self, half_life):
        return half_life

    def fit(self, family, options, events, *, seed, threads):
        self.fits += 1
        return events

    def evaluate(self, model, *, boost=NO_BOOST, half_life=np.inf):
        if isinstance(model, float):
            return self.ranked(self.listed(model))
        return self.ranked(self.rule(model.name, model, self.segments))

    def ranked(self, gain):
        """One item each is hit."""
        ndcg = self.noise * (1 + gain)
        hit = (np.arange(USERS) * 7 % ITEMS)[:, None]
        others = dict.fromkeys(("recall", "mrr", "head", "tail"), ndcg)
        return SimpleNamespace(ranking=Ranking(top=hit, gain=ndcg[:, None], ndcg=ndcg, **others))


def measured(low, users=100):
    return {"users": users, "own_over_others": {"nats": 0.4, "ci99": [low, 0.6]}}


def tuner_of(*rules, listed=lambda half_life: -0.5, counted=None, information=None):
    judges = [Judge(rule, listed) for rule in rules]
    stages = [ValidationSplit(judge, Maker(information)) for judge in judges]
    lately = tune_half_life(stages)
    tuner = Tuner("als", stages, SETTINGS, lately, lambda doing, fits: counted.append(fits) if counted is not None else None)
    return tuner, judges


def chosen(*rules, arm=OURS, **more):
    """What is chosen for an arm on a validation scene for each rule, the latest first; and its validation results."""
    return tune(tuner_of(*rules, **more)[0], arm)


def tune(tuner, arm):
    tuned = tuner.tune(arm)
    return tuned.arm, tuned.validation.to_json()


def only(arm, rule):
    """A rule for one arm with some weight; all others are as good as the noise."""

    def judged(name, choice, segment):
        return rule(choice, segment) if name == arm and any(choice.weights) else np.zeros(USERS)

    return judged


@pytest.mark.parametrize(("best", "edge"), [(20.0, False), (0.3, False), (3000.0, False), (1e9, True)])
def test_the_half_life_of_the_list_is_chosen_and_its_grid_widens(best, edge):
    figures = tune_half_life(
        [ValidationSplit(Judge(lambda *_: 0.0, lambda half_life: -abs(np.log(half_life / best)) / 10), Maker())]
    )
    assert figures.on_edge is edge
    assert {"1", "3", "7", "20", "90", "365"} <= set(figures.tried)
    if not edge:
        assert abs(np.log(figures.half_life / best)) < np.log(2)


def test_the_users_of_every_window_count():
    """What gains most in the latest window and loses in the one before is not chosen; what gains in both is."""

    def rule(gains):
        return only(OURS, lambda choice, segment: np.full(USERS, gains.get(choice.draw.temperature, 0.0)))

    latest, before = rule({1.0: 0.5, 0.5: 0.4, 0.02: 0.6}), rule({1.0: 0.5, 0.5: 0.4, 0.02: -0.3})
    assert chosen(latest)[0].draw.temperature == 0.02
    choice, figures = chosen(latest, before)
    assert choice.draw.temperature == 1.0
    assert figures["lift_pct"] == pytest.approx(50, abs=1)
    assert figures["windows"] == 2


def taste(choice, segment):
    """Cold users gain, sparse users do not care, dense users lose."""
    fitting = (choice.draw.temperature == 0.02) + (choice.draw.volume == 5)
    weight = np.minimum(np.asarray(choice.weights)[segment], 1.0)
    return weight * np.where(segment == 0, 1 + fitting, np.where(segment == 1, 0, -0.5))


def test_it_finds_what_helps_and_for_whom():
    choice, figures = chosen(only(OURS, taste))
    assert (choice.draw.temperature, choice.draw.volume) == (0.02, 5)
    assert choice.weights[0] >= 1.0
    assert choice.weights[1:] == (0.0, 0.0)
    assert figures["lift_pct"] > 50


def test_a_control_is_tuned_for_itself_with_the_budget_of_ours():
    """`trend` does best with other settings than ours; had it ours, it would look worse than it is."""

    def trend(choice, segment):
        fitting = (choice.draw.temperature == 1.0) + (choice.draw.volume == 20) + (choice.weights[0] >= 1.0)
        return np.full(USERS, 0.3 * fitting)

    def rule(arm, choice, segment):
        by_arm = {OURS: taste, "trend": trend}
        return by_arm[arm](choice, segment) if arm in by_arm and any(choice.weights) else np.zeros(USERS)

    tuner, _ = tuner_of(rule)
    (ours, of_ours), (control, of_control) = tune(tuner, OURS), tune(tuner, "trend")
    assert (ours.draw.temperature, ours.draw.volume) == (0.02, 5)
    assert (control.draw.temperature, control.draw.volume) == (1.0, 20)
    assert of_control["lift_pct"] == pytest.approx(90, abs=1)
    assert abs(of_ours["fits"] - of_control["fits"]) <= 0.5 * of_ours["fits"]


def test_the_budget_counts_every_fit():
    counted = []
    tuner, (judge,) = tuner_of(only(OURS, taste), counted=counted, information=measured(0.2))
    spent = sum(tune(tuner, arm)[1]["fits"] for arm in ("real", OURS, "trend", JOINT_BASELINE))
    assert spent == judge.fits == len(counted)


def test_what_others_gain_is_no_reason_to_harm_those_who_get_the_events():
    """Sparse users' events teach the model items that cold users like, and spoil the sparse users' own ranking."""

    def rule(choice, segment):
        cold, sparse, _ = np.minimum(choice.weights, 1.0)
        return np.where(segment == 0, cold + 2 * sparse, np.where(segment == 1, -0.3 * sparse, 0.0))

    choice, figures = chosen(only(OURS, rule))
    assert choice.weights[0] >= 1.0
    assert choice.weights[1:] == (0.0, 0.0)
    assert figures["ndcg"] < max(tried["ndcg"] for tried in figures["tried"]), "harm to some was worth more to others"


def noisy(gains):
    """A rule for λ → gain, with noise of each user for each λ: one standard error of the mean gain is 0.2."""

    def rule(choice, segment):
        weight = choice.weights[0]
        noise = np.random.default_rng(round(1000 * weight)).normal(0, 0.2 * USERS**0.5, USERS)
        return gains.get(round(weight, 2), 0.1) + noise - (NOISE * noise).sum() / NOISE.sum()

    return rule


def tuner_with_weights(rule, *weights):
    settings = SimpleNamespace(
        downstream=SETTINGS.downstream.model_copy(update={"weights": weights, "temperatures": (0.5,), "volumes": (20,)}),
        generation=SETTINGS.generation,
    )
    stages = [ValidationSplit(Judge(only(OURS, rule), lambda half_life: -0.5), Maker(measured(0.2)))]
    return Tuner("als", stages, settings, tune_half_life(stages), lambda doing, fits: None)


@pytest.mark.parametrize(
    ("gains", "weight"),
    [
        ({0.03: 2.1, 0.1: 2.0, 0.3: 2.0, 1.0: 1.0}, 0.1),  # the best is ahead of the default by chance
        ({0.03: 4.0, 0.1: 2.0, 0.3: 2.0, 1.0: 1.0}, 0.03),  # and here for a reason
        ({0.03: 1.0, 0.1: 2.0, 0.3: 3.9, 1.0: 4.0}, 0.3),  # two are alike: the nearer to the default
    ],
)
def test_a_default_is_left_only_for_more_than_a_standard_error(gains, weight):
    assert tune(tuner_with_weights(noisy(gains), 0.03, 0.1, 0.3, 1.0), OURS)[0].weights == (weight,) * 3


def test_what_a_segment_gains_is_not_given_up_for_less_than_all_users_notice():
    """Dense users gain, cold users lose almost as much by it: to all together no weight of theirs is much better than none."""

    def rule(choice, segment):
        cold, _, dense = np.minimum(choice.weights, 1.0)
        return np.where(segment == 0, cold - 0.062 * dense, np.where(segment == 2, 0.07 * dense, 0.0))

    choice, _ = chosen(only(OURS, rule))
    assert choice.weights[0] >= 1.0
    assert choice.weights[2] >= 1.0
    assert choice.weights[1] == 0


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_weight_is_zero_where_nothing_helps(gain, caplog):
    choice, _ = chosen(only(OURS, lambda choice, segment: np.full(USERS, gain)))
    assert choice.weights == (0.0, 0.0, 0.0)
    assert "refused: λ = 0" in caplog.text


def test_a_gain_within_the_noise_is_no_reason():
    noise = np.random.default_rng(1).normal(0.02, 1.0, USERS)
    choice, _ = chosen(only(OURS, lambda choice, segment: noise))
    assert choice.weights == (0.0, 0.0, 0.0)


def test_a_signal_decides_for_ours_alone():
    """A gain of 30 % that the same events given to others have, too."""

    def alike(name, choice, segment):
        return np.full(USERS, 0.3 * any(choice.weights) * (name in {OURS, "shuffled", "trend"}))

    for information, arm, kept in (
        (measured(0.2), OURS, True),
        (measured(-0.1), OURS, False),
        (measured(0.2, users=19), OURS, False),
        (None, OURS, False),
        ({"users": 100, "own_over_others": {"nats": 0.0, "ci99": [-0.01, 0.01]}}, OURS, False),
        (None, "trend", True),
        (None, "shuffled", True),
    ):
        choice, figures = chosen(alike, arm=arm, information=information)
        assert any(choice.weights) is kept, (information, arm)
        assert ("refused" in figures) is not kept
        assert ("over_shuffled" in figures["bar"]) is (arm == OURS and figures["bar"]["signal"] == "unclear")


def test_a_choice_is_judged_by_users_who_did_not_make_it():
    """Each temperature is best for users of its own by chance: the best of three looks 20 % ahead, and is level for all others."""
    own = np.random.default_rng(3).integers(0, 3, USERS)

    def rule(choice, segment):
        number = {1.0: 0, 0.5: 1, 0.02: 2}.get(choice.draw.temperature, 0)
        noise = np.random.default_rng(number).normal(0, 3.0, USERS)
        return np.where(own == number, np.abs(noise), noise - 0.5) * min(max(choice.weights), 1.0)

    _, figures = chosen(only(OURS, rule), information=measured(0.2))
    apparent = max(trial["ndcg"] for trial in figures["tried"]) / NOISE.mean() - 1
    assert figures["bar"]["lift_pct"] < 100 * apparent


@pytest.mark.parametrize("lightest", [0.015, 8.0])
def test_a_gain_is_found_where_it_lies_beyond_the_named_weights(lightest):
    """Five-fold at a λ that nobody named, harm at the others: λ is no reason to find nothing."""

    def rule(choice, segment):
        return np.full(USERS, 4.0 - 2.5 * abs(np.log10(max(choice.weights) / lightest)))

    choice, figures = chosen(only(OURS, rule))
    assert max(choice.weights) == pytest.approx(lightest, rel=0.8)
    assert figures["lift_pct"] > 200


def test_the_list_does_not_decide_for_a_model_that_is_not_blended_with_it():
    """Ours doubles what real events only reach, and the list is far beyond both: the verdict says so, and λ stays."""
    tuner, _ = tuner_of(only(OURS, lambda choice, segment: np.full(USERS, 1.0)), listed=lambda half_life: 3.0)
    choice, _ = tune(tuner, OURS)
    assert tuner.best_baselines()["all"] == "popular_lately"
    assert any(choice.weights)


def test_cold_users_are_compared_with_the_list_if_validation_has_none_of_them():
    """A quick verdict validates on users as they are, who all have a history; a model may rank nothing for the others."""
    judge = Judge(lambda *_: np.zeros(USERS), lambda half_life: -0.5)
    judge.segments = np.full(USERS, 2)
    splits = [ValidationSplit(judge, Maker())]
    tuner = Tuner("als", splits, SETTINGS, tune_half_life(splits), lambda *_: None)
    best = {"cold": "popular_lately", "sparse": "real", "dense": "real"}
    assert tuner.best_baselines() == {"all": "best_by_segment"} | best


def test_the_joint_baseline_gets_the_weight_that_suits_it():
    choice, figures = chosen(
        lambda arm, choice, segment: np.full(
            USERS, -abs(np.log(choice.source_weight / 3.0)) / 9 if arm == JOINT_BASELINE else 0.0
        ),
        arm=JOINT_BASELINE,
    )
    assert choice.source_weight == pytest.approx(3.0)
    assert figures["on_edge"] == []


def test_the_model_is_tuned_for_real_events_alone_beyond_its_grid():
    def rule(arm, choice, segment):
        options = choice.options
        return np.full(USERS, -(abs(np.log(options["alpha"] / 160)) + abs(np.log(min(options["half_life"], 1e4) / 30)) / 9) / 9)

    choice, figures = chosen(rule, arm="real")
    assert choice.options["alpha"] == pytest.approx(160)
    assert choice.options["half_life"] == pytest.approx(30)
    assert isinstance(choice.options["factors"], int)
    assert figures["on_edge"] == []


def test_a_model_with_synthetic_events_has_settings_of_its_own():
    """Real events alone do best at α 2.5 and 128 factors; with synthetic events, λ helps at a large α only, and 64 factors are better."""

    def rule(name, choice, segment):
        alpha, factors = choice.options["alpha"], choice.options["factors"]
        if name == OURS and any(choice.weights):
            return np.full(USERS, (0.5 if alpha >= 40 else -0.5) - 0.1 * (factors != 64))
        return np.full(USERS, -abs(np.log(alpha / 2.5)) / 10 - 0.1 * (factors != 128))

    tuner, _ = tuner_of(rule)
    real, ours = tune(tuner, "real")[0], tune(tuner, OURS)[0]
    assert (real.options["alpha"], real.options["factors"]) == (2.5, 128)
    assert (ours.options["alpha"] >= 40, ours.options["factors"]) == (True, 64)
    assert any(ours.weights)
    untuned = tuner.default_arm((0.1, 0.1, 0.1)).arm.options
    assert (untuned["alpha"], untuned["factors"]) == (40, 64), "a quick verdict has nothing to tune them on"
    assert tuner.default_arm((0.0, 0.0, 0.0)).arm.options == real.options


def test_settings_that_make_a_fit_slow_are_searched_after_the_others():
    """Factors are tried beyond the first value only with the chosen α, temperature and volume, and λ once more with them."""

    def rule(name, choice, segment):
        return np.full(USERS, 0.1 * (choice.options["factors"] != 64) + 0.05 * any(choice.weights))

    for name in ("real", JOINT_BASELINE, OURS):
        tuner, _ = tuner_of(rule)
        for arm in dict.fromkeys(("real", name)):
            tune(tuner, arm)
        tried = [one for one in tuner.trials.tried if one["arm"] == name]
        first = next(number for number, one in enumerate(tried) if one["options"]["factors"] != 64)
        assert len({one["options"]["alpha"] for one in tried[:first]}) > 1
        assert len({one["options"]["alpha"] for one in tried[first:]}) == 1
        assert len({(one["draw"]["temperature"], one["draw"]["volume"]) for one in tried[first:]}) == 1


def test_each_segment_has_the_boost_that_suits_it():
    """What is popular lately tells most of cold users, and nothing of dense ones."""

    class Boosted(Judge):
        def evaluate(self, model, *, boost=NO_BOOST, half_life=np.inf):
            wanted = np.array([10.0, 1.0, 0.0])[self.segments]
            return self.ranked(-0.05 * np.abs(np.log1p(np.asarray(boost)[self.segments]) - np.log1p(wanted)))

    stages = [ValidationSplit(Boosted(lambda *_: 0.0, lambda half_life: -0.5), Maker())]
    tuner = Tuner("als", stages, SETTINGS, tune_half_life(stages), lambda doing, fits: None)
    tuned = tuner.tune("real")
    cold, sparse, dense = tuned.blended.boost
    assert (sparse, dense) == (1.0, 0.0)
    assert cold >= 3.0
    assert tuned.arm.boost == NO_BOOST, "the model as it is trained"


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_an_arm_whose_weight_is_zero_is_that_of_real_events_alone(gain):
    """Its row is the real one's: not another model on the same events, which would make a control look worse than none."""

    def rule(arm, choice, segment):
        odd = 0.02 * (choice.options["factors"] == 128) if arm == "trend" and not any(choice.weights) else 0.0
        return np.full(USERS, odd + (gain if arm == "trend" and any(choice.weights) else 0.0))

    tuner, _ = tuner_of(rule)
    choice, _ = tune(tuner, "trend")
    assert (choice.weights, choice.options, choice.boost) == (
        (0.0, 0.0, 0.0),
        tuner.real_arm().options,
        tuner.real_arm().boost,
    )


def test_a_gain_on_two_items_is_no_reason():
    """All that is gained is gained on two items, that many users met: of users alone it would be far beyond chance."""

    class Few(Judge):
        def ranked(self, gain):
            found = super().ranked(gain)
            top = np.where(np.broadcast_to(gain, USERS) > 0, np.arange(USERS) % 2, np.arange(USERS) * 7 % ITEMS)
            return SimpleNamespace(ranking=replace(found.ranking, top=top[:, None]))

    rule = only(OURS, lambda choice, segment: np.where(np.arange(USERS) % 5 == 0, 1.0, -0.08))
    stages = [ValidationSplit(Few(rule, lambda half_life: -0.5), Maker())]
    tuner = Tuner("als", stages, SETTINGS, tune_half_life(stages), lambda doing, fits: None)
    assert tune(tuner, OURS)[0].weights == (0.0, 0.0, 0.0)
    spread = Tuner("als", tuner_of(rule)[0].splits, SETTINGS, tune_half_life(stages), lambda doing, fits: None)
    assert any(tune(spread, OURS)[0].weights)
