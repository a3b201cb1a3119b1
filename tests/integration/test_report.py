"""A run's page: its figures are the lake's, and a real browser shows it well, wide and narrow, light and dark."""

from __future__ import annotations

import html
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from support.reported_runs import HOSTILE_TITLE, pages, window
from support.small import LOCAL
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.core.atomic_io import write_json
from scalr_prod.errors import ReportError, RunNotFound
from scalr_prod.ledger import run_folder
from scalr_prod.privacy import privacy_file
from scalr_prod.privacy.attack_statistics import measure_attack, measure_risk
from scalr_prod.reporting.report_data import collect_run_data
from scalr_prod.schemas import Table

pytestmark = pytest.mark.slow
#: Publishes further runs; `make test` tells a run that was rolled back, by the same query.
long = pytest.mark.long


@pytest.fixture
def project(reported):
    return reported


@pytest.fixture(scope="module")
def facts(reported):
    """What the published run's page says."""
    opened, run_id, *_ = reported
    return collect_run_data(opened.settings, opened.ledger, run_id)


@pytest.fixture(scope="module")
def written(reported, tmp_path_factory):
    """The pages of all three runs and their index, where no other test writes."""
    opened, *runs = reported
    reports = [opened.report(run_id) for run_id in runs]
    folder = tmp_path_factory.mktemp("pages") / "reports"
    shutil.copytree(Path(reports[0].path).parent, folder)
    return [folder / Path(path).name for path in (*(report.path for report in reports), reports[0].index)]


def synthetic(project, run_id):
    rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    return rows[rows["run_id"] == run_id]


def known(project, run_id):
    events = project.lake.read(Table.TARGET_EVENTS).to_pandas()
    return events[events["created_timestamp"] <= project.ledger.runs.get(run_id).spec.as_of]


def test_its_figures_are_those_of_the_lake(project, facts):
    opened, run_id, *_ = project
    made, real = synthetic(opened, run_id), known(opened, run_id)
    assert facts.events_of == "published"
    assert facts.published == len(made) > 50
    funnel = {step["step"]: step["rows"] for step in facts.funnel}
    assert list(funnel) == ["contexts", "draws", "staged", "accepted", "published"]
    assert funnel["published"] == len(made) == funnel["accepted"] == funnel["staged"]
    assert funnel["draws"] - funnel["staged"] == sum(facts.generation["dropped"].values())

    found = facts.distributions
    for kind, events in (("real", real), ("synthetic", made)):
        counts = events["item_id"].value_counts().to_numpy()
        catalogue = len(set(real["item_id"]) | set(made["item_id"]))
        for row in (row for row in found.popularity if row["kind"] == kind):
            assert row["share"] == pytest.approx(counts[: max(1, round(row["head"] * catalogue))].sum() / counts.sum())
        by_user = events["user_id"].value_counts()
        for row in (row for row in found.per_user if row["kind"] == kind):
            low, _, high = row["events"].partition(" to ")
            assert row["share"] == pytest.approx(by_user.between(int(low), int(high or low)).mean())
        assert sum(row["share"] for row in found.per_user if row["kind"] == kind) == pytest.approx(1)
    assert sum(row["share"] for row in found.time if row["kind"] == "synthetic") == pytest.approx(1)

    lift = made["weight"] / (1 - made["weight"])  # the weight is P / (P + prior)
    above = sum(row["share"] for row in found.lift if row["place"] > 2)
    assert above == pytest.approx((lift >= 1).mean(), abs=2 / len(lift))


def test_an_event_has_one_lift_on_the_whole_page(facts):
    examples = {one.event_id: one for one in facts.sample}
    assert facts.explained
    for explained in facts.explained:
        example, probability = examples[explained.event["event_id"]], explained.probability
        assert example.lift == pytest.approx(probability["published"] / probability["prior"], rel=1e-3)
        assert example.lift == pytest.approx(probability["lift"], rel=1e-3)


def test_translations_show_nothing_of_the_source_log(project, facts, written):
    opened, run_id, *_ = project
    made = synthetic(opened, run_id).set_index("event_id")
    assert len(facts.sample) == len({one.user for one in facts.sample}) == 12
    for one in facts.sample:
        assert one.user == made.loc[one.event_id, "user_id"]
        assert one.probability == pytest.approx(made.loc[one.event_id, "probability"])
    titles = opened.lake.read(Table.SOURCE_ITEMS)["title"].unique().to_pylist()
    page = html.unescape(written[0].read_text(encoding="utf-8"))
    assert not [title for title in titles if title in page]


