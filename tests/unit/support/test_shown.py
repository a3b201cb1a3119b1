"""The comparer of what the docs show with what was printed: what it lets through, and that it fails where an output differs."""

from __future__ import annotations

import pytest
from support.shown import any_numbers, blocks_of, difference, said

PRINTED = """\
stages:
  stage    state  took
  ingest   done   1.25
  dataset  done   0.5
publication  on
rows         3812
"""


@pytest.mark.parametrize(
    "shown",
    [
        PRINTED,
        PRINTED.replace("1.25", "…"),
        PRINTED.replace("1.25", "1…5").replace("publication  on", "publication        on"),
        "stages:\n…\npublication  on\nrows         3812",
        "…\nrows         …\n",
        "stages:\n…\n  ingest   done   …\n…\n",
        "…",
    ],
)
def test_what_is_shown_is_what_was_printed(shown):
    assert difference(shown, PRINTED) == ""
    assert difference(shown, "something else\nin two lines", PRINTED) == "", "on either stream"


@pytest.mark.parametrize(
    "shown",
    [
        PRINTED.replace("3812", "3813"),
        PRINTED.replace("publication  on\n", ""),
        PRINTED + "more  1\n",
        PRINTED.replace("done   1.25", "done"),
        PRINTED.replace("  ingest", "ingest"),
        PRINTED.replace("ingest ", "in…st  …  "),
        "stages:\npublication  on\n…",
        "…\nrows",
        "",
    ],
)
def test_it_fails_where_an_output_differs(shown):
    found = difference(shown, PRINTED)
    assert found.startswith("--- shown in the docs\n+++ printed\n")
    assert any(line.startswith("+") for line in found.splitlines()[2:]) or "-more" in found


def test_the_lines_after_a_command_are_what_it_prints():
    assert said("$ scalr a\n$ scalr b  # said\none\n\ntwo\n") == [("scalr a", ""), ("scalr b  # said", "one\n\ntwo")]
    for wrong in ("one\n$ scalr a\n", ""):
        with pytest.raises(ValueError, match="command"):
            said(wrong)


def test_numbers_of_an_example_may_be_any():
    shown = any_numbers("als at 2023-10-18: NDCG@20 +84.9 % (95 %: +59.5 … +115.9), 12,480 of run_17")
    assert shown == "als at …-…-…: NDCG@… … % (… %: … … …), … of run_17"
    assert difference(shown, "als at 2024-01-02: NDCG@20 +1 % (9 %: -0.5 … +115.9), 7 of run_17") == ""
    assert difference(shown, "als at 2024-01-02: MAP@10 +1 % (9 %: -0.5 … +115.9), 7 of run_17") != ""


def test_a_comment_says_what_is_not_done_with_a_block():
    page = "<!-- not run: a cluster -->\n```console\n$ a\n```\n<!-- not compared: minutes -->\n```text\nb\n```\n```\nc\n```\n"
    assert [tuple(block) for block in blocks_of(page)] == [
        ("run", "a cluster", "console", "$ a\n"),
        ("compared", "minutes", "text", "b\n"),
    ]
