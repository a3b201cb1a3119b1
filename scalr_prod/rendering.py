"""Reports as text for people."""

from __future__ import annotations

from typing import Any

__all__ = ["as_lines"]


def as_lines(facts: Any, indent: str = "") -> list[str]:
    """A report as aligned, readable lines; a list of like rows as a table."""
    lines: list[str] = []
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *as_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [f"{indent}{key}:", *_table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_cell(value)}")
    return lines


def _table(rows: list[dict[str, Any]], indent: str) -> list[str]:
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list)]
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(row[position]) for row in cells) for position in range(len(columns))]
    return [indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "-" if value is None else str(value)
