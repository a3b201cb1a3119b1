"""The pages' section "Does it help?": which evaluation it shows, and what it says of one that runs do not apply."""

from __future__ import annotations

import json
import os

import pytest

from scalr_prod.errors import ReportError
from scalr_prod.generation import Policy, policy_path, settings_digest
from scalr_prod.reporting.evaluation_verdict import verdict_section
from scalr_prod.reporting.page import template_environment
from tests.unit.evaluation.test_verdict_summary import arm, lift, report


def write_report(settings, name, verdict, **more):
    folder = policy_path(settings).parent / name
    folder.mkdir(parents=True)
    arms = [arm("real", 0.03), arm("real+scalr", 0.05, **lift(66.7, 30.0, 90.0))]
    (folder / "report.json").write_text(json.dumps(report(verdict, arms=arms, **more)))
    return folder


def write_policy(settings, folder, digest):
    Policy(
        model="als",
        best_baseline="real",
        helps=True,
        volume=20,
        temperature=0.5,
        min_lift=0.0,
        align=False,
        segment_weights=(0.1, 0.1, 0.1),
        sparse_below=5,
        settings=digest,
        logs="logs",
        report=str(folder),
    ).write(policy_path(settings))


def render(section):
    return template_environment().get_template("helps.html.j2").render(helps=section)


def test_without_an_evaluation_it_names_the_command(settings):
    assert verdict_section(settings) is None
    assert "scalr evaluate" in render(None)


def test_the_policys_report_comes_before_a_quick_verdict_and_may_have_moved(settings):
    write_report(settings, "quick-1", lift(1.0, -5.0, 9.0, "real"), quick=True)
    assert verdict_section(settings)["notes"] == ["This is a quick verdict on a run's default settings."]
    folder = write_report(settings, "report-1", lift(60.0, 31.0, 96.0, "real"))
    write_policy(settings, f"/elsewhere/{folder.name}", settings_digest(settings))
    section = verdict_section(settings)
    assert (section["tone"], section["path"]) == ("good", str(folder))
    assert section["notes"] == ["Runs apply it, though the logs have changed since it was measured."]
    shown = render(section)
    assert "with real events only: +60 %" in shown
    assert "<svg" in shown
    assert "real + synthetic events" in shown
    assert "<svg" not in render(verdict_section(settings, details=False))


def test_a_policy_of_other_settings_is_told(settings):
    folder = write_report(settings, "report-1", lift(60.0, 31.0, 96.0, "real"))
    write_policy(settings, folder, "another digest")
    (note,) = verdict_section(settings)["notes"]
    assert note.startswith("Runs do not apply it: it was measured under other domains")


def test_the_latest_quick_verdict_is_shown(settings):
    for name, pct, time in (("quick-1", 10.0, 1), ("quick-2", 20.0, 2)):
        folder = write_report(settings, name, lift(pct, 5.0, 30.0, "real"), quick=True)
        os.utime(folder / "report.json", (time, time))
    assert "with real events only: +20 %" in verdict_section(settings)["answer"]


def test_a_report_that_cannot_be_read_is_an_error(settings):
    folder = write_report(settings, "quick-1", lift(1.0, -5.0, 9.0, "real"))
    (folder / "report.json").write_text("{}")
    with pytest.raises(ReportError, match="KeyError") as caught:
        verdict_section(settings)
    assert caught.value.where == str(folder / "report.json")
