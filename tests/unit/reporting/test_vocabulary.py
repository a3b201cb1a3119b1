"""What a translator's vocabulary leaves out is told in the report, and nothing where it is whole."""

from __future__ import annotations

from scalr_prod.reporting.page import _translator_metrics

MEASURED = {"nll": 8.0, "ndcg@20": 0.05, "events": 300}
WHOLE = {"items": 40, "kept": 40, "events": 900, "events_kept": 900}


def manifest(**vocabulary):
    return {"metrics": {"all": {"mixture": MEASURED}}, "vocabulary": vocabulary}


def test_a_cut_is_told_with_what_it_costs():
    told = _translator_metrics(
        manifest(source=WHOLE, target={"items": 1_500, "kept": 1_200, "events": 4_000, "events_kept": 3_900})
    )
    assert told["left_out"] == ["300 of 1,500 target items, with 2.50% of the events"]


def test_a_whole_vocabulary_and_one_that_was_not_counted():
    assert _translator_metrics(manifest(source=WHOLE, target=WHOLE))["left_out"] == []
    assert _translator_metrics({"metrics": {"all": {"mixture": MEASURED}}})["left_out"] == []


def test_estimators_that_were_measured_on_a_sample_are_said_to_be():
    few = MEASURED | {"events": MEASURED["events"] - 1}
    assert _translator_metrics({"metrics": {"all": {"mixture": MEASURED, "topics": few}}})["sampled"] == few["events"]
    assert _translator_metrics({"metrics": {"all": {"mixture": MEASURED, "topics": MEASURED}}})["sampled"] is None
