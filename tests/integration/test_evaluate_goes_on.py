"""What `evaluate` has worked out is kept: stopped, it goes on from there; a quick verdict comes before the rest, and is part of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from datetime import UTC, datetime

import pyarrow.dataset as ds
import pytest
from support.shown import difference, example

from scalr_prod.core.signals import Interrupted, graceful_shutdown
from scalr_prod.evaluation import EvaluationRequest, evaluate
from scalr_prod.evaluation.evaluator import SplitEvaluator
from scalr_prod.evaluation.result_cache import ResultCache
from scalr_prod.evaluation.split import EvaluationSplit
from scalr_prod.evaluation.verdict_summary import summarize_verdict
from scalr_prod.generation.policy import policy_path
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table

CUTOFF = datetime(2024, 6, 1, tzinfo=UTC)
EXTRA = """
estimators = ["popularity", "linear"]
[generation]
contexts = "users"
partitions = 1
[compute]
workers = 1
[serving]
scorer = "local"
[quality]
max_bucket_distance = 1.0
min_information = 0.0
[downstream]
models = ["als"]
seeds = 2
k = 5
volumes = [3]
temperatures = [0.1]
weights = [1.0]
threads = 1
"""
ARMS = ("shuffled",)


class Fits:
    """Models that were fitted to the end, and after how many this process is sent a SIGTERM."""

    def __init__(self) -> None:
        self.done, self.last = 0, -1

    def before(self) -> None:
        if self.done == self.last:
            self.last = -1
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def fits(monkeypatch):
    counted = Fits()
    fit = SplitEvaluator.fit

    def counting(self, family, options, events, *, seed, threads):
        counted.before()
        model = fit(self, family, options, events, seed=seed, threads=threads)
        counted.done += 1
        return model

    monkeypatch.setattr(SplitEvaluator, "fit", counting)
    return counted


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("at_hand")
def test_stopped_it_goes_on_and_comes_to_the_same_report(make_project, tmp_path, caplog, fits, monkeypatch):
    caplog.set_level("INFO", logger="scalr_prod")
    settings = make_project(tmp_path, EXTRA)

    def evaluated(**asked):
        return evaluate(settings, EvaluationRequest(cutoff=CUTOFF, cold_fraction=0.5, **asked))

    undisturbed = evaluated(arms=ARMS)
    assert undisturbed.runs, "ours was published"
    lines = [
        next(number for number, line in enumerate(caplog.messages) if line.startswith(beginning))
        for beginning in (
            "als popular_lately at",
            "als real at",
            "signal beyond popularity",
            "als real+scalr at",
            "quick verdict",
        )
    ]
    assert lines == sorted(lines), "each is told when it is known"
    *shown, verdict = example("docs/guides/evaluation.md")  # of a world where ours helps
    shown = "\n…\n".join(["", *shown, f"{verdict.partition(': ')[0]}: …", ""])
    assert difference(shown, "\n".join(caplog.messages)) == ""
    needed = fits.done
    evaluations = policy_path(settings).parent
    policy = policy_path(settings).read_bytes()
    evaluations.rename(tmp_path / "undisturbed")

    fits.done = 0
    first = evaluated(quick=True)
    assert first.verdict["quick"]
    assert not first.complete
    assert {row["name"] for row in first.arms} == {"real", "real+scalr", "popular_lately", "popular_in_cluster"}
    assert first.signal["own_over_others"]["ci99"][0] > 0, "the made logs have a signal"
    assert not policy_path(settings).exists(), "nothing about synthetic events was chosen"
    assert 0 < fits.done < needed
    begun = fits.done
    for last in (begun + (needed - begun) // 3, begun + (needed - begun) // 2, needed - 1):
        fits.last = last
        with pytest.raises(Interrupted), graceful_shutdown():
            evaluated(arms=ARMS)
    gone_on = evaluated(arms=ARMS)
    # Rankings are kept and models are not: each interruption may lose one arm's models, two here, which boosts rank again.
    assert needed <= fits.done <= needed + 3 * 2, "a quick verdict costs nothing when the rest follows"
    done = fits.done
    assert _told(gone_on) == _told(undisturbed)
    assert policy_path(settings).read_bytes() == policy

    again = evaluated(arms=ARMS)
    assert (fits.done, _told(again)) == (done, _told(undisturbed))

    evaluations.rename(tmp_path / "gone-on")
    monkeypatch.setattr("scalr_prod.evaluation.plan._QUICK_CONTEXTS", 100)
    assert _told(evaluated(arms=ARMS)) == _told(undisturbed), "a quick verdict of less leaves nothing to the whole evaluation"
    assert policy_path(settings).read_bytes() == policy
    assert "quick verdict (of 100 sampled contexts): " in caplog.text


def test_a_verdict_says_what_the_docs_show():
    def part(pct, low, high, baseline, *, clusters, cases):
        over_clusters = {"lift_pct": clusters[0], "ci95": [*clusters[1:]]}
        best = {"lift_over_best_pct": pct, "ci95": [low, high], "best_baseline": baseline}
        return best | {"over_clusters": over_clusters, "cases": cases}

    verdict = {"model": "als"} | part(85.4, 50.5, 128.5, "best_by_segment", clusters=(70.4, 47.8, 96.4), cases=0)
    verdict["cold"] = part(139.4, 61.1, 255.9, "popular_lately", clusters=(81.7, 55.5, 112.3), cases=426)
    verdict["sparse"] = part(75.4, 21.2, 153.9, "real", clusters=(55.5, 4.0, 132.6), cases=32)
    verdict["dense"] = part(38.6, 19.9, 60.3, "real", clusters=(57.2, 25.2, 97.4), cases=347)
    verdict["new"] = part(140.9, 60.3, 262.3, "popular_lately", clusters=(97.1, 67.6, 131.7), cases=842)
    arms = [{"name": "real+scalr", "model": "als", "metrics": {"ndcg": 0.2664}, "slices": {}}]
    choices = {"als": {"helps": True, "validation": None, "options": {}}}
    summary = summarize_verdict({"verdict": {"quick": True, "models": [verdict]}, "choices": choices, "arms": arms})
    assert difference(example("docs/guides/evaluation.md")[-1], f"quick verdict: {summary.answer} {summary.by_group}") == ""


def _told(report) -> str:
    """The report's JSON without what a clock said."""
    return json.dumps({name: value for name, value in report.to_json().items() if name != "seconds"})


