"""The page of results says what the benchmarks' files hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "results.py"))


def test_the_page_is_up_to_date(script):
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run: make docs"


def test_every_file_is_on_the_page_or_left_out_with_a_reason(script):
    sections = [line for line in script["page"]().splitlines() if line.startswith("From ")]
    shown = {path.stem for path in script["RESULTS"].glob("*.json") if any(f"`{path.name}`" in line for line in sections)}
    assert shown | set(script["LEFT_OUT"]) == {path.stem for path in script["RESULTS"].glob("*.json")}
    assert not shown & set(script["LEFT_OUT"])


@pytest.mark.parametrize(
    ("value", "limit", "least", "cells"),
    [
        (115.0, 600, False, ["time", "115 s", "≤ 600 s", "0.19"]),
        (601.0, 600, False, ["time", "**601 s**", "≤ 600 s", "1.00"]),
        (0.5, 0.9, True, ["time", "**0.5 s**", "≥ 0.9 s", "0.56"]),
        (12345.6, None, False, ["time", "12 346 s", "", ""]),
    ],
)
def test_a_figure_that_misses_its_limit_is_bold(script, value, limit, least, cells):
    assert script["Measure"]("time", value, " s", limit, least=least).cells() == cells
