"""The verdict: what is said of a gain, of an uncertain one, of harm, and of a refusal."""

from __future__ import annotations

import json

import pytest

from scalr_prod.evaluation import summarize_verdict

UNSURE = "Unclear: synthetic events helped on validation, and the test does not confirm it. "
HARM = "No: synthetic events helped on validation, but did harm in the test. "
NDCG = "NDCG of als with synthetic events, over that with"
REFUSED = {
    "passed": False,
    "expected_pct": -1.2,
    "harm_probability": 0.4,
    "max_harm_probability": 0.2,
    "lift_pct": -3.0,
    "ci95": [-9.0, 3.0],
}


def lift(pct, low, high, baseline=None):
    found = {"ci95": [low, high]}
    return found | ({"lift_pct": pct} if baseline is None else {"lift_over_best_pct": pct, "best_baseline": baseline})


def arm(name, ndcg, cold=None, model="als", **more):
    slices = {"cold": {"users": 10, "ndcg": cold}} if cold is not None else {}
    return {"name": name, "model": model, "metrics": {"ndcg": ndcg}, "slices": slices} | more


def report(verdict, *, helps=True, quick=False, bar=None, arms=()):
    weight = 0.1 if helps else 0.0
    choice = {
        "helps": helps,
        "options": {"alpha": 0.0390625, "half_life": 10.0, "factors": 64, "decay": None},
        "lambda": dict.fromkeys(("cold", "sparse", "dense"), weight),
        "validation": None if quick else {"ndcg": 0.1, "bar": bar},
    }
    tested = {"cutoffs": ["2024-05-01T00:00:00+00:00"], "users": {"all": 4321}}
    return tested | {
        "verdict": {"quick": quick, "models": [{"model": "als"} | verdict]},
        "choices": {"als": choice},
        "arms": list(arms),
    }


@pytest.mark.parametrize(
    ("interval", "effect", "answer", "next_step"),
    [
        (
            lift(55.4, 31.0, 96.0, "popular_lately"),
            "helps",
            f"Yes, synthetic events help. {NDCG} recently popular items: +55 % (95 %: +31 … +96).",
            "scalr run, which applies these settings",
        ),
        (
            lift(12.0, -5.0, 30.0, "real"),
            "unsure",
            f"{UNSURE}{NDCG} real events only: +12 % (95 %: -5 … +30).",
            "scalr run, which applies these settings; to be sure, test at more times (scalr evaluate --cutoffs 4) or measure online",
        ),
        (
            lift(-0.2, -5.0, 4.0, "real"),
            "unsure",
            f"{UNSURE}{NDCG} real events only: +0 % (95 %: -5 … +4).",
            "scalr run, which applies these settings; to be sure, test at more times (scalr evaluate --cutoffs 4) or measure online",
        ),
        (
            lift(-9.0, -15.0, -2.0, "real"),
            "harms",
            f"{HARM}{NDCG} real events only: -9 % (95 %: -15 … -2).",
            (
                "set [training_set] synthetic_weight = 0, since scalr run would apply these settings; then test at more times: "
                "scalr evaluate --cutoffs 4"
            ),
        ),
        (
            lift(None, None, None, "real"),
            "unsure",
            f"{UNSURE}With als, real events only found none of the users' items.",
            "scalr run, which applies these settings; to be sure, test at more times (scalr evaluate --cutoffs 4) or measure online",
        ),
    ],
)
def test_it_says_whether_they_help_and_what_to_do(interval, effect, answer, next_step):
    found = summarize_verdict(report(interval))
    assert (found.effect, found.answer, found.next_step) == (effect, answer, next_step)


def test_a_gain_of_the_model_behind_a_list_is_told_as_both():
    verdict = lift(-21.0, -25.0, -17.0, "best_by_segment") | {
        "cold": lift(-22.0, -26.0, -18.0, "popular_lately"),
        "dense": lift(1.0, -9.0, 11.0, "real"),
    }
    found = summarize_verdict(report(verdict, arms=[arm("real+scalr", 0.14, lift_pct=300.0, ci95=[200.0, 450.0])]))
    assert found.effect == "behind"
    assert found.answer == (
        "Synthetic events help this model, but a simpler method is better. NDCG of als is 0.14 with synthetic events and 0.177 with "
        "the better of recently popular items and real events only in each group of users: -21 % (95 %: -25 … -17)."
    )
    assert found.next_step.startswith(
        "recommend recently popular items to users with no target events; if you need this model,"
    )


