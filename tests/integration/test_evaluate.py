"""`evaluate` on made logs: what it reports, and that it cannot see what it must not."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import EvaluationError
from scalr_prod.evaluation import EvaluationRequest, evaluate
from scalr_prod.evaluation.arms import Arm, ArmDataBuilder
from scalr_prod.evaluation.evaluation import _validation_window, _validation_windows
from scalr_prod.evaluation.evaluation_report import ArmOutcomes, summarize_arms
from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.models.als import ImplicitAls
from scalr_prod.evaluation.models.snapshot import FEATURES, Snapshot
from scalr_prod.evaluation.parallel_fits import FitPool
from scalr_prod.evaluation.plan import EvaluationPlan, quick_context_limit
from scalr_prod.evaluation.progress import evaluation_progress
from scalr_prod.evaluation.published_sets import publish_synthetic_events
from scalr_prod.evaluation.result_cache import ResultCache
from scalr_prod.evaluation.search import Hyperparameter
from scalr_prod.evaluation.split import EvaluationSplit
from scalr_prod.evaluation.translation import DrawOptions, SplitTranslator
from scalr_prod.evaluation.trial_cache import TrialCache, ValidationSplit
from scalr_prod.evaluation.user_panel import UserPanel
from scalr_prod.generation import preview_run
from scalr_prod.generation.policy import Policy, apply_policy, policy_path
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set
from scalr_prod.translator import train

pytestmark = pytest.mark.usefixtures("at_hand", "short_search")
#: Evaluates, or makes, a project of its own; the other tests share one.
long = pytest.mark.long

CUTOFF = datetime(2024, 6, 1, tzinfo=UTC)
EXTRA = """
estimators = ["popularity", "linear"]
[generation]
contexts = "users"
partitions = 1
align = false
[compute]
workers = 1
[serving]
scorer = "local"
[quality]
max_bucket_distance = 1.0
[downstream]
models = ["als"]
seeds = 2
k = 5
volumes = [3]
temperatures = [0.1]
weights = [1.0]
threads = 1
"""
ARMS = ("real", "real+scalr", "popular_lately", "popular_in_cluster", "translator", "shuffled", "model_level_transfer")
TAUGHT = ("real+scalr", "shuffled")


@pytest.fixture(scope="module")
def short_search():
    """Few values to try for ALS, each fitted in a tenth of the time: tests/unit/evaluation/test_tuning.py is about the search."""
    with pytest.MonkeyPatch.context() as patch:
        factors = Hyperparameter("factors", (16, 8), step=2.0, low=8, high=16, is_integer=True)
        patch.setattr(ImplicitAls, "search_space", (Hyperparameter("alpha", (10.0, 40.0), low=10.0, high=40.0), factors))
        yield


@pytest.fixture(scope="module")
def half_cold(short_search, make_project, tmp_path_factory):
    settings = make_project(tmp_path_factory.mktemp("evaluate"), EXTRA)
    started = time.monotonic()
    report = evaluate(settings, EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5, arms=ARMS, full=True))
    return settings, report, time.monotonic() - started


@pytest.fixture(scope="module")
def translated(half_cold):
    """The test scene of the evaluation above, found again, and its translator."""
    settings, *_ = half_cold
    scene = EvaluationSplit.from_settings(settings, CUTOFF, end=None, cold_fraction=0.5, name="test")
    return scene, SplitTranslator.from_split(scene)


@pytest.mark.slow
def test_the_report_has_every_arm_with_its_interval(half_cold):
    settings, report, seconds = half_cold
    rows = {row["name"]: row for row in report.to_json()["arms"]}
    assert set(rows) == set(ARMS)
    ours = rows["real+scalr"]
    assert {"ndcg", "recall", "mrr", "coverage", "gini", "tail_share"} <= set(ours["metrics"])
    assert ours["ci95"][0] <= ours["lift_pct"] <= ours["ci95"][1]
    assert {"cold", "sparse", "dense", "head", "tail"} <= set(ours["slices"]) | {"sparse", "dense"}
    assert "scalr_over_this" in rows["shuffled"]
    assert 0 < ours["synthetic"]["coverage"] <= 1
    assert not any("synthetic" in rows[arm] for arm in set(ARMS) - {"real+scalr", "shuffled"})
    assert rows["popular_lately"]["metrics"]["ndcg"] > 0
    assert rows["popular_lately"]["seeds"] == rows["translator"]["seeds"] == 1
    assert report.users["all"] == sum(report.users[name] for name in ("cold", "sparse", "dense"))
    assert bool(report.runs) == report.choices["als"]["helps"]
    (verdict,) = report.verdict["models"]
    assert verdict["model"] == "als"
    assert report.verdict["best_baseline"] == verdict["best_baseline"] in {"real", "popular_lately", "best_by_segment"}
    assert verdict["ci95"][0] <= verdict["lift_over_best_pct"] <= verdict["ci95"][1]
    parts = [verdict[name] | {"name": name} for name in ("cold", "sparse", "dense") if name in verdict]
    better = (
        sum(part["cases"] * rows[part["best_baseline"]]["slices"][part["name"]]["ndcg"] for part in parts) / report.users["all"]
    )
    assert verdict["lift_over_best_pct"] == pytest.approx(100 * (ours["metrics"]["ndcg"] / better - 1))
    arms = report.choices["als"]["arms"]
    assert set(arms) == {"real", *TAUGHT, "model_level_transfer"}
    assert report.budget["als"]["shuffled"]["fits"] >= 0.5 * report.budget["als"]["real+scalr"]["fits"] > 0
    assert report.complete
    # The report rounds to tenths of a second.
    assert 0.9 * seconds < report.seconds <= seconds + 0.1, "the quick verdict and the reading of the logs count too"
    policy = Policy.read(policy_path(settings))
    chosen = report.choices["als"]
    assert policy.segment_weights == tuple(chosen["lambda"].values())
    bar = chosen["validation"].get("bar")
    assert policy.bar == (bar and {name: bar[name] for name in ("harm_probability", "max_harm_probability", "p_value")})
    assert "signal" not in arms["shuffled"]["validation"].get("bar", {})
    new = {name: row["slices"]["new"] for name, row in rows.items()}
    assert len({found["users"] for found in new.values()}) == 1, "every arm ranks for the same users as if they were new"
    assert verdict["new"]["cases"] == new["real"]["users"]
    assert set(TAUGHT) < {name for name, row in rows.items() if "blended" in row["slices"]}
    assert (policy.volume, policy.temperature) == (chosen["draw"]["volume"], chosen["draw"]["temperature"])
    assert apply_policy(settings)[0].training_set.segment_weights == policy.segment_weights
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert report.choices["als"]["validation"]["windows"] == 2
    assert list(report.to_summary()) == [
        "does it help",
        "by group",
        "tested on",
        "measured with",
        "next",
        "all methods",
        "report",
        "policy",
        "seconds",
    ]
    last = report.to_summary()["all methods"][-1]
    assert (last["method"], last["NDCG@5, all users"]) == ("real + synthetic events", round(ours["metrics"]["ndcg"], 4))
    shown = report.to_details()
    assert "fits" in shown["budget"]["als"]
    assert shown["helps"]["als"].startswith("accepted: λ = " if chosen["helps"] else "refused: λ = 0: ")
    lines = shown["arms"]
    assert [line["arm"] for line in lines] == [row["name"] for row in report.arms]
    assert "…" in lines[1]["lift % (95 % CI)"]
    table = pq.read_table(f"{report.path}/arms.parquet")
    assert table.column_names == ["arm", "model", "slice", "metric", "value"]
    assert set(table["arm"].to_pylist()) == set(ARMS)
    drawn = table.filter((pc.field("arm") == "shuffled") & (pc.field("slice") == "synthetic"))
    assert dict(zip(drawn["metric"].to_pylist(), drawn["value"].to_pylist(), strict=True)) == rows["shuffled"]["synthetic"]


@pytest.mark.slow
@long
def test_a_family_with_probabilities_is_chosen_and_judged_by_them(make_project, tmp_path):
    """The rankers know the source: NE is below 1 for cold users too, and every arm has it by segment with an interval."""
    settings = make_project(tmp_path, EXTRA.replace('["als"]', '["feature_ranker", "stacked_ranker"]'))
    report = evaluate(settings, EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5, arms=("real", "real+scalr")))
    assert [found["model"] for found in report.verdict["models"]] == ["feature_ranker", "stacked_ranker"]
    for model in report.choices:
        _check_probabilities(report, model)


def _check_probabilities(report, model):
    rows = {row["name"]: row.get("probabilities") for row in report.to_json()["arms"] if row["model"] == model}
    assert rows["popular_lately"] is None
    real, ours = rows["real"], rows["real+scalr"]
    assert set(real) == set(ours) == {"all", *(name for name in ("cold", "sparse", "dense") if report.users[name])}
    for name, part in real.items():
        assert part["ne"] < 1, name
        low, high = ours[name]["ne_ci95"]
        relative = 100 * (ours[name]["ne"] / part["ne"] - 1)
        assert ours[name]["ne_vs_real_pct"] == pytest.approx(relative, abs=0.2), "means over seeds, of NE and of losses"
        assert low <= ours[name]["ne_vs_real_pct"] <= high
    choice = report.choices[model]
    assert choice["validation"]["chosen_by"] == "information"
    assert choice["validation"]["information"] > 0
    (shown,) = (line for line in report.to_details()["arms"] if (line["arm"], line["model"]) == ("real+scalr", model))
    assert {"NE", "NE all % (95 % CI)", "NE cold % (95 % CI)"} <= set(shown)
    table = pq.read_table(f"{report.path}/arms.parquet").to_pylist()
    wanted = (model, "real", "cold", "ne")
    (cold,) = (row["value"] for row in table if (row["model"], row["arm"], row["slice"], row["metric"]) == wanted)
    assert cold == real["cold"]["ne"]


@long
@pytest.mark.slow
def test_what_an_arm_trained_on_before_is_of_the_earlier_scene_alone(translated):
    """Ids, not numbers, are compared: the earlier scene numbers users and items for itself."""
    scene, translation = translated
    maker, earlier = ArmDataBuilder(scene, translation), scene.earlier()
    arm = Arm("stacked_ranker", "real+scalr", {}, DrawOptions(3, 0.1), (1.0, 1.0, 1.0), 0.5)
    until = to_micros(earlier.cutoff)

    def ids(events, numbering, *, source=False):
        items = numbering.source_items if source else numbering.items
        named = (numbering.users.take(pa.array(events.user)).to_pylist(), items.take(pa.array(events.item)).to_pylist())
        return sorted(zip(*named, events.time.tolist(), strict=True))

    before = maker.events(arm, 0).before
    observed, synthetic = before.take(before.in_history()), before.take(~before.in_history())
    assert ids(observed, scene.numbering) == ids(earlier.real, earlier.numbering)
    assert ids(before.source, scene.numbering, source=True) == ids(earlier.source, earlier.numbering, source=True)
    assert before.until == until < scene.real.until
    assert max(observed.time.max(), before.source.time.max(), synthetic.time.max()) < until
    assert ids(synthetic, scene.numbering) == ids(SplitTranslator.from_split(earlier).draw(arm.draw), earlier.numbering)
    cold = np.setdiff1d(synthetic.user, observed.user)
    assert set(cold) & set(scene.real.user), "some are cold there, and have events since: what the trees learn from"

    # One deeper, somebody is newly hidden: names decide who is, and each depth has its own.
    deeper = earlier.earlier()
    hidden = set(deeper.numbering.users.filter(pa.array(deeper.hidden)).to_pylist())
    had = earlier.real.take(earlier.real.time < to_micros(deeper.cutoff)).user
    assert hidden & set(earlier.numbering.users.take(pa.array(had)).to_pylist())

    both = maker.events(replace(arm, name="model_level_transfer"), 0).before
    assert (both.catalogue, both.n_items) == (scene.real.n_items, scene.real.n_items + scene.source.n_items)
    target = both.take(both.item < both.catalogue)
    assert ids(target, scene.numbering) == ids(earlier.real, earlier.numbering)
    others = both.take(both.item >= both.catalogue)
    others = replace(others, item=others.item - np.int32(both.catalogue))
    assert ids(others, scene.numbering, source=True) == ids(earlier.source, earlier.numbering, source=True)


@pytest.mark.slow
def test_translated_tastes_help_users_whose_history_is_hidden(translated):
    """Every user of the made logs has a taste that the source shows: here a translation must help, a shuffled one must not."""
    scene, translation = translated
    judge, maker = SplitEvaluator(scene, 5), ArmDataBuilder(scene, translation)
    base = Arm("als", "real", {}, DrawOptions(3, 0.5, member="linear"), (0.3, 0.3, 0.3), 0.1)
    cold = scene.segments()[scene.users] == 0
    ndcg = {
        arm: judge.evaluate(judge.fit("als", {}, maker.events(replace(base, name=arm), 0), seed=0)).ranking.ndcg[cold].mean()
        for arm in ("real", "real+scalr", "shuffled")
    }
    assert ndcg["real+scalr"] > 1.2 * ndcg["real"]
    assert ndcg["real+scalr"] > 1.2 * ndcg["shuffled"]


@pytest.mark.slow
def test_the_isolated_home_holds_nothing_that_must_stay_out(translated):
    scene, _ = translated
    lake = Lake.open(scene.settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        rows = lake.read(table)
        assert max(rows["event_timestamp"].to_pylist()) < CUTOFF
        assert max(rows["created_timestamp"].to_pylist()) <= CUTOFF
    hidden = set(scene.numbering.users.filter(pa.array(scene.hidden)).to_pylist())
    assert len(hidden) > 0.3 * len(scene.numbering.users)
    assert not hidden & set(lake.read(Table.TARGET_EVENTS)["user_id"].to_pylist())
    assert hidden & set(scene.numbering.users.take(pa.array(scene.users)).to_pylist())


@pytest.mark.slow
def test_validation_windows_lie_one_before_the_other_and_those_too_short_are_left_out(translated, monkeypatch, caplog):
    scene, _ = translated
    later, earlier = (stage.evaluator.split for stage in _windows(scene) if stage.evaluator.split.hidden_in_home)
    assert earlier.cutoff < later.cutoff < scene.cutoff
    met = Lake.open(scene.settings).read(Table.TARGET_EVENTS).to_pandas()
    met = met[(met["event_timestamp"] >= earlier.cutoff) & (met["event_timestamp"] < later.cutoff)]
    between = set(zip(met["user_id"], met["item_id"], strict=True))
    user, item = earlier.relevant.nonzero()
    names = earlier.numbering.users.take(pa.array(user)), earlier.numbering.items.take(pa.array(item))
    judged = set(zip(*(column.to_pylist() for column in names), strict=True))
    assert len(judged) > 50
    assert judged <= between, "an earlier window ends where the later one begins"
    earlier_split = EvaluationSplit.earlier

    def too_short(self, number=0, **options):
        if number:
            raise EvaluationError("only 3 users")
        return earlier_split(self, number, **options)

    monkeypatch.setattr(EvaluationSplit, "earlier", too_short)
    assert {stage.evaluator.split.cutoff for stage in _windows(scene)} == {later.cutoff}
    assert "validation uses 1 of 2 windows" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("scalr_prod.evaluation.split.MIN_TEST_USERS", len(later.users) + 1)
    with pytest.raises(EvaluationError, match="only"):
        _windows(scene)


@pytest.mark.slow
def test_every_user_is_new_once_and_nothing_of_a_new_user_reaches_a_model(translated):
    """Neither real events, nor draws that know what the user had; all other users' draws are those of the split as it is."""
    scene, translation = translated
    builder = ArmDataBuilder(scene, translation)
    folds = scene.new_user_folds()
    assert len(folds) == 2
    tested = np.concatenate([fold.users for fold in folds])
    assert len(np.unique(tested)) == len(tested)
    assert set(scene.users) <= set(tested), "and some more, who had met all of their later items before"
    how = DrawOptions(3, 0.5)
    drawn = translation.draw(how)
    had = scene.real.matrix()
    met_again = 0
    for fold in folds:
        new = fold.hidden & ~scene.hidden
        assert new.any()
        assert not new[fold.real.user].any()
        assert (fold.segments()[fold.users] == 0).all()
        own = builder.with_new_users(fold).draw_events(how)
        others, before = (events.take(~fold.hidden[events.user]) for events in (own, drawn))
        assert np.array_equal(_pairs(others), _pairs(before))
        assert np.array_equal(np.sort(others.weight), np.sort(before.weight))
        of_new = own.take(new[own.user])
        met_again += int((np.asarray(had[of_new.user, of_new.item]).ravel() > 0).sum())
        assert (fold.held_out[new] > 0).multiply(had[new] > 0).nnz == (had[new] > 0).nnz, "no negative is an item that they had"
        relevant = fold.relevant[fold.users]
        assert (relevant.sum(1) >= scene.relevant[fold.users].sum(1)).all()
    assert met_again > 0, "to a new user, what the user had is proposed like anything else"
    assert not np.asarray(had[drawn.user, drawn.item]).ravel().any()


