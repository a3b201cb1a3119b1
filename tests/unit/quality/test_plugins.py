"""Gate rules of another package: beside ours, named in the report, and judged again when they change."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from support.examples import sweep
from support.small_project import GATE_TARGET, Handmade

from scalr_prod.errors import QualityError, QualityGateFailed
from scalr_prod.ledger import run_folder
from scalr_prod.quality import validate_run

#: Audits a run four times.
long = pytest.mark.long

HEAD = "from scalr_prod.quality import FigureRule, RowRule\n\n\nclass Rule:\n    version = 1\n\n    def rules(self, run):\n"
ROW = 'RowRule("not_at_night", "no event before 6", "hour(c.event_timestamp) >= 6")'
FIGURE = (
    'FigureRule("few_items", "at most 5 items", "items_named", high=5, '
    'query="SELECT count(DISTINCT item_id) FROM judged WHERE accepted")'
)
QUARANTINE = 'policy = "quarantine"\nmax_quarantine_share = 1.0'


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Judge one run by a rule whose `rules` returns what is given."""
    monkeypatch.syspath_prepend(str(tmp_path / "theirs"))
    (tmp_path / "theirs").mkdir()
    projects: dict[str, tuple] = {}

    def judge(returned: str, more: str = "", head: str = HEAD):
        sys.modules.pop("their_rules", None)
        (tmp_path / "theirs" / "their_rules.py").write_text(head + f"        return {returned}\n")
        importlib.invalidate_caches()
        if more not in projects:
            text = f'[quality]\nrules = ["their_rules:Rule"]\n{more}'
            project = Handmade(tmp_path / f"project{len(projects)}", text, target=GATE_TARGET)
            projects[more] = (project, project.run().run_id)
        project, run_id = projects[more]
        return validate_run(project.settings, run_id), run_folder(project.settings.home, run_id)

    yield judge
    sys.modules.pop("their_rules", None)


def test_rows_that_break_it_are_put_aside_and_the_report_names_it(judged):
    report, folder = judged(f"[{ROW}, {FIGURE.replace('high=5', 'low=5')}]", QUARANTINE)
    (outcome,) = (rule for rule in report.rules if rule.rule == "not_at_night")
    assert 0 < outcome.failed == report.quarantined < report.rows
    assert {rule.rule for rule in report.rules} > {"event_id_is_unique", "run_has_events", "not_at_night"}
    kept = json.loads((folder / "gate.json").read_text())
    assert kept["report"]["rule_set"] == kept["inputs"]["rules"] == report.rule_set
    assert {name: version for name, version in report.rule_set.items() if name != "their_rules:Rule"} == {
        "rows": "4",
        "runs": "8",
        "information": "3",
        "calibration": "2",
        "drift": "2",
        "privacy": "3",
    }
    assert report.rule_set["their_rules:Rule"].startswith("1+")
    assert report.figures["items_named"] == 10


def test_a_figure_of_its_own_decides(judged):
    with pytest.raises(QualityGateFailed, match=r"few_items \(at most 5 items\): found 10"):
        judged(f"[{FIGURE}]")


@long
def test_a_run_is_judged_again_by_a_rule_that_changed_and_not_otherwise(judged):
    first, folder = judged(f"[{ROW}]", QUARANTINE)
    again, _ = judged(f"[{ROW}]", QUARANTINE)
    assert (first.repeated, again.repeated) == (False, True)
    edited, _ = judged(f"[{ROW.replace('>= 6', '>= 12')}]", QUARANTINE)
    assert not edited.repeated
    assert edited.quarantined > first.quarantined
    content = json.loads((folder / "gate.json").read_text())
    content["inputs"]["rules"] = 3  # as a former package wrote it
    del content["report"]["rule_set"]
    (folder / "gate.json").write_text(json.dumps(content))
    newer, _ = judged(f"[{ROW.replace('>= 6', '>= 12')}]", QUARANTINE)
    assert not newer.repeated
    assert newer.rule_set == edited.rule_set


@pytest.mark.parametrize(
    ("returned", "said"),
    sweep(
        [
            ('[RowRule("item_id", "taken", "true")]', "item_id', which is taken"),
            ('[RowRule("odd", "no SQL", "c.nowhere > 1")]', "odd: its condition cannot be computed.*nowhere"),
            ('[FigureRule("odd", "two", "two", query="SELECT 1, 2")]', "odd: its query returns no number"),
            ("1 / 0", "their_rules:Rule: it failed: ZeroDivisionError"),
            ('[RowRule("event_id_is_unique", "taken", "true")]', "which is taken"),
            ('[RowRule("order", "a keyword", "true")]', "'order', a keyword of SQL.*rename it"),
            ('[RowRule("x; DROP", "no column", "true")]', "only lower-case letters"),
            ('[RowRule("odd", "fails at a row", "c.item_id::INT > 1")]', "odd: its condition cannot be computed"),
            ('[FigureRule("odd", "no figure", "nowhere", low=1)]', "odd: the figure 'nowhere' is not measured"),
            ('[FigureRule("odd", "ours", "accepted", query="SELECT 1")]', "odd: the figure 'accepted' is already measured"),
            ('["odd"]', "their_rules:Rule: it gave a str"),
        ],
        keep=5,
    ),
)
def test_one_that_cannot_be_computed_is_named(judged, returned, said):
    with pytest.raises(QualityError, match=said):
        judged(returned)


def test_one_without_rules_is_refused(judged):
    with pytest.raises(QualityError, match=r"their_rules:Rule has no method rules\(run\)"):
        judged("[]", head=HEAD.replace("def rules", "def others"))


def test_ours_cannot_be_taken_out(tmp_path):
    from scalr_prod.errors import SettingsError

    with pytest.raises(SettingsError, match="which is always true"):
        Handmade(tmp_path, '[quality]\nrules = ["rows"]', target=GATE_TARGET)
    assert not list(Path(tmp_path).rglob("gate.json"))