def test_a_refusal_gives_its_reason_and_no_chart():
    groups = {"cold": lift(0.0, 0.0, 0.0, "popular_lately"), "dense": lift(0.0, 0.0, 0.0, "real")}
    arms = [arm("real", 0.03, 0.01), arm("real+scalr", 0.03, 0.01)]
    found = summarize_verdict(report(lift(0.0, 0.0, 0.0, "best_by_segment") | groups, helps=False, bar=REFUSED, arms=arms))
    assert found.effect == "refused"
    assert found.answer.startswith(
        "No gain found: with als, synthetic events are not used (λ = 0: -3.0 % over real events only"
    )
    assert (
        found.by_group
        == "Best: recently popular items for users with no target events; real events only for users with many target events."
    )
    assert found.next_step.startswith("keep training on real events")
    assert not found.lifts
    assert [list(row.values()) for row in found.table] == [
        ["real events only", 0.03, 0.01],
        ["real + synthetic events", "not used", "not used"],
    ]


def test_groups_of_users_and_cross_domain_baselines_follow():
    verdict = lift(60.0, 31.0, 96.0, "real") | {
        "cold": lift(202.0, 88.0, 534.0, "popular_lately") | {"over_clusters": lift(-12.0, -30.0, -2.0), "cases": 1234},
        "sparse": lift(50.0, 50.0, 50.0, "popular_lately") | {"cases": 3},
        "new": lift(None, None, None, "popular_lately"),
        "over_rival": lift(-2.0, -14.0, 14.0),
    }
    found = summarize_verdict(report(verdict))
    assert found.by_group == (
        "Over the best method of each group without synthetic events: no target events (1,234) -12 % (95 %: -30 … -2); "
        "few target events (3) too few to tell; everybody as a new user, "
        "with the target history hidden by an undefined share (the baseline's NDCG is 0)."
    ), "the lowest lift of a group, over lists by cluster"
    assert found.answer == (
        "Yes, synthetic events help. NDCG of als with synthetic events, over that with real events only: +60 % (95 %: +31 … +96). "
        "Against the same model trained on both domains: -2 % (95 %: -14 … +14)."
    )
    assert found.tested_on == "4,321 users' events after 2024-05-01"
    assert [row["users"] for row in found.lifts] == ["all users", "no target events"], "undefined lifts are not drawn"
    assert (
        found.model_settings
        == "als with alpha 0.0391, half_life (days) 10, factors 64 (tuned on validation, on real events only)"
    )


@pytest.mark.parametrize(
    ("over_rival", "over_clusters", "begins"),
    [
        (-20.0, -10.0, "train your model on both domains"),
        (5.0, -10.0, "recommend what is popular among users with similar source histories"),
        (5.0, 10.0, "scalr run"),
    ],
)
def test_the_strongest_baseline_across_domains_is_recommended_first_if_it_is_better(over_rival, over_clusters, begins):
    verdict = lift(60.0, 31.0, 96.0, "real") | {
        key: lift(pct, pct - 4, pct + 4) for key, pct in (("over_rival", over_rival), ("over_clusters", over_clusters))
    }
    found = summarize_verdict(report(verdict))
    assert found.next_step.startswith(begins)
    weakest_gain = min(over_rival, over_clusters)
    assert f": {weakest_gain:+.0f} %" in found.answer


@pytest.mark.parametrize(
    ("interval", "helps", "effect", "begins"),
    [
        ((60.0, 31.0, 96.0), True, "helps", "Yes, synthetic events help with default settings. "),
        (
            (6.0, -3.0, 9.0),
            True,
            "unsure",
            "Unclear with default settings. ",
        ),
        ((-6.0, -9.0, -3.0), True, "harms", "No, synthetic events do harm with default settings. "),
        (
            (0.0, 0.0, 0.0),
            False,
            "refused",
            "No gain expected, so synthetic events were not tested with als: users' own source histories were not shown ",
        ),
    ],
)
def test_a_quick_verdict_is_about_default_settings_and_points_to_the_evaluation(interval, helps, effect, begins):
    found = summarize_verdict(report(lift(*interval, "real"), helps=helps, quick=True))
    assert found.effect == effect
    assert found.answer.startswith(begins)
    assert "validation" not in found.answer
    assert "scalr evaluate" in found.next_step