@pytest.mark.slow
def test_what_is_published_is_what_is_drawn(translated):
    scene, translation = translated
    how = DrawOptions(3, 0.5, min_lift=1.0, align=False)
    # The home also has a later version, as after an evaluation with other settings.
    other = scene.settings.model_copy(update={"translator": scene.settings.translator.model_copy(update={"seed": 1})})
    assert train(other, trained_until=scene.cutoff).version > translation.version
    events = publish_synthetic_events(scene, how, translation.version).events
    real, published = events.real, events.synthetic
    drawn = translation.draw(how)
    assert len(published) > 100
    assert np.array_equal(np.unique(real.user * 10_000 + real.item), np.unique(scene.real.user * 10_000 + scene.real.item))
    assert np.array_equal(_pairs(published), _pairs(drawn))
    assert np.allclose(published.weight[_order(published)], drawn.weight[_order(drawn)], atol=1e-5)


@long
@pytest.mark.slow
@pytest.mark.parametrize("repeats", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_with_an_event_as_context_what_is_published_is_what_is_drawn(make_project, tmp_path, repeats):
    """Many of a user's source events draw the same item at other times: the first is published, or all where users repeat items."""
    generation = f'contexts = "events"\nexclude_consumed = {str(not repeats).lower()}'
    settings = make_project(tmp_path, EXTRA.replace('contexts = "users"', generation))
    ingest(settings)
    split = EvaluationSplit.from_settings(settings, CUTOFF, end=None, cold_fraction=0.0, name="test")
    translation, how = SplitTranslator.from_split(split), DrawOptions(2, 0.5)
    assert len(translation.user) > 2 * len(np.unique(translation.user))
    published, drawn = publish_synthetic_events(split, how, translation.version).events.synthetic, translation.draw(how)
    order, other = (np.lexsort((events.time, events.item, events.user)) for events in (published, drawn))
    for column in ("user", "item", "time"):
        assert np.array_equal(getattr(published, column)[order], getattr(drawn, column)[other])
    assert np.allclose(published.weight[order], drawn.weight[other], atol=1e-5)
    assert (len(np.unique(_pairs(published), axis=1).T) < len(published)) == repeats


@pytest.mark.slow
def test_a_quick_verdict_asks_about_fewer_contexts_and_draws_the_same_for_them(translated, monkeypatch):
    """The fewer are some of all, drawn alike; results are kept."""
    scene, translation = translated
    how = DrawOptions(3, 0.5)
    assert quick_context_limit(scene) is None
    assert np.array_equal(SplitTranslator.from_split(scene, max_contexts=len(translation.user)).user, translation.user)
    monkeypatch.setattr("scalr_prod.evaluation.plan._QUICK_CONTEXTS", 40)
    assert quick_context_limit(scene) == 40
    some = SplitTranslator.from_split(scene, max_contexts=40)
    assert len(set(some.user.tolist())) == 40
    drawn = translation.draw(how)
    ours = drawn.take(np.isin(drawn.user, some.user))
    assert len(ours) > 40
    assert np.array_equal(_pairs(some.draw(how)), _pairs(ours))

    stage = ValidationSplit(SplitEvaluator(scene, 5), ArmDataBuilder(scene, translation), ResultCache.from_split(scene))
    arm = Arm("als", "real+scalr", {}, how, (0.3, 0.3, 0.3), 0.1)
    fits = []
    for _ in range(2):
        trials = TrialCache("als", [stage], 30.0, lambda *_: None, FitPool(1, 1))
        fits.append(len(trials.ndcg(arm)) and len(trials._models))
    assert fits == [1, 0]


def test_fewer_and_filtered_draws_are_those_sampled_alone(translated):
    """All options of one temperature share the draws of the largest volume."""
    _, translation = translated
    for options in (DrawOptions(3, 0.5), DrawOptions(7, 0.5, min_lift=1.0)):
        shared = translation._sample(options)
        alone = translation.module.sample(
            translation.contexts, options.volume, temperature=options.temperature, min_lift=options.min_lift
        )
        assert np.array_equal(shared.items, alone.items)
        assert np.allclose(shared.probabilities, alone.probabilities, rtol=1e-5)


@pytest.mark.slow
def test_the_rankers_features_are_those_of_the_feature_service_where_it_has_them(translated):
    """Counts, recency and ages of a training set's rows, joined through Feast, against a snapshot at each row's time."""
    scene, _ = translated
    wanted = scene.settings.training_set.model_copy(update={"source_history": True})
    built = build_training_set(scene.settings.model_copy(update={"training_set": wanted}))
    rows = TrainingSet.open(built.path).to_arrow()
    rows = rows.filter(pc.and_(pc.invert(rows["is_synthetic"]), pc.equal(rows["label"], 1)))
    events = replace(scene.numbering.to_interactions(rows, scene.cutoff), source=scene.source)
    assert len(events) == len(rows) == len(scene.real)
    asked = np.random.default_rng(0).permutation(len(rows))[:60]
    found = {name: [] for name in FEATURES}
    for row in asked:
        pair = (column[[row]].astype(int) for column in (events.user, events.item))
        for name, value in zip(FEATURES, Snapshot(events, int(events.time[row])).features(*pair)[0], strict=True):
            found[name].append(value)
    told = rows.take(pa.array(asked)).to_pylist()

    def days(row, before):
        return np.log1p((row["event_timestamp"] - before).total_seconds() / 86_400) if before else np.nan

    for domain in ("source", "target"):
        counts = [row[f"{domain}_user_history__event_count"] or 0 for row in told]
        last = [(row[f"{domain}_user_history__event_timestamps"] or [None])[-1] for row in told]
        assert found[f"{domain}_events"] == pytest.approx(np.log1p(counts))
        assert np.allclose(found[f"{domain}_recency"], [days(*pair) for pair in zip(told, last, strict=True)], equal_nan=True)
        assert len(set(counts)) > 2
    ages = [days(row, row["target_item_stats__first_seen"]) for row in told]
    assert np.allclose(found["item_age"], ages, equal_nan=True)


@pytest.mark.slow
@long
def test_a_planted_future_changes_no_metric(half_cold, make_project, tmp_path):
    """Source events from the cutoff on, and events of before it that became known later: nobody may have seen them."""
    _, expected, _ = half_cold
    settings = make_project(tmp_path, EXTRA)
    ingest(settings)
    lake = Lake.open(settings)
    for table, happened in ((Table.SOURCE_EVENTS, CUTOFF), (Table.SOURCE_EVENTS, _day(3)), (Table.TARGET_EVENTS, _day(3))):
        rows = lake.read(table)
        users = rows["user_id"].unique()
        item = rows["item_id"][0].as_py()
        count = len(users)
        planted = pa.table([users, [item] * count, [happened] * count, [_day(7)] * count, [1.0] * count], schema=rows.schema)
        lake.append(table, planted, key=f"planted {happened}")
    found = evaluate(settings, EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5, arms=ARMS, full=True))
    assert found.arms == expected.arms


