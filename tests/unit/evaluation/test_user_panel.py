"""Cases of several cutoffs side by side, and what is said of them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from scalr_prod.evaluation.evaluation_report import ArmOutcomes, EvaluationReport, build_verdict, summarize_arms
from scalr_prod.evaluation.probabilities import CalibratedPredictions, LabelledRows
from scalr_prod.evaluation.ranking_metrics import Ranking
from scalr_prod.evaluation.user_panel import UserPanel

DISCOUNT = 1 / np.log2(np.arange(2, 5))


def scene_of(users, items, segments):
    return SimpleNamespace(
        users=np.asarray(users),
        numbering=SimpleNamespace(items=pa.array(items)),
        segments=lambda: np.asarray(segments, np.int8),
    )


def outcome(top, hit):
    top, hit = np.asarray(top, np.int32), np.asarray(hit, bool)
    gain = hit * DISCOUNT[: top.shape[1]]
    nothing = np.full(len(top), np.nan)
    ranking = Ranking(
        top=top, gain=gain, ndcg=gain.sum(1), recall=hit.mean(1), mrr=hit.any(1) * 1.0, head=nothing, tail=nothing
    )
    return SimpleNamespace(ranking=ranking, exposure={"coverage": 0.5}, predictions=None)


@pytest.fixture
def panel():
    """Users 0 and 2 at a first cutoff, 2 and 3 at a second; the second knows an item more, and one of the first's is gone."""
    return UserPanel.from_splits(
        [scene_of([0, 2], ["b", "d", "x"], [0, 0, 1, 2]), scene_of([2, 3], ["a", "b", "c", "d"], [0, 0, 2, 0])]
    )


FOUND = [
    [outcome([[0, 2], [1, 0]], [[1, 0], [0, 1]]), outcome([[0, 2], [1, 0]], [[0, 1], [0, 0]])],
    [outcome([[3, 1], [2, 1]], [[1, 0], [0, 0]]), outcome([[3, 1], [2, 1]], [[1, 1], [0, 0]])],
]
NOTHING = [[outcome([[0, 1], [0, 1]], np.zeros((2, 2)))], [outcome([[0, 1], [0, 1]], np.zeros((2, 2)))]]
LITTLE = [[outcome([[0, 2], [1, 0]], [[0, 1], [0, 0]])], [outcome([[3, 1], [2, 1]], [[1, 0], [0, 0]])]]


def test_users_and_items_are_numbered_alike_at_every_cutoff(panel):
    assert panel.user.tolist() == [0, 2, 2, 3]
    assert panel.segment.tolist() == [0, 1, 2, 0]
    first, second = panel.item_number
    assert second.tolist() == [0, 1, 2, 3]
    assert first.tolist() == [1, 3, 4], "b and d as the last cutoff numbers them, the lost item after all others"
    assert panel.n_items == 5


def test_hits_add_up_to_each_cases_mean_over_seeds(panel):
    hits = panel.ndcg_contributions(FOUND)
    by_case = np.bincount(hits.case, weights=hits.gain, minlength=4)
    assert by_case == pytest.approx(panel.mean_metric(FOUND, "ndcg"))
    assert by_case == pytest.approx([(1 + DISCOUNT[1]) / 2, DISCOUNT[1] / 2, 1 + DISCOUNT[1] / 2, 0])
    assert set(hits.item[hits.case == 0]) == {1, 4}


def test_the_report_is_json_that_any_reader_takes():
    report = EvaluationReport(
        cutoffs=["2024-01-01T00:00:00+00:00"], cold_fraction=0.0, users={"all": 1}, translator="", arms=[{"lift_pct": float("nan")}],
        verdict={}, signal=None,
        choices={"als": {"options": {"half_life": float("inf")}, "weights": (0.1, 0.0)}}, budget={}, runs=[], path="", policy=None,
        complete=True, seconds=1.0,
    )  # fmt: skip

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(json.dumps(report.to_json()), parse_constant=refuse)
    assert found["choices"]["als"] == {"options": {"half_life": None}, "weights": [0.1, 0.0]}
    assert found["arms"] == [{"lift_pct": None}]
    assert found["cutoff"] == found["cutoffs"][0]


def test_rows_and_verdict_pool_the_cutoffs(panel):
    outcomes = {"real": LITTLE, "real+scalr": FOUND, "popular_lately": NOTHING}
    rows = {row["name"]: row for row in summarize_arms(ArmOutcomes(panel, None, outcomes), "als")}
    ours, real = (panel.mean_metric(found, "ndcg").mean() for found in (FOUND, LITTLE))
    assert rows["real+scalr"]["metrics"]["ndcg"] == pytest.approx(ours)
    assert rows["real+scalr"]["lift_pct"] == pytest.approx(100 * (ours / real - 1))
    assert rows["real+scalr"]["slices"]["cold"]["users"] == 2
    outcomes["model_level_transfer"] = LITTLE
    model = build_verdict(ArmOutcomes(panel, None, outcomes), "als", dict.fromkeys(("all", "cold", "sparse", "dense"), "real"))
    assert model["best_baseline"] == "real"
    assert model["over_rival"]["lift_pct"] == model["lift_over_best_pct"]
    assert model["sparse"]["best_baseline"] == "real"
    assert model["lift_over_best_pct"] == pytest.approx(rows["real+scalr"]["lift_pct"])
    assert model["difference_ci95"][0] <= model["difference"] <= model["difference_ci95"][1]
    assert model["cold"]["cases"] == 2


