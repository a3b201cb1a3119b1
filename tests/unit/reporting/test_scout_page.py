"""The page of `scalr scout` shows every pair in the heat map and in the table."""

from __future__ import annotations

import pytest

from scalr_prod.errors import ReportError
from scalr_prod.evaluation import ScoutReport
from scalr_prod.evaluation.domain_pair import PairMeasurement, SplitLift
from scalr_prod.evaluation.domain_scout import DomainSize, FurtherSource
from scalr_prod.evaluation.statistics import ArmComparison
from scalr_prod.reporting import write_scout_page
from scalr_prod.translator import OwnOverOthers
from scalr_prod.translator.information_gain import MeanCI

INFORMATION = OwnOverOthers(400, 90, MeanCI(0.4, 0.3, 0.5))


def pair(source: str, target: str, lift: float) -> PairMeasurement:
    comparison = ArmComparison(lift, 5.0, (lift - 10, lift + 10), 0.01, (0.0, 0.02), 0.02)
    found = SplitLift(200, 0.12, 0.1, 90.0, comparison)
    return PairMeasurement(source, target, 1_000, 20_000, 3_000, 2.5, INFORMATION, found)


def test_every_pair_has_a_cell_and_a_row(tmp_path):
    domains = tuple(DomainSize(name, 10, 5, 3) for name in ("books", "<b>films</b>", "music"))
    pairs = (
        pair("books", "<b>films</b>", 30.0),
        pair("music", "<b>films</b>", 10.0),
        pair("<b>films</b>", "music", -20.0),
        *(
            PairMeasurement(source, target, 0, 20, 30, 0.1, problem="no common users")
            for source, target in (("books", "music"), ("music", "books"), ("<b>films</b>", "books"))
        ),
    )
    report = ScoutReport(domains, pairs, (FurtherSource("music", INFORMATION, taken=False),))
    path = tmp_path / "pages" / "scout.html"
    write_scout_page(path, report)
    page = path.read_text()
    assert "<strong>books → &lt;b&gt;films&lt;/b&gt;</strong>" in page
    assert "<b>" not in page
    assert page.count(">no common users</td>") == 6  # in the map and in the table
    assert "+30 %</td>" in page
    assert "-20 %</td>" in page
    assert "+0.400 (+0.300 … +0.500)" in page
    assert "<td>1,000</td><td>20,000 → 3,000</td>" in page


def test_without_a_good_pair_the_page_says_so(tmp_path):
    pairs = tuple(PairMeasurement(*names, 0, 5, 5, 0.1, problem="no common users") for names in (("a", "b"), ("b", "a")))
    write_scout_page(tmp_path / "scout.html", ScoutReport((DomainSize("a", 5, 1, 1), DomainSize("b", 5, 1, 1)), pairs))
    assert "No run is expected to help" in (tmp_path / "scout.html").read_text()


def test_a_page_takes_the_place_of_a_page_and_of_no_other_file(tmp_path):
    report = ScoutReport((DomainSize("a", 5, 1, 1), DomainSize("b", 5, 1, 1)), (pair("a", "b", 1.0), pair("b", "a", 1.0)))
    page, log = tmp_path / "scout.html", tmp_path / "logs.csv"
    write_scout_page(page, report)
    write_scout_page(page, report)
    log.write_text("user_id,item_id\n")
    with pytest.raises(ReportError, match="no page of this package") as caught:
        write_scout_page(log, report)
    assert caught.value.where == str(log)
    assert log.read_text() == "user_id,item_id\n"
    assert {path.name for path in tmp_path.iterdir()} == {"scout.html", "logs.csv"}