@pytest.mark.parametrize(("width", "scheme"), pages(390, "dark"))
def test_the_pages_in_a_browser(project, written, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    opened, *runs = project
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        for address, figures in zip(written, (5, 5, 5, 0), strict=True):
            page.goto(f"file://{address}")
            assert page.locator("figure").count() == figures
            for number in range(figures):
                drawing = page.locator("figure svg").nth(number)
                assert drawing.bounding_box()["height"] > 80
                assert drawing.locator("path[fill], path[stroke]").count() > 3
                # Axes and words take the page's ink: they can be read in the dark.
                ink = page.evaluate("getComputedStyle(document.body).color")
                assert drawing.locator("text").first.evaluate("node => getComputedStyle(node).fill") == ink
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
            serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in {"serious", "critical"}]
            assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []
        assert said == []
        assert all(url.startswith(("file://", "data:")) for url in asked)
        page.goto(f"file://{written[0]}")
        assert page.title() == f"{runs[0]} · {opened.settings.project_name}", "no title of an item is run as a script"
        assert HOSTILE_TITLE in page.inner_text("main")
        assert f"{len(synthetic(opened, runs[0])):,} synthetic events are in the feature view" in page.inner_text(".verdict")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "A"
    finally:
        page.close()


def test_the_first_of_them_are_explained(project, facts, written, tmp_path):
    opened, run_id, *_ = project
    assert [one.event["event_id"] for one in facts.explained] == [one.event_id for one in facts.sample[:3]]
    assert facts.explained[1] == opened.explain(facts.sample[1].event_id)
    page = open_page(written[0])
    for one in facts.explained:
        assert one.event["event_id"] in page
        assert f"{one.terms[0]['logit']:.3f}" in page
    version = opened.translator(facts.run.spec.translator_version).path
    version.rename(version.with_name("aside"))
    try:
        page = open_page(opened.report(run_id, output=tmp_path / "page.html").path)
        assert "These events cannot be explained: " in page
        assert "This version was removed by retention." in page
    finally:
        version.with_name("aside").rename(version)


def test_the_curve_is_of_events_that_the_translator_had_not_seen(facts):
    manifest = facts.translator
    cold = manifest["metrics"]["cold"]["mixture"]
    curve = manifest["calibration_curve"]
    assert sum(row["events"] for row in curve) == cold["eligible"] > 5
    assert sum(row["expected"] for row in curve) == pytest.approx(cold["eligible"], abs=0.01)
    error = sum(abs(row["expected"] - row["events"]) for row in curve) / cold["eligible"]
    assert error == pytest.approx(cold["ece"], abs=1e-5)
    predicted = [row["predicted"] for row in curve]
    assert predicted == sorted(predicted, reverse=True)


def test_what_the_stages_took_is_told(project, facts, written):
    opened, *_, generated = project
    assert list(facts.spent) == ["generate", "validate", "publish"]
    assert all(took["seconds"] > 0 and 100 < took["memory_mb"] < 100_000 for took in facts.spent.values())
    assert 100 < facts.generation["worker_mb"] < 100_000
    page = open_page(written[0])
    assert f"A Dask worker used {facts.generation['worker_mb']:,} MiB at most." in page
    assert list(collect_run_data(opened.settings, opened.ledger, generated).spent) == ["generate"]


def test_what_attacks_found_is_told(project, written, tmp_path):
    opened, run_id, *_ = project
    assert f"scalr privacy {run_id}" in written[0].read_text(encoding="utf-8")
    report = opened.privacy(run_id)
    chance = measure_attack(np.arange(300.0), np.arange(300.0))
    told = replace(
        report,
        membership={"translator_scores": measure_attack(np.ones(9), np.zeros(9)), "own_rows": chance},
        risks={"linkability": measure_risk(np.ones(9, bool), np.zeros(9, bool), np.zeros(9, bool))},
    )
    try:
        write_json(privacy_file(opened.settings, run_id), told.to_json())
        page = html.unescape(Path(opened.report(run_id, output=tmp_path / "page.html").path).read_text(encoding="utf-8"))
    finally:
        privacy_file(opened.settings, run_id).unlink()
    assert report.promise in page
    low, high = chance.auc.ci95
    own, scores = (page.index(says) for says in ("the user's own published rows", "probabilities of the user's items"))
    assert own < page.index(f"0.500 ({low:.3f} … {high:.3f})") < scores < page.index("1.000 (1.000 … 1.000)")
    assert f"{told.risks['linkability'].attack_rate:.2%}" in page[page.index("linkability: two halves") :]
    assert page.index("fewer than 2") < page.index(f"{report.evidence['5']:.2%}") < page.index("fewer than 10")
    assert ("too few users" in page) == (report.source_inference is None)


