"""What each arm trains on, with draws that are made by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from scalr_prod.errors import EvaluationError, TranslatorError
from scalr_prod.evaluation.arms import (
    ABLATION_ARMS,
    CONTROL_ARMS,
    JOINT_BASELINE,
    TOP_K_TEMPERATURE,
    Arm,
    ArmDataBuilder,
    renumber,
)
from scalr_prod.evaluation.diagnostics import diagnose
from scalr_prod.evaluation.interactions import Interactions, TrainingSetEvents
from scalr_prod.evaluation.split import IdNumbering
from scalr_prod.evaluation.translation import DrawOptions
from scalr_prod.training_set import real_to_synthetic

USERS, ITEMS = 60, 30
ARM = Arm("als", "real+scalr", {}, DrawOptions(4, 0.5), (0.5, 0.2, 0.0), 0.1)


def events(user, item, weight=None) -> Interactions:
    user, item = np.asarray(user, np.int32), np.asarray(item, np.int32)
    weight = np.ones(len(user), np.float32) if weight is None else weight
    return Interactions(user, item, np.arange(len(user)), weight, USERS, ITEMS, until=10_000)


class Draws:
    """Stands for the translator: user u is given items u, u + 1 … (volume of them)."""

    def __init__(self):
        self.asked = []

    def draw(self, how: DrawOptions) -> Interactions:
        self.asked.append(how)
        user = np.repeat(np.arange(USERS), how.volume)
        item = (user + np.tile(np.arange(how.volume), USERS)) % ITEMS
        return events(user, item, np.full(len(user), 0.5, np.float32))


@dataclass
class Stage:
    real: Interactions
    source: Interactions
    held_out: object = None

    def segments(self):
        return (np.arange(USERS) % 3).astype(np.int8)

    def seen(self):
        return self.real.matrix()


@pytest.fixture
def maker() -> ArmDataBuilder:
    rng = np.random.default_rng(0)
    real = events(rng.integers(0, USERS, 200), rng.integers(0, 5, 200))
    source = events(rng.integers(0, USERS, 300), rng.integers(0, ITEMS, 300))
    return ArmDataBuilder(Stage(real, source), Draws())


def synthetic(maker: ArmDataBuilder, arm: str, seed: int = 0) -> Interactions:
    made = maker.events(replace(ARM, name=arm), seed)
    return made.take(np.arange(len(maker.split.real), len(made)))


def test_lambda_is_a_share_of_the_real_weight_and_zero_leaves_out(maker):
    """200 real events; 240 draws of confidence 0.5 weigh 120."""
    made = synthetic(maker, "real+scalr")
    segment = maker.split.segments()[made.user]
    assert set(segment) == {0, 1}
    ratio = real_to_synthetic(200.0, 120.0)
    assert ratio == pytest.approx(200 / 120, rel=0.1)
    assert np.allclose(made.weight, np.where(segment == 0, 0.5, 0.2) * ratio * 0.5)


def test_a_synthetic_event_never_weighs_more_than_its_confidence(maker):
    made = maker.apply_weights(events([0, 1], [1, 2], np.full(2, 0.5, np.float32)), (1.0, 1.0, 1.0))
    assert made.weight.tolist() == [0.5, 0.5]


def test_a_rare_item_that_a_popularity_discount_raises_weighs_no_more_than_a_real_event(maker):
    made = maker.apply_weights(events([0, 1], [1, 2], np.array([900.0, 0.01], np.float32)), (1.0, 1.0, 1.0))
    assert made.weight[0] == 1
    assert 0 < made.weight[1] < 1


def test_published_events_are_taken_where_there_are_some(maker):
    real, ours = maker.split.real.take(np.arange(50)), events([0, 3], [1, 2])
    made = maker.events(ARM, 0, TrainingSetEvents(real, ours))
    assert len(made) == 52
    assert maker.events(replace(ARM, name="synthetic_only"), 0, TrainingSetEvents(real, ours)) is ours


def test_controls_have_the_volume_and_weight_of_ours(maker):
    ours = synthetic(maker, "real+scalr")
    for arm in ("popularity", "trend", "frequency", "sampled", "top_k"):
        made = synthetic(maker, arm)
        assert len(made) == len(ours), arm
        assert made.weight.sum() == pytest.approx(ours.weight.sum()), arm


def test_popularity_draws_real_items_only(maker):
    assert set(synthetic(maker, "popularity").item) <= set(range(5))


def test_shuffled_gives_every_user_the_events_of_another_of_the_segment(maker):
    whole = Arm("als", "shuffled", {}, DrawOptions(4, 0.5), (1.0, 1.0, 1.0), 0.1)
    made = maker.synthetic_events(whole, 1)
    seen, segment = maker.split.seen(), maker.split.segments()
    giver = {}
    for user in range(USERS):
        had = set(seen[user].indices)
        got = set(made.item[made.user == user])
        alike = [
            other
            for other in range(USERS)
            if segment[other] == segment[user] and {(other + step) % ITEMS for step in range(4)} - had == got
        ]
        assert alike, "the events of one user of the same segment, without what the new user has had"
        giver[user] = user in alike
    assert np.mean(list(giver.values())) < 0.5


def test_duplicated_repeats_real_events(maker):
    real = set(zip(maker.split.real.user, maker.split.real.item, strict=True))
    made = synthetic(maker, "duplicated")
    assert set(zip(made.user, made.item, strict=True)) <= real


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        ("trend", {"member": "popularity"}),
        ("frequency", {"member": "frequency"}),
        ("sampled", {"temperature": 1.0}),
        ("top_k", {"temperature": TOP_K_TEMPERATURE}),
        ("top_1", {"temperature": TOP_K_TEMPERATURE, "volume": 1}),
        ("dose_2", {"volume": 8}),
        ("align_on", {"align": True}),
        ("align_off", {"align": False}),
        ("filter_on", {"min_lift": 1.0}),
        ("only_topics", {"member": "topics"}),
        ("only_linear", {"member": "linear"}),
        ("only_factorisation", {"member": "factorisation"}),
        ("only_sequential", {"member": "sequential"}),
    ],
)
def test_an_arm_changes_one_thing(maker, arm, change):
    maker.events(replace(ARM, name=arm), 5)
    assert vars(maker.translation.asked[-1]) == vars(ARM.draw) | change


def test_doses_thin_the_events(maker):
    full = len(synthetic(maker, "real+scalr"))
    assert 0.3 * full < len(synthetic(maker, "dose_0.5")) < 0.7 * full
    assert 0.1 * full < len(synthetic(maker, "dose_0.25")) < 0.4 * full


def test_the_joint_baseline_trains_on_both_domains_apart(maker):
    made = maker.events(replace(ARM, name=JOINT_BASELINE), 0)
    assert made.n_items == 2 * ITEMS
    source = made.take(made.item >= ITEMS)
    assert len(source) == len(maker.split.source)
    assert np.allclose(source.weight, 0.1)


def test_every_arm_can_be_made(maker):
    for arm in (*CONTROL_ARMS, *ABLATION_ARMS):
        assert len(maker.events(replace(ARM, name=arm), 0)) > len(maker.split.real)


def test_diagnostics_tell_copies_from_chance_and_like_from_unlike(maker):
    scene = maker.split
    rng = np.random.default_rng(3)
    secret = np.stack([np.repeat(np.arange(USERS), 2), rng.integers(0, ITEMS, 2 * USERS)])
    scene.held_out = sparse.csr_matrix((np.ones(2 * USERS), secret), shape=(USERS, ITEMS))
    copied = diagnose(scene, events(*secret))
    assert copied["held_out_copy_rate"] == 1
    assert copied["held_out_copy_rate_by_chance_max"] < 0.5
    again = diagnose(scene, scene.real)
    assert again["popularity_ks"] == again["popularity_tv"] == again["time_ks"] == 0
    assert abs(again["detector_auc"] - 0.5) < 0.1
    other = diagnose(scene, events(np.arange(USERS), np.full(USERS, 29)))
    assert other["popularity_ks"] > 0.9
    assert other["detector_auc"] > 0.9
    assert diagnose(scene, scene.real.take(np.zeros(0, int))) == {}


class Untaught:
    """An earlier scene whose translator cannot be trained."""

    def __init__(self, error):
        self.error, self.asked = error, 0

    def earlier(self):
        self.asked += 1
        raise self.error


@pytest.mark.parametrize("error", [EvaluationError("only 3 users"), TranslatorError("too little to learn from")])
def test_where_too_little_is_known_of_before_no_arm_has_it_and_one_warning_says_so(maker, caplog, monkeypatch, error):
    """Real events alone need no translator, and have nothing before either: or an arm would gain by what the others lack."""
    world = Untaught(error)
    if isinstance(error, EvaluationError):
        monkeypatch.setattr(maker.split, "earlier", world.earlier, raising=False)
    else:
        monkeypatch.setattr(maker.split, "earlier", lambda: maker.split, raising=False)
        monkeypatch.setattr("scalr_prod.evaluation.translation.SplitTranslator.from_split", lambda *_, **__: world.earlier())
    monkeypatch.setattr(maker.split, "cutoff", datetime(2024, 1, 1, tzinfo=UTC), raising=False)
    for arm in ("real", "real+scalr", JOINT_BASELINE, "real"):
        assert maker.events(replace(ARM, family="stacked_ranker", name=arm), 0).before is None
    assert world.asked == caplog.text.count(str(error).splitlines()[0]) == 1


def test_events_without_a_source_are_numbered_anew_as_well():
    """An empty log is not None: its users have numbers to be changed, too."""
    here, there = (
        IdNumbering(pa.array(users), pa.array(["a", "b"]), pa.array(things))
        for users, things in ((["u"], []), (["t", "u"], ["x"]))
    )
    own = Interactions(*(np.zeros(1, kind) for kind in (np.int32, np.int32, np.int64, np.float32)), 1, 2, until=5)
    none = replace(own.take(np.zeros(1, bool)), n_items=0)
    made = renumber(replace(own, source=none), here, there)
    assert (made.user.tolist(), made.n_users, made.source.n_users, made.source.n_items) == ([1], 2, 2, 1)
