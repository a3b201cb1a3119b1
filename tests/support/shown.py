"""Output as the docs show it, compared with what a command printed.

`…` stands for anything within a line, and a line of `…` alone for any number of lines. All else is equal, but for the width of columns.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Block", "Said", "any_numbers", "blocks_of", "difference", "example", "said"]

ANYTHING = "…"
_BLOCK = re.compile(r"^(?:<!-- not (run|compared): ([^\n]*) -->\n)?```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])[+−-]?\d[\d,]*(\.\d+)?")


class Block(NamedTuple):
    """A code block of a page.

    Attributes:
        without: ``run`` or ``compared``, where a comment before it says that it is not; else empty.
        reason: Why, as the comment says.
        language: Of the block.
        text: What stands in it.
    """

    without: str
    reason: str
    language: str
    text: str


class Said(NamedTuple):
    """A command of a block, and the lines that it is shown to print; none: nothing is shown."""

    command: str
    shown: str


def blocks_of(page: str) -> list[Block]:
    """The code blocks of a page in their order; one that names no language is a drawing."""
    return [Block(*found) for found in _BLOCK.findall(page)]


def said(console: str) -> list[Said]:
    """The commands of a console block, each with the lines after it.

    Raises:
        ValueError: It begins with no command.
    """
    found: list[tuple[str, list[str]]] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"output before any command: {line}")
    if not found:
        raise ValueError(f"no command: {console}")
    return [Said(command, "\n".join(lines)) for command, lines in found]


def any_numbers(shown: str) -> str:
    """The same with `…` in place of each number, for lines whose figures are an example's."""
    return _NUMBER.sub(ANYTHING, shown)


def example(page: str) -> list[str]:
    """The lines of a page's only block that another test compares, with `any_numbers`: ``docs/guides/ui.md``."""
    text = (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8")
    (block,) = (block for block in blocks_of(text) if block.without == "compared" and block.reason.endswith(".py"))
    return any_numbers(block.text).splitlines()


def difference(shown: str, *printed: str) -> str:
    """How a shown output differs from each of what was printed, for people; empty where it is one of them.

    Args:
        shown: From the docs.
        printed: What it may be, such as stdout and stderr; the first is the one that it is set against.
    """
    wanted = _lines(shown)
    if any(_pattern(wanted).fullmatch("".join(f"{line}\n" for line in _lines(one))) for one in printed):
        return ""
    return "\n".join(difflib.unified_diff(wanted, _lines(printed[0]), "shown in the docs", "printed", lineterm=""))


def _lines(text: str) -> list[str]:
    """As they are compared: how wide a column is depends on what stands in it."""
    return [re.sub(r"(?<=\S) {3,}", "  ", line.rstrip()) for line in text.strip("\n").splitlines()]


def _pattern(lines: Sequence[str]) -> re.Pattern[str]:
    """What matches the lines, each with a line's end."""
    within = (r"[^\n]*".join(re.escape(part) for part in line.split(ANYTHING)) + r"\n" for line in lines)
    return re.compile(
        "".join(r"(?:[^\n]*\n)*?" if line.strip() == ANYTHING else one for line, one in zip(lines, within, strict=True))
    )
