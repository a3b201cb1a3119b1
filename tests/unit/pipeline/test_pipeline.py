"""The graph of stages: which lead to which, what one of them alone takes along, and what a failure is named."""

from __future__ import annotations

import re

import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.core.progress import track
from scalr_prod.errors import ScalrError
from scalr_prod.pipeline import (
    GRAPH,
    SKIPPED_WITHOUT_EVENTS,
    PipelineContext,
    PipelineReport,
    Stage,
    execute_stages,
    stages_to,
    steps,
    with_light_prerequisites,
)
from scalr_prod.pipeline.runner import row_counts


def names(stages):
    return [stage.name for stage in stages]


def test_every_stage_comes_after_what_it_needs():
    before = set()
    for stage in GRAPH:
        assert set(stage.needs) <= before, stage.name
        before.add(stage.name)
    assert len(before) == len(GRAPH)


def test_a_whole_run_is_every_stage():
    assert names(stages_to()) == names(GRAPH)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("generate", "publish", ["generate", "validate", "publish"]),
        ("histories", "translator", ["histories", "feast", "translator"]),
        ("plan", "dataset", ["plan", "generate", "validate", "publish", "late", "dataset"]),
        (None, "feast", ["ingest", "histories", "feast"]),
    ],
)
def test_a_part_of_the_graph_is_what_lies_between(first, last, expected):
    assert names(stages_to(first, last)) == expected


def test_a_day_has_the_translator_that_is_there():
    heavy = [stage.name for stage in stages_to(last="late", exclude=("translator",)) if not stage.light]
    assert heavy == ["ingest", "histories", "generate", "validate", "publish", "late"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("ingest", ["ingest"]),
        ("translator", ["feast", "translator"]),
        ("generate", ["serving", "policy", "feast", "plan", "generate"]),
        ("validate", ["validate"]),
        ("publish", ["publish"]),
        ("late", ["late"]),
        ("dataset", ["features", "feast", "dataset"]),
    ],
)
def test_one_stage_takes_the_light_ones_along(stage, expected):
    assert names(with_light_prerequisites(stage)) == expected


def test_several_stages_take_along_what_each_of_them_does():
    assert names(with_light_prerequisites("generate", "publish")) == [
        "serving",
        "policy",
        "feast",
        "plan",
        "generate",
        "publish",
    ]


def test_a_job_that_goes_on_with_a_run_plans_no_other(monkeypatch):
    monkeypatch.setattr("scalr_prod.generation.plan_run", lambda *_, **__: "another")
    job = PipelineContext(None, spec="this")
    steps.plan(job)
    assert job.spec == "this"


class Made:
    def to_json(self):
        return {"made": True}


def stage(name, work, *, light=False):
    return Stage(name, (), "", "", work, lambda _: True, light=light)


def test_a_walk_keeps_reports_and_the_seconds_of_what_takes_time(settings):
    job = execute_stages(
        PipelineContext(settings),
        [stage("a", lambda _: Made()), stage("b", lambda _: None, light=True), stage("c", lambda _: None)],
    )
    assert job.reports["a"].to_json() == {"made": True}
    assert list(job.reports) == ["a"]
    assert list(job.seconds) == ["a", "c"]


class Loaded:
    def to_json(self):
        domain = {"rows": 900, "rows_added": 600}
        return {"source": domain, "sources": {"other": domain}, "target": domain | {"rows": 1200}, "common_users": 3}


def test_without_a_terminal_a_stage_is_one_line_with_its_duration_and_row_counts(settings, caplog):
    caplog.set_level("INFO", logger="scalr_prod")

    def ingest(_):
        with track("read source", show=False, total=10) as advance:
            for _ in range(10):
                advance(1)
        return Loaded()

    stages = [stage("ingest", ingest), stage("feast", lambda _: None, light=True), stage("publish", lambda _: None)]
    execute_stages(PipelineContext(settings), stages)
    lines = [re.sub(r"\d+\.\d s", "0.0 s", record.getMessage()) for record in caplog.records]
    assert lines == ["ingest done in 0.0 s: 3,000 rows, 1,800 added", "publish done in 0.0 s"]