def test_a_refused_run_says_which_rule_broke(project, written):
    opened, _, rejected, generated = project
    page = open_page(written[1])
    broken = [rule for rule in gate(opened, rejected)["rules"] if rule["success"] is False]
    assert broken
    assert all(rule["rule"] in page and rule["says"] in page for rule in broken)
    assert "Refused by the quality gate." in page
    assert f"scalr validate {generated}" in open_page(written[2])


def test_a_run_that_was_rolled_back_is_told_from_one_that_is_published(project, tmp_path):
    opened, run_id, *_ = project
    opened.rollback(run_id)
    try:
        facts = collect_run_data(opened.settings, opened.ledger, run_id)
        assert (facts.events_of, facts.published) == ("accepted", None)
        assert "Rolled back." in open_page(opened.report(run_id, output=tmp_path / "page.html").path)
    finally:
        opened.publish(run_id)


@long
def test_a_run_whose_rows_were_replaced_says_so(project, here):
    opened, run_id, *_ = project
    other_seed = {"generation": window(0) | {"seed": 1}, "compute": {"dask": here}}
    with Project.open(opened.settings.base / "scalr.toml", **other_seed) as again:
        other = again.generate().run_id
        again.validate(other)
        again.publish(other)
    try:
        facts = collect_run_data(opened.settings, opened.ledger, run_id)
        assert (facts.held, facts.replaced_by, facts.events_of) == (0, [other], "accepted")
        report = opened.report(run_id)
        page = open_page(report.path)
        assert f"0 of its {facts.published:,} events are in the feature view; {other} was published over its window." in page
        index = Path(report.index).read_text(encoding="utf-8")
        held = {one: len(synthetic(opened, one)) for one in (run_id, other)}
        assert held[run_id] == 0
        assert f"{held[other]:,}" in index
    finally:
        opened.publish(run_id)
    assert collect_run_data(opened.settings, opened.ledger, run_id).held == facts.published


def test_what_cannot_be_written_or_read_is_one_error(project, tmp_path):
    opened, run_id, *_ = project
    with pytest.raises(ReportError, match="is a folder"):
        opened.report(run_id, output=tmp_path)
    path = run_folder(opened.settings.home, run_id) / "gate.json"
    content = path.read_text()
    path.write_text(content[:100])
    try:
        with pytest.raises(ReportError, match=r"gate\.json"):
            opened.report(run_id)
    finally:
        path.write_text(content)


def test_the_command(project, tmp_path):
    opened, run_id, *_ = project
    config = ["--config", str(opened.settings.base / "scalr.toml")]
    latest = ask("report", *config, "--json")
    assert latest.exit_code == 0
    assert json.loads(latest.stdout)["run_id"] == max(opened.runs(), key=lambda run: run.updated_at).run_id
    own = ask("report", run_id, *config, "--output", str(tmp_path / "own" / "page.html"), "--json")
    assert json.loads(own.stdout) == {"run_id": run_id, "path": str(tmp_path / "own" / "page.html"), "index": None}
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["page.html"]

    unknown = ask("report", "run_0000000000000000", *config, "--output", str(tmp_path / "none.html"), "--json")
    assert unknown.exit_code == 1
    assert json.loads(unknown.stdout)["error"] == RunNotFound.__name__
    assert not (tmp_path / "none.html").exists()


def test_where_there_is_no_run_or_nothing_that_draws(project, make_project, tmp_path, monkeypatch):
    opened, run_id, *_ = project
    with Project(make_project(tmp_path / "logs", LOCAL, users=20)) as empty, pytest.raises(ReportError, match="no run yet"):
        empty.report()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ReportError, match=r"scalr-prod\[report\]"):
        opened.report(run_id, output=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def ask(*arguments) -> Result:
    return CliRunner().invoke(app, list(arguments))


def open_page(path) -> str:
    return html.unescape(Path(path).read_text(encoding="utf-8"))


def gate(project, run_id):
    return json.loads((run_folder(project.settings.home, run_id) / "gate.json").read_text())["report"]