def test_the_table_has_one_row_per_idea():
    arms = [
        arm("real", 0.03, 0.01),
        arm("real+scalr", 0.05, 0.04, **lift(66.7, 30.0, 90.0)),
        arm("popular_lately", 0.02, 0.02, scalr_over_this=lift(150.0, 90.0, 200.0)),
        arm("shuffled", 0.03, 0.01, scalr_over_this=lift(66.7, 30.0, 90.0)),
        arm("real", 0.9, 0.9, model="sasrec"),
    ]
    rows = summarize_verdict(report(lift(66.7, 30.0, 90.0, "real"), arms=arms)).table
    assert [list(row.values()) for row in rows] == [
        ["recently popular items", 0.02, "+150 % (95 %: +90 … +200)", 0.02],
        ["real events only", 0.03, "+67 % (95 %: +30 … +90)", 0.01],
        ["real + synthetic events", 0.05, "", 0.04],
    ]
    assert list(rows[0]) == ["method", "NDCG@20, all users", "real + synthetic over it (95 %)", "NDCG@20, no target events"]


def test_a_baseline_chosen_by_group_has_a_row():
    arms = [arm("real", 0.03, 0.01), arm("real+scalr", 0.06, 0.04), arm("popular_lately", 0.02, 0.02)]
    rows = summarize_verdict(report(lift(50.0, 30.0, 90.0, "best_by_segment"), arms=arms)).table
    better = {row["method"]: row for row in rows}["the better of popular items and real events in each group"]
    assert list(better.values()) == [
        "the better of popular items and real events in each group",
        0.04,
        "+50 % (95 %: +30 … +90)",
        "",
    ]


def test_the_model_that_is_best_on_validation_speaks():
    found = report(lift(10.0, 5.0, 20.0, "real"))
    found["choices"]["sasrec"] = found["choices"]["als"] | {"validation": {"ndcg": 0.2}}
    found["verdict"]["models"].append({"model": "sasrec"} | lift(30.0, 20.0, 40.0, "real"))
    summary = summarize_verdict(json.loads(json.dumps(found)))
    assert (
        summary.model,
        "NDCG of sasrec with synthetic events, over that with real events only: +30 %" in summary.answer,
    ) == ("sasrec", True)


def test_the_settings_with_synthetic_events_are_named_where_they_differ():
    found = report(lift(10.0, 5.0, 20.0, "real"))
    real = {"alpha": 2.5, "half_life": 90.0, "factors": 64}
    found["choices"]["als"] |= {"options": real | {"alpha": 40.0, "half_life": None}, "arms": {"real": {"options": real}}}
    assert summarize_verdict(found).model_settings == (
        "als with alpha 2.5, half_life (days) 90, factors 64 (tuned on validation, on real events only); with synthetic events alpha 40, "
        "no decay (tuned on them)"
    )


def test_a_model_that_finds_nothing_and_an_interval_without_end_are_said_plainly():
    arms = [arm("real", 0.03), arm("real+scalr", 0.0), arm("popular_lately", 0.02, scalr_over_this=lift(-100.0, -100.0, 2e22))]
    found = summarize_verdict(report(lift(-100.0, -100.0, -100.0, "best_by_segment"), arms=arms))
    assert found.effect == "harms"
    assert found.table[0]["real + synthetic over it (95 %)"] == "-100 % (95 %: -100 … ∞)"
    assert [row["method"] for row in found.table] == ["recently popular items", "real events only", "real + synthetic events"]


def test_events_that_the_gate_rejects_are_not_said_to_be_applied():
    """Validation chose them, and the test then measured real events only: a level result is not what a run would give."""
    told = report(lift(0.0, -1.0, 1.0, "real"), bar=REFUSED | {"passed": True})
    told["choices"]["als"] |= {"helps": False, "rejected": "1 expectation failed: popularity_is_like_the_real_one"}
    found = summarize_verdict(told)
    assert found.effect == "refused"
    assert found.answer.startswith(
        "Not published: with als, the quality gate rejects the synthetic events. 1 expectation failed"
    )
    assert "scalr run generates nothing" in found.next_step