@pytest.mark.slow
def test_with_shuffled_test_labels_there_is_no_lift(translated):
    scene, translation = translated
    rng = np.random.default_rng(0)
    base = Arm("als", "real", {}, DrawOptions(3, 0.5), (0.3, 0.3, 0.3), 0.1)
    inside = 0
    for _ in range(8):
        blind = replace(scene, relevant=scene.relevant[:, rng.permutation(scene.real.n_items)].tocsr())
        judge, maker = SplitEvaluator(blind, 5), ArmDataBuilder(scene, translation)
        outcomes = {
            arm: [
                [
                    judge.evaluate(judge.fit("als", {}, maker.events(replace(base, name=arm), seed), seed=seed))
                    for seed in range(2)
                ]
            ]
            for arm in ("real", "real+scalr")
        }
        results = ArmOutcomes(UserPanel.from_splits([blind]), None, outcomes)
        low, high = summarize_arms(results, "als")[1]["difference_ci95"]
        inside += low <= 0 <= high
    # One permutation may put popular items onto popular ones; most must not.
    assert inside >= 5


def test_a_split_draws_as_many_events_as_a_run_though_it_has_fewer_real_ones(half_cold):
    settings, *_ = half_cold
    generation = settings.generation.model_copy(update={"events_per_source_event": 20, "max_synthetic_ratio": 1.0})
    downstream = settings.downstream.model_copy(update={"volumes": (3, 20)})
    settings = settings.model_copy(update={"generation": generation, "downstream": downstream})
    limit = preview_run(settings).max_events_by_ratio
    assert 3 < limit < 10
    plan = EvaluationPlan.from_request(settings, EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5))
    found = plan.splits[0].settings.generation
    assert (found.events_per_source_event, found.temperature, found.max_synthetic_ratio) == (limit, 0.25, 0)
    assert plan.settings.downstream.volumes == (3, limit)
    nothing = generation.model_copy(update={"start": datetime(2034, 1, 1, tzinfo=UTC), "end": datetime(2034, 1, 2, tzinfo=UTC)})
    request = EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5)
    plan = EvaluationPlan.from_request(settings.model_copy(update={"generation": nothing}), request)
    assert plan.settings.generation.events_per_source_event == 20, "a run would translate nothing"


