"""The picture of a report in the README: a run's page from its head to its first translations, as Chromium draws it.

Usage: python scripts/picture.py [PAGE] [PICTURE], after `make demo`. The picture in the repository has fewer colours than what this
writes: a palette of 163, a quarter of the bytes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 1000
TRANSLATIONS = 2


def main() -> None:
    """Draw it."""
    pages = sorted(Path(".scalr/demo/home/reports").glob("run_*.html"), key=lambda path: path.stat().st_mtime)
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else next(reversed(pages), None)
    if page is None:
        sys.exit("no page in .scalr/demo/home/reports: make demo writes one")
    picture = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images/report.png")  # noqa: PLR2004
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("there is no Chromium: as root, make browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        last = shown.locator("[aria-label=Translations] tbody tr").nth(TRANSLATIONS - 1).bounding_box()
        if last is None:
            sys.exit(f"{page} shows no translations")
        picture.parent.mkdir(parents=True, exist_ok=True)
        height = last["y"] + last["height"] + 1
        shown.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()


if __name__ == "__main__":
    main()