def test_all_users_are_compared_with_the_best_baseline_of_each_segment(panel):
    outcomes = {"real": NOTHING, "real+scalr": FOUND, "popular_lately": LITTLE}
    best = {"all": "best_by_segment", "cold": "popular_lately", "sparse": "real", "dense": "real"}
    model = build_verdict(ArmOutcomes(panel, None, outcomes), "als", best)
    ours, listed = (panel.mean_metric(found, "ndcg") for found in (FOUND, LITTLE))
    assert model["best_baseline"] == "best_by_segment"
    assert model["cold"]["best_baseline"] == "popular_lately"
    assert model["difference"] == pytest.approx(float(ours.mean() - np.where(panel.segment == 0, listed, 0.0).mean()))


def test_new_users_and_blended_models_stand_beside_the_users_as_they_are(panel):
    """They have cases of their own, and no figure of the plain models depends on them."""
    plain = {"real": LITTLE, "real+scalr": FOUND, "popular_lately": NOTHING}
    blended = {"real": FOUND, "real+scalr": FOUND}
    alone = ArmOutcomes(panel, None, plain)
    results = ArmOutcomes(
        panel, panel, plain, blended, new_users={"real": LITTLE, "real+scalr": FOUND, "popular_lately": LITTLE}
    )
    rows = {row["name"]: row for row in summarize_arms(results, "als")}
    before = {row["name"]: row for row in summarize_arms(alone, "als")}
    assert {name: row["metrics"] for name, row in rows.items()} == {name: row["metrics"] for name, row in before.items()}
    assert rows["real+scalr"]["slices"]["new"]["lift_pct"] == pytest.approx(rows["real+scalr"]["lift_pct"])
    assert "lift_pct" not in rows["real"]["slices"]["new"]
    assert rows["real"]["slices"]["blended"]["ndcg"] == pytest.approx(rows["real+scalr"]["metrics"]["ndcg"])
    verdict = build_verdict(
        results, "als", {"all": "best_by_segment", "cold": "popular_lately", "sparse": "real", "dense": "real"}
    )
    assert verdict["blended"]["lift_over_best_pct"] == pytest.approx(0)
    assert verdict["new"]["best_baseline"] == "popular_lately"
    assert verdict["new"]["cases"] == 4
    assert verdict["new"]["lift_over_best_pct"] == pytest.approx(rows["real+scalr"]["lift_pct"])
    assert (
        not {"new", "blended"} & build_verdict(alone, "als", dict.fromkeys(("all", "cold", "sparse", "dense"), "real")).keys()
    )


def judged(case, item, label, probability):
    """An outcome of two cases that ranks nothing, with probabilities of labelled rows."""
    case = np.asarray(case)
    rows = LabelledRows(case, case, np.asarray(item), np.asarray(label, bool), np.zeros(len(case), np.int8))
    ranked = outcome([[0, 1], [0, 1]], np.zeros((2, 2)))
    ranked.predictions = CalibratedPredictions(rows, np.asarray(probability, float))
    return ranked


def test_entropies_pool_cutoffs_and_seeds_by_segment(panel):
    """Cases are cold, sparse; dense, cold. Real events alone say the base rate; ours is sure by half a nat more where cold."""
    first, second = ([0, 0, 1, 1], [0, 1, 2, 2], [1, 0, 1, 0]), ([0, 0, 1, 1], [0, 1, 2, 3], [1, 0, 1, 0])
    right = 0.5 * np.exp(0.5)

    def found(cold, seeds):
        sure, unsure = [cold, 1 - cold], [0.5, 0.5]
        return [[judged(*first, [*sure, *unsure])] * seeds, [judged(*second, [*unsure, *sure])] * seeds]

    outcomes = {
        "real": found(0.5, 2),
        "real+scalr": found(right, 2),
        "popular_lately": NOTHING,
        "model_level_transfer": found(0.5, 2),
    }
    rows = {row["name"]: row for row in summarize_arms(ArmOutcomes(panel, None, outcomes), "two_tower")}
    assert "probabilities" not in rows["popular_lately"]
    real, ours = (rows[arm]["probabilities"] for arm in ("real", "real+scalr"))
    assert {name: part["rows"] for name, part in ours.items()} == {"all": 8, "cold": 4, "sparse": 2, "dense": 2}
    assert all(part["ne"] == pytest.approx(1) for part in real.values())
    assert "ne_vs_real_pct" not in real["all"]
    gained = 100 * 0.5 / np.log(2)
    assert ours["cold"]["ne"] == pytest.approx(1 - gained / 100)
    assert ours["cold"]["ne_vs_real_pct"] == pytest.approx(-gained)
    assert ours["cold"]["ne_ci95"] == pytest.approx([-gained, -gained]), "every row gains alike, whoever is drawn"
    assert ours["all"]["ne_vs_real_pct"] == pytest.approx(-gained / 2)
    low, high = ours["all"]["ne_ci95"]
    assert low < -gained / 2 < high
    assert ours["dense"]["ne_vs_real_pct"] == pytest.approx(0)
    assert "scalr_ne_vs_this_pct" not in ours["all"]
    rival = rows["model_level_transfer"]["probabilities"]
    assert rival["cold"]["scalr_ne_vs_this_pct"] == pytest.approx(-gained), "it says the base rate, as real events only do"
    assert rival["all"]["scalr_ne_ci95"] == pytest.approx([low, high])


def test_losses_are_hits_of_the_panels_items(panel):
    found = [[judged([0, 1], [2, 0], [1, 0], [0.25, 0.5])], [judged([0, 1], [3, 1], [1, 0], [0.5, 0.75])]]
    losses = panel.log_loss_contributions(found)
    assert losses.case.tolist() == [0, 1, 2, 3]
    assert losses.item.tolist() == [4, 1, 3, 1], "as the last cutoff numbers them"
    assert losses.gain == pytest.approx(np.log([4, 2, 2, 4]))
    assert panel.log_loss_contributions(NOTHING) is None
