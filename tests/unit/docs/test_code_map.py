"""The page "Where do I find …" names modules and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "scalr_prod"
#: The folder of the package `feast_delta`.
STORE = ROOT / "packages" / "feast-delta" / "src"
SOURCE = "\n".join(path.read_text(encoding="utf-8") for folder in (PACKAGE, STORE) for path in sorted(folder.rglob("*.py")))
ROWS = [
    line.split("|")[1:4]
    for line in (ROOT / "docs" / "reference" / "code-map.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("| W",))
]


def test_the_page_answers_questions():
    assert len(ROWS) > 15


@pytest.mark.parametrize(("question", "modules", "answer"), ROWS, ids=[row[0].strip() for row in ROWS])
def test_what_the_page_names_is_there(question, modules, answer):
    named = re.findall(r"`([\w/]+(?:\.py|/|\.yaml)?)(?:: [\w.]+)?`", modules + answer)
    places = [name for name in named if "/" in name or name.endswith(".py")]
    assert [place for place in places if not any((folder / place).exists() for folder in (PACKAGE, STORE))] == []
    names = re.findall(r"`(?:[\w/]+\.py: )?([A-Z_a-z][\w.]*)`", answer)
    unknown = [name for name in names if not name.endswith(".py") and not re.search(rf"\b{name.rpartition('.')[2]}\b", SOURCE)]
    assert unknown == []
