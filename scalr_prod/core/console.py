# SPDX-License-Identifier: Apache-2.0
"""Console output of reports and errors: plain lines, or tables and boxes on a terminal."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from scalr_prod.errors import ScalrError


_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: Widest column of plain lines: a longer cell shifts only the rest of its own row.
_WIDEST: Final = 60
_COLORS: Final = {
    "published": "green",
    "passed": "green",
    "done": "green",
    "ok": "green",
    "validated": "cyan",
    "generated": "cyan",
    "planned": "yellow",
    "generating": "yellow",
    "rolled_back": "magenta",
    "rejected": "red",
    "failed": "red",
    "missing": "red",
}


def print_report(facts: Any) -> None:
    """Print a report on stdout: tables on a terminal, plain lines otherwise.

    On a terminal, times are in the local zone, checksums are cut to twelve digits, and states are coloured.
    """
    if not sys.stdout.isatty():
        print("\n".join(format_lines(facts)))  # noqa: T201 - what the command is for
        return
    from rich.console import Console

    _print_section(Console(highlight=False), facts, 0)


def print_error_box(error: ScalrError) -> None:
    """Print an error in a box on stderr: what was found, where, and the next step."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    known = error.to_json()
    lines = [Text(str(known["found"]))]
    for name, title in (("where", "where"), ("stage", "stage"), ("run_id", "run"), ("next_step", "next")):
        if known.get(name) is not None:
            lines.append(Text.assemble((f"{title:<6}", "bold"), str(known[name])))
    Console(stderr=True, highlight=False).print(
        Panel(Text("\n").join(lines), title=type(error).__name__, title_align="left", border_style="red")
    )


def _print_section(console: Console, facts: dict[str, Any], depth: int) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    pairs = Table.grid(padding=(0, 2))

    def flush() -> None:
        nonlocal pairs
        if pairs.row_count:
            console.print(Padding(pairs, (0, 0, 0, 2 * depth)))
            pairs = Table.grid(padding=(0, 2))

    for key, value in facts.items():
        if isinstance(value, dict) and value:
            flush()
            console.print(Text("  " * depth + key, style="bold"))
            _print_section(console, value, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            flush()
            console.print(Text("  " * depth + key, style="bold"))
            console.print(Padding(_rich_table(value), (0, 0, 0, 2 * depth + 2)))
        else:
            pairs.add_row(Text(key, style="dim"), _rich_cell(value))
    flush()


def _rich_table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in _columns(rows):
        values = [row.get(name) for row in rows]
        number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        # Keep ids on one line, so that they can be copied.
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=name.endswith("_id"),
            header_style="bold underline",
        )
    for row in rows:
        table.add_row(*(_rich_cell(row.get(name)) for name in _columns(rows)))
    return table


def _rich_cell(value: Any) -> Text:
    from rich.text import Text

    if isinstance(value, str) and _ISO.fullmatch(value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return Text(value[:12])
    text = _cell(value)
    return Text(text, style=_COLORS.get(text, ""))


def format_lines(facts: Any, indent: str = "") -> list[str]:
    """Format a report as aligned lines; a list of rows becomes a table."""
    lines: list[str] = []
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *format_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [f"{indent}{key}:", *_table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_cell(value)}")
    return lines


def _table(rows: list[dict[str, Any]], indent: str) -> list[str]:
    columns = _columns(rows)
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [min(max(len(row[position]) for row in cells), _WIDEST) for position in range(len(columns))]
    return [indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """List the columns of all rows, without those whose first value is a list or a table."""
    first = {name: value for row in reversed(rows) for name, value in row.items()}
    named = dict.fromkeys(name for row in rows for name in row)
    return [name for name in named if not isinstance(first[name], dict | list)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value and isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "-" if value is None or value in ({}, []) else str(value)
