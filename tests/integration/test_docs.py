"""The site builds, what is made from the code is up to date, the tutorial and the page on training sets do what they say."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.shown import blocks_of, difference, said
from support.warm import run

from scalr_prod import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VERSION = ".".join(__version__.split(".")[:2])
SCALR = str(Path(sys.executable).with_name("scalr"))


def done(command, **options):
    found = run(command, **options)
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    return found.stdout


def says(console, folder, environment):
    """The commands of a block, each with the lines that it is shown to print."""
    for command, shown in said(console):
        variables, _, arguments = command.partition("scalr ")
        assigned = dict(word.split("=", 1) for word in variables.split())
        found = run([SCALR, *arguments.split()], cwd=folder, env=environment | assigned)
        assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
        if shown and (found := difference(shown, found.stdout, found.stderr)):
            pytest.fail(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of this version, beside one of an earlier version and one of a later version."""
    folder = tmp_path_factory.mktemp("site")
    for version in ("0.0", "0.10"):
        (folder / version).mkdir()
        (folder / version / "index.html").write_text("<!doctype html><title>other</title>")
    done([sys.executable, str(ROOT / "scripts" / "docs_site.py"), str(folder)], cwd=ROOT)
    return folder / VERSION


#: Twenty seconds; `make docs` builds it, too.
@pytest.mark.long
def test_the_site_builds_without_a_warning(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    written = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written <= pages
    assert "Build a training set" in (site / "reference" / "python.html").read_text(encoding="utf-8")
    # Nothing is asked of another host when a page is opened, but for links that a reader follows.
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', path.read_text(encoding="utf-8"))
        assert [address for address in loaded if "canonical" not in address] == []


@pytest.mark.long
def test_a_version_is_built_beside_the_others(site):
    listed = json.loads((site.parent / "versions.json").read_text(encoding="utf-8"))
    assert [(one["version"], one["aliases"]) for one in listed] == [("0.10", ["latest"]), (VERSION, []), ("0.0", [])]
    assert "url=0.10/index.html" in (site.parent / "index.html").read_text(encoding="utf-8"), "0.10 is newer than 0.9"
    assert (site.parent / "0.0" / "index.html").exists()


#: Pages with text, tables, code and charts; the long generated ones take axe a minute.
PAGES = ("index.html", "guides/feast.html", "reference/compatibility.html", "experiments/lift.html")


@pytest.mark.long
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark"), (1200, "dark"), (390, "light")])
def test_its_pages_in_a_browser(site, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with serve(site.parent) as address:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(120_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        try:
            for name in PAGES:
                page.goto(f"{address}/{VERSION}/{name}")
                page.wait_for_selector(".md-version", state="attached")
                assert page.locator(".md-version__link").all_inner_texts() == ["0.10", VERSION, "0.0"] or width == 390
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                found = Axe().run(page).response["violations"]
                serious = [one for one in found if one["impact"] in {"serious", "critical"}]
                assert [(name, one["id"], one["nodes"][0]["html"]) for one in serious] == []
            assert [url for url in asked if not url.startswith((address, "data:"))] == [], "no other host is asked"
        finally:
            page.close()


@contextmanager
def serve(folder: Path):
    """Serve a folder on this machine; gives the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_is_made_from_the_code_is_up_to_date():
    done([sys.executable, str(ROOT / "scripts" / "reference.py"), "--check"])


def test_the_charts_show_what_was_measured():
    done([sys.executable, str(ROOT / "scripts" / "charts.py"), "--check"])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("at_hand")
def test_the_tutorial_from_its_first_line_to_its_last(tmp_path):
    blocks = blocks_of((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    code = ""
    for _, _, language, text in blocks:
        if language == "toml":
            (tmp_path / "scalr.toml").write_text(text)
        elif language == "python":
            code += text
            if "Project" not in text and "scalr_prod" not in code:
                done([sys.executable, "-c", text], cwd=tmp_path)
        else:
            says(text, tmp_path, environment)
    assert {block.language for block in blocks} == {"python", "toml", "console"}
    runs = json.loads(done([SCALR, "runs", "list", "--json"], cwd=tmp_path))["runs"]
    assert [run["state"] for run in runs] == ["published"]
    assert (tmp_path / ".scalr" / "reports" / "index.html").exists()
    # All of its Python as one program, from the logs to the matrix: nothing is done twice.
    code += (
        "\nprint(*matrix.shape, int(frame['is_synthetic'].sum()), seen[user][:, items[0]].nnz, matrix[user][:, items[0]].nnz)"
    )
    users, items, synthetic, had, proposed = map(int, done([sys.executable, "-c", code], cwd=tmp_path).split()[-5:])
    assert users > 200
    assert items > 100
    assert synthetic > 1000
    assert had == 0, "what the user had is not recommended"
    assert proposed > 0, "items of synthetic events are"
    assert len(json.loads(done([SCALR, "runs", "list", "--json"], cwd=tmp_path))["runs"]) == 1
    the_page_on_training_sets(tmp_path, environment)


def the_page_on_training_sets(folder, environment):
    """On the tutorial's project: its settings added, its commands run, its Python as one program."""
    code = ""
    for _, _, language, text in blocks_of((ROOT / "docs" / "guides" / "training-sets.md").read_text(encoding="utf-8")):
        if "features_repo" in text:  # of another repository: tests/unit/features/test_external_features.py has one
            continue
        if "splits" in text and language == "toml":  # the command below it sets them, for a home of its own
            continue
        if language == "toml":
            with (folder / "scalr.toml").open("a") as settings:
                settings.write(text)
        elif language == "python":
            code += text
        else:
            says(text, folder, environment)
    code += "\nprint(len(hugging_face), int((frame['label'] == 0).sum()), len(batch['user']), model.num_trees())"
    rows, negatives, batch, trees = map(int, done([sys.executable, "-c", code], cwd=folder, env=environment).split()[-4:])
    assert 0 < negatives < rows
    assert (batch, trees) == (1024, 20)
    assert len((folder / "rows.csv").read_text().splitlines()) == rows + 1
    assert (folder / "films" / "films.inter").is_file()
    split = json.loads((folder / ".split" / "datasets" / "training_set" / "v1" / "manifest.json").read_text())
    assert 0 < split["splits"]["train"]["real"] < 1200
    assert split["splits"]["test"]["real"] > 0
    assert split["splits"]["train"]["synthetic"] == split["synthetic"] > 1000, "those of a run as of the split are in train"
