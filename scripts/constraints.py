"""Renew the constraint files: the newest versions that fit together, for every Python and platform that is supported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Releases that are chosen by hand, and why.
CHOSEN = {
    "package": [
        "torch==2.13.0",
        "apache-airflow==3.3.2",
    ],  # tested together; a newer torch must come to both environments at once
    "serving": ["torch==2.13.0"],
}


def main() -> None:
    """Resolve both environments, universally, and write what came out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    store = tomllib.loads((ROOT / "packages" / "feast-delta" / "pyproject.toml").read_text())["project"]
    dependencies = [one for one in project["project"]["dependencies"] if not one.startswith(store["name"])]
    groups = project["dependency-groups"]
    serving = [line for line in (ROOT / "constraints" / "serving.in").read_text().splitlines() if not line.startswith("#")]
    extras = [r for key, rs in project["project"]["optional-dependencies"].items() if key != "all" for r in rs]
    wanted = {"package": [*dependencies, *store["dependencies"], *extras, *groups["dev"]], "serving": serving}
    for name, requirements in wanted.items():
        with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
            source.write("\n".join([*requirements, *CHOSEN[name]]))
            source.flush()
            output = ROOT / "constraints" / f"{name}.txt"
            command = ["pip", "compile", "--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
            command += ["--no-emit-find-links", "--no-emit-index-url", source.name]
            done = subprocess.run([sys.executable, "-m", "uv", *command], check=True, capture_output=True, text=True)
            # A local build tag ("+cpu") exists on no index: pin the public version.
            lines = [line.replace("+cpu", "") for line in done.stdout.splitlines()]
            output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
