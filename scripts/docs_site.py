"""Build the documentation of this version beside that of others: FOLDER/0.1/, FOLDER/0.2/, …, and a page that leads to the newest.

Usage: python scripts/docs_site.py [FOLDER]

FOLDER (default: build/site) may hold sites of other versions: run this in a checkout of each. The list of versions on each page is read
from FOLDER/versions.json, in the form that `mike` gives it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.compile(r'^__version__ = "(\d+)\.(\d+)\.', flags=re.MULTILINE)
REDIRECT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>{name} {version}</title>
<meta http-equiv="refresh" content="0; url={version}/index.html">
</head>
<body><a href="{version}/index.html">Documentation of {name} {version}</a></body>
</html>
"""


def main(folder: Path) -> None:
    """Build this version's site in place of a former one, and bring the list of versions up to date."""
    major, minor = VERSION.search((ROOT / "scalr_prod" / "version.py").read_text(encoding="utf-8")).groups()
    version = f"{major}.{minor}"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder.absolute() / f".{version}"
    shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", made]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    shutil.rmtree(folder / version, ignore_errors=True)
    made.rename(folder / version)
    list_versions(folder)


def list_versions(folder: Path) -> None:
    """Write the list of the versions that have a site, newest first, and the page that leads to the newest."""
    found = [path.parent.name for path in folder.glob("*/index.html") if re.fullmatch(r"\d+\.\d+", path.parent.name)]
    found.sort(key=lambda version: tuple(map(int, version.split("."))), reverse=True)
    listed = [{"version": version, "title": version, "aliases": ["latest"] if version == found[0] else []} for version in found]
    (folder / "versions.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(REDIRECT.format(name="scalr_prod", version=found[0]), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] in (["--help"], ["-h"]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site")
