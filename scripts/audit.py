"""Known weaknesses of the pinned packages, as an advisory database lists them.

pip-audit passes over what its database does not answer for, and then finds nothing wrong. Here that is no clean bill.
Exit 0: all looked up, nothing known. 1: something known. 2: not all could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UVX = Path(sys.executable).with_name("uvx")
UNREACHED = (
    "The advisory database cannot be reached from here ({looked_up} of {packages} packages looked up), so nothing is known "
    "about their weaknesses: run make audit where there is internet access."
)


def main() -> int:
    """Look up both environments' packages, and say what was found."""
    found: dict[str, list[str]] = {}
    skipped: set[str] = set()
    for name in ("package", "serving"):
        for package in asked(ROOT / "constraints" / f"{name}.txt"):
            if "skip_reason" in package:
                skipped.add(package["name"])
            else:
                found[f"{package['name']} {package['version']}"] = [known["id"] for known in package["vulns"]]
    weak = {package: ids for package, ids in found.items() if ids}
    for package, ids in weak.items():
        print(f"{package}: {', '.join(ids)}")
    if not found or len(skipped) > len(found):
        print(UNREACHED.format(looked_up=len(found), packages=len(found) + len(skipped)))
        return 1 if weak else 2
    print(f"{len(found)} packages looked up, {len(weak)} with known weaknesses.")
    if skipped:
        print(f"Not in the database: {', '.join(sorted(skipped))}")
    return 1 if weak else 2 if skipped else 0


def asked(file: Path) -> list[dict]:
    """What the database says of each package of one file; of all of them that it was not asked, where pip-audit gave up."""
    command = [UVX, "pip-audit", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json", "-r", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip-audit said nothing", file=sys.stderr)
        pinned = [line.split("==")[0] for line in file.read_text().splitlines() if "==" in line]
        return [{"name": name, "skip_reason": "not asked"} for name in pinned]


if __name__ == "__main__":
    sys.exit(main())