def test_what_is_kept_is_named_by_all_that_it_depends_on(make_project, tmp_path):
    """A setting that decides results, more events, or other users hidden: nothing that was kept is found."""
    settings = make_project(tmp_path, EXTRA)
    ingest(settings)

    def fingerprint(settings, cold=0.5, end=None):
        return ResultCache.from_split(
            EvaluationSplit.from_settings(settings, CUTOFF, end=end, cold_fraction=cold, name="test")
        ).fingerprint

    before = fingerprint(settings)
    assert fingerprint(settings) == before
    same = {
        "downstream": {"seeds": 5, "weights": (0.1,)},
        "logging": {"heartbeat_s": 1.0},
        "metrics": {"textfile": "there.prom"},
    }
    for section, values in same.items():
        assert fingerprint(settings.with_sections(**{section: values})) == before, section
    others = [
        settings.with_sections(**{section: values})
        for section, values in {
            "downstream": {"k": 7}, "translator": {"epochs": 5}, "histories": {"length": 9}, "generation": {"contexts": "events"}
        }.items()
    ]  # fmt: skip
    found = [before, *map(fingerprint, others), fingerprint(settings, cold=0.4)]
    found.append(fingerprint(settings, end=datetime(2024, 6, 20, tzinfo=UTC)))
    lake = Lake.open(settings)
    for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS):
        known = lake.read(table, where=ds.field("event_timestamp") < CUTOFF)
        lake.append(table, known.slice(0, 50), key=f"more of {table}")
        found.append(fingerprint(settings))
    assert len(set(found)) == len(found)


def test_another_log_in_a_lake_made_anew_is_not_taken_for_the_former_one(make_project, tmp_path):
    """The tables' versions are the same, and so is the cutoff; what may be learned from is not."""
    seen = []
    for seed in (7, 8):
        settings = make_project(tmp_path, EXTRA, seed=seed)
        ingest(settings)
        scene = EvaluationSplit.from_settings(settings, CUTOFF, end=None, cold_fraction=0.0, name="test")
        known = Lake.open(settings).read(Table.TARGET_EVENTS, where=ds.field("event_timestamp") < CUTOFF)
        assert len(scene.real) == len(known)
        seen.append((Lake.open(settings).version(Table.TARGET_EVENTS), scene.real))
        shutil.rmtree(settings.home / "lake")
    assert seen[0][0] == seen[1][0]
    assert len(seen[0][1]) != len(seen[1][1])