@pytest.mark.parametrize(
    ("stage_name", "report", "counts"),
    [
        ("histories", {"source_user_history": {"rows": 5}, "target_item_stats": {"rows": 2}}, {"rows": 7}),
        ("generate", {"contexts": 4, "events": 8, "seconds": 1.5}, {"contexts": 4, "events": 8}),
        ("validate", {"accepted": 7, "quarantined": 1}, {"accepted": 7, "quarantined": 1}),
        (
            "dataset",
            {"rows": 9, "real": 3, "synthetic": 4, "negatives": 2},
            {"rows": 9, "real": 3, "synthetic": 4, "negatives": 2},
        ),
        ("translator", {"version": 3}, {}),
    ],
)
def test_the_row_counts_of_a_stage_are_those_of_its_report(stage_name, report, counts):
    assert row_counts(stage_name, report) == counts


def test_a_failure_names_its_stage_and_ends_the_walk(settings):
    done = []

    def fails(_):
        raise ScalrError("broke", where="x", next_step="y")

    with pytest.raises(ScalrError) as caught:
        execute_stages(
            PipelineContext(settings),
            [stage("a", lambda _: done.append("a")), stage("b", fails), stage("c", lambda _: done.append("c"))],
        )
    assert caught.value.stage == "b"
    assert done == ["a"]


def test_a_report_for_people_leaves_out_what_was_not_done():
    published = {"rows": 7, "table": "synthetic_target_events", "outcome": "published"}
    shown = PipelineReport("run_0", {"publish": 1.23}, {"publish": published}).to_summary()
    assert list(shown) == ["run_id", "published", "seconds", "next"]
    assert shown["published"] == "7 rows in synthetic_target_events (published)"


@pytest.mark.parametrize(
    ("reports", "following"),
    [
        ({}, "scalr report; scalr evaluate --quick, to find out whether it helps"),
        ({"policy": {"is_applied": False}}, "scalr report; scalr evaluate --quick, to find out whether it helps"),
        ({"policy": {"is_applied": True}}, "scalr report"),
        (
            {"publish": {"rows": 7, "table": "t", "outcome": "published"}},
            "scalr dataset build, for a training set with its events",
        ),
    ],
)
def test_an_evaluation_is_proposed_until_one_is_followed(reports, following):
    assert PipelineReport("run_0", {}, reports).to_summary()["next"] == following


def test_a_job_without_a_run_says_what_is_missing():
    with pytest.raises(ScalrError, match="no run is planned"):
        PipelineReport.from_context(PipelineContext(None))


def test_the_stages_of_a_run_are_those_from_its_plan_to_late_events():
    assert names(stages_to("plan", "late")) == list(SKIPPED_WITHOUT_EVENTS)


def test_a_job_that_generates_no_event_does_the_other_stages(settings):
    job = PipelineContext(settings, not_generated="λ is 0")
    done = execute_stages(job, [stage(name, lambda _: Made()) for name in ("policy", *SKIPPED_WITHOUT_EVENTS, "dataset")])
    assert list(done.reports) == ["policy", "dataset"]
    report = PipelineReport.from_context(done)
    assert (report.run_id, report.not_generated) == (None, "λ is 0")
    shown = PipelineReport(None, {}, {}, "λ is 0").to_summary()
    assert next(iter(shown.items())) == ("no events", "λ is 0")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("synthetic_weight = 0", "[training_set] synthetic_weight"),
        ("segment_weights = [0, 0, 0]\nsynthetic_weight = 2", "[training_set] segment_weights"),
        ("segment_weights = [0, 0, 0.1]", None),
        ("", None),
    ],
)
def test_a_whole_run_generates_nothing_where_nothing_would_weigh(settings_with, caplog, lines, why):
    caplog.set_level("INFO", logger="scalr_prod")
    settings = load_settings(settings_with(f"[training_set]\n{lines}\n"))
    whole, alone = PipelineContext(settings, whole=True), PipelineContext(settings)
    for job in (whole, alone):
        steps.policy(job)
    assert alone.not_generated is None
    if why is None:
        assert whole.not_generated is None
    else:
        assert f"λ is 0 for all users (set by {why}), so no events are generated or published" in whole.not_generated
        assert caplog.messages == [whole.not_generated]