def test_too_few_test_users_is_an_error(make_project, tmp_path):
    settings = make_project(tmp_path, EXTRA)
    with pytest.raises(EvaluationError, match="only") as caught:
        evaluate(settings, EvaluationRequest(cutoff=datetime(2024, 7, 18, 23, tzinfo=UTC)))
    assert caught.value.where == "--cutoff", "what was given, not the setting that it overrides"


def test_an_unknown_arm_is_an_error(settings):
    with pytest.raises(EvaluationError, match="there is no arm magic"):
        evaluate(settings, EvaluationRequest(arms=("magic",)))


def _windows(scene):
    with evaluation_progress(show_bar=False) as pulse:
        return _validation_windows(_validation_window(scene, 0, None, pulse), scene, pulse)


def _day(day: int) -> datetime:
    month = 5 if day <= 5 else 6
    return datetime(2024, month, day + 10, tzinfo=UTC)


def _order(events):
    return np.lexsort((events.item, events.user))


def _pairs(events):
    order = _order(events)
    return np.stack([events.user[order], events.item[order]])


def test_arms_of_estimators_that_the_translator_lacks_are_left_out():
    from scalr_prod.evaluation.arms import ALL_ARMS
    from scalr_prod.evaluation.plan import select_arms

    every = select_arms(ALL_ARMS, ("popularity", "frequency", "topics", "linear", "factorisation", "sequential"))
    some = select_arms(ALL_ARMS, ("popularity", "linear"))
    assert set(every) == set(ALL_ARMS)
    assert set(every) - set(some) == {"frequency", "only_topics", "only_factorisation", "only_sequential"}
    assert select_arms((), ("linear",)) == ["real", "real+scalr", "popular_lately"]
