"""What one set of tests runs of the package and another does not: `coverage json` of before and after a change of tests.

Usage: python scripts/coverage_lost.py BEFORE.json AFTER.json

Prints each line and branch that only the former has, and ends with 1 where there is any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(before: str, after: str) -> int:
    """How many lines and branches are lost, none: 0."""
    former, latter = (json.loads(Path(name).read_text(encoding="utf-8"))["files"] for name in (before, after))
    lost = 0
    for file, measured in sorted(former.items()):
        now = latter.get(file, {})
        lines = sorted(set(measured["executed_lines"]) - set(now.get("executed_lines", [])))
        kept = {tuple(branch) for branch in now.get("executed_branches", [])}
        branches = [branch for branch in measured["executed_branches"] if tuple(branch) not in kept]
        if lines or branches:
            print(f"{file}: lines {lines}, branches {branches}")
        lost += len(lines) + len(branches)
    return lost


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]) > 0)
