"""`scalr ui`: what it shows is what runs hold, a draw is what the run drew, and nobody else can ask."""

from __future__ import annotations

import html
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlencode, urlsplit

import psutil
import pytest
from support.provenance import published_with_sources
from support.reported_runs import HOSTILE_TITLE, pages
from support.shown import difference, example
from support.small import LOCAL
from support.warm import run

from scalr_prod.errors import ReportError
from scalr_prod.reporting.ui import serve
from scalr_prod.schemas import Table

#: Visits each page of the server; test_report.py has the same facts and the same browser.
pytestmark = [pytest.mark.slow, pytest.mark.long]

SCALR = str(Path(sys.executable).with_name("scalr"))
HOSTILE_USER = "<script>document.title='taken'</script>\"'&"
EVENT = re.compile(r"<code>([0-9a-f]{32})</code>")


def ask(address, path="", *, method="GET", host=None, **query):
    """Status, headers and text of an answer."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=300)
    target = f"{parts.path}{path}" + (f"?{urlencode(query)}" if query else "")
    connection.request(method, target, headers={"Host": host or parts.netloc})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


@pytest.fixture(scope="module")
def served(reported):
    """The command itself: its address, and how it ends."""
    opened, *_ = reported
    config = str(opened.settings.base / "scalr.toml")
    process = subprocess.Popen(
        [SCALR, "ui", "--port", "0", "--config", config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        opened_at, closed = example("docs/guides/ui.md")
        assert difference(opened_at, line) == "", process.stderr.read()
        yield line.split()[0], process
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == f"{closed}\n"
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


@contextmanager
def opened_in_a_thread(settings):
    """The same pages in this process, for projects that are asked little."""
    import uvicorn

    from scalr_prod.reporting.ui.drawing import SamplingThread
    from scalr_prod.reporting.ui.server import _bind_socket, create_app

    with SamplingThread(settings) as drawing, _bind_socket(0) as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(settings, drawing, "t"), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/t/"
        finally:
            server.should_exit = True
            thread.join()


def published(project, run_id):
    rows = published_with_sources(project.lake)
    return rows[rows["run_id"] == run_id]


def test_the_list_has_every_run_with_its_state(served, reported):
    address, _ = served
    opened, *runs = reported
    status, headers, text = ask(address)
    assert status == 200
    rows = dict(re.findall(r">(run_[0-9a-f]{16})</a></td>\s*<td>(\w+)</td>", text))
    assert rows == {run.run_id: run.state for run in opened.runs()}
    assert sorted(rows[run_id] for run_id in runs) == ["generated", "published", "rejected"]
    assert f"{len(published(opened, runs[0])):,} synthetic events are in the feature view" in text
    assert "refresh" not in headers, "nothing is at work"


def test_a_run_at_work_is_looked_at_again(served, reported):
    address, _ = served
    opened, _, _, generated = reported
    with opened.ledger.leases.hold(generated):
        _, headers, text = ask(address)
        assert headers["refresh"] == "5"
        assert f"<strong>{generated}</strong>" in text
        _, headers, text = ask(address, still="")
        assert "refresh" not in headers
        assert "works on it" in ask(address, f"runs/{generated}")[2]
    assert "refresh" not in ask(address)[1]


def test_a_draw_is_what_the_run_drew(served, reported):
    """Every published event of two users, by its id, and no other: drawn again in several steps, without the run's files."""
    address, _ = served
    opened, run_id, *_ = reported
    made = published(opened, run_id)
    counts = made["user_id"].value_counts()
    for user in (counts.index[0], counts.index[-1]):
        drawn, before = [], ""
        while before is not None:
            status, _, text = ask(address, "translate", method="POST", user=user, run=run_id, before=before)
            assert status == 200
            drawn += EVENT.findall(text)
            earlier = re.search(r"before=([^\"&]+)", text)
            before = unquote(earlier[1]) if earlier else None
        assert sorted(drawn) == sorted(made[made["user_id"] == user]["event_id"])
    last = made[made["user_id"] == user].sort_values("source_event_timestamp").iloc[-1]
    page = html.unescape(ask(address, "translate", method="POST", user=user, run=run_id)[2])
    assert f"probability {last['probability']:.3g}, " in page
    for term in opened.explain(last["event_id"]).terms:
        assert f"{term['logit']:.3f}</td>" in page


def test_published_events_are_counted_by_day(served, reported):
    address, _ = served
    opened, run_id, *_ = reported
    days = published(opened, run_id)["event_timestamp"].dt.strftime("%Y-%m-%d").value_counts().sort_index(ascending=False)
    shown = re.findall(r'<tr><td>(\d{4}-\d\d-\d\d)</td><td class="number">([\d,]+)</td>', ask(address)[2])
    assert [(day, int(count.replace(",", ""))) for day, count in shown] == list(days.head(30).items())


def test_items_and_users_are_found_by_id_and_items_by_title(served, reported):
    address, _ = served
    opened, run_id, *_ = reported
    made, real = published(opened, run_id), opened.lake.read(Table.TARGET_EVENTS).to_pandas()
    item = made["item_id"].value_counts().index[0]
    title = opened.lake.read(Table.TARGET_ITEMS).to_pandas().set_index("item_id")["title"].get(item)
    counts = [f"{(events['item_id'] == item).sum():,}" for events in (real, made)]
    for text in (item, title.upper()):
        status, _, page = ask(address, "search", q=text)
        assert status == 200
        row = next(row for row in re.findall(r"<tr><td>.*?</tr>", page, re.DOTALL) if f">{item}</span>" in row)
        assert re.findall(r'class="number">([\d,]*)<', row) == counts
    best = made[made["item_id"] == item].sort_values(["probability", "user_id"], ascending=[False, True])["user_id"]
    assert re.findall(r"translate\?user=(\w+)", row) == best.head(5).tolist()
    user = made["user_id"].iloc[0]
    events = opened.lake.read(Table.SOURCE_EVENTS).to_pandas()
    assert f"has {(events['user_id'] == user).sum():,} source events" in ask(address, "search", q=user)[2]
    assert "no title contains it" in ask(address, "search", q=HOSTILE_USER)[2]
    assert ask(address, "search", q="x" * 3000)[0] == 400


def test_a_draw_with_other_settings_is_not_the_runs(served, reported):
    address, _ = served
    opened, run_id, *_ = reported
    made = published(opened, run_id)
    user = made["user_id"].value_counts().index[0]
    asked = {"user": user, "run": run_id, "events_per_source_event": "1", "temperature": "0.01"}
    status, _, text = ask(address, "translate", method="POST", **asked)
    assert status == 200
    assert "With other settings than the run" in text
    assert 0 < len(EVENT.findall(text)) <= len(re.findall(r"<h3>", text))
    assert 'value="0.01"' in ask(address, "translate", **asked)[2]
    for name, value in (("temperature", "0"), ("temperature", "hot"), ("events_per_source_event", "101"), ("min_lift", "-1")):
        status, _, text = ask(address, "translate", method="POST", user=user, run=run_id, **{name: value})
        assert (status, name in text) == (400, True)


def test_a_user_is_shown_as_the_run_knew_them(served, reported):
    address, _ = served
    opened, run_id, *_ = reported
    spec = opened.ledger.runs.get(run_id).spec
    _, _, text = ask(address, "translate", run=run_id)
    users = re.findall(r'href="/[\w-]+/translate\?user=(\w+)&amp;run=', text)
    assert len(users) > 10
    events = opened.lake.read(Table.SOURCE_EVENTS).to_pandas()
    known = events[(events["user_id"] == users[0]) & (events["event_timestamp"] < spec.end)]
    known = known.sort_values("event_timestamp", ascending=False)
    _, _, text = ask(address, "translate", run=run_id, user=users[0])
    shown = re.findall(r"<tr><td>(\d{4}-\d\d-\d\d \d\d:\d\d)</td>", text)
    assert shown == known["event_timestamp"].dt.strftime("%Y-%m-%d %H:%M").head(50).tolist()
    assert f"{len(known)} source events that the run knew" in text
    assert EVENT.findall(text) == [], "nothing is drawn before it is asked for"


@pytest.mark.parametrize(
    ("path", "query", "status", "says"),
    [
        ("translate", {"user": "nobody"}, 404, "knows no source event of this user"),
        ("translate", {"user": HOSTILE_USER}, 404, html.escape("<script>document.title=", quote=False)),
        ("translate", {"user": "x" * 3000}, 400, "too long"),
        ("translate", {"run": "run_0000000000000000"}, 404, "run_0000000000000000"),
        ("translate", {"run": "<script>"}, 404, "is not a run id"),
        ("runs/run_0000000000000000", {}, 404, "scalr runs list"),
        ("runs/" + quote("../../etc/passwd", safe=""), {}, 404, "nothing at this address"),
        ("data_docs/" + quote("../scalr.toml", safe=""), {}, 404, "nothing at this address"),
        ("data_docs/../ledger.db", {}, 404, "nothing at this address"),
        ("nothing", {}, 404, "nothing at this address"),
    ],
)
def test_what_is_not_there_is_a_clear_page(served, path, query, status, says):
    address, _ = served
    found, headers, text = ask(address, path, **query)
    assert (found, "<script>" in text) == (status, False)
    assert says in text
    assert "Traceback" not in text
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_draw_for_nobody_and_before_nothing(served):
    address, _ = served
    assert ask(address, "translate", method="POST", user="nobody")[0] == 404
    for before in ("yesterday", "2024-06-03"):
        status, _, text = ask(address, "translate", method="POST", user="u1", before=before)
        assert (status, "before" in text) == (400, True)


def test_who_may_ask(served):
    address, process = served
    port = urlsplit(address).port
    assert len(urlsplit(address).path) > 30
    for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example"):
        assert ask(address, host=host or " ")[0] == 400, "a name that was rebound to this address"
    assert ask(address, host=f"localhost:{port}")[0] == 200
    for path in ("/", "/wrong/", "/wrong/translate", f"{urlsplit(address).path[:-2]}/"):
        status, _, text = ask(f"http://127.0.0.1:{port}{path}")
        assert (status, text) == (404, "Open the address that scalr ui printed.\n")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(address, method=method)[0] == 405
    assert ask(address, "translate", method="DELETE")[0] == 405
    listening = {c.laddr.ip for c in psutil.Process(process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_looking_and_drawing_change_nothing(served, reported):
    address, _ = served
    opened, run_id, *_ = reported
    before = [run.to_json() for run in opened.runs()], {t: opened.lake.version(t) for t in Table if opened.lake.exists(t)}
    folders = {path for path in opened.settings.home.rglob("*") if "staging" not in path.parts and ".lock" not in path.name}
    for path in ("", f"runs/{run_id}", "search?q=i", "translate"):
        assert ask(address, path)[0] == 200
    assert ask(address, "translate", method="POST", user="u1", run=run_id)[0] == 200
    after = [run.to_json() for run in opened.runs()], {t: opened.lake.version(t) for t in Table if opened.lake.exists(t)}
    assert after == before
    now = {path for path in opened.settings.home.rglob("*") if "staging" not in path.parts and ".lock" not in path.name}
    assert now - folders == set()


@pytest.mark.parametrize(("width", "scheme"), pages(1200, "light"))
def test_the_pages_in_a_browser(served, reported, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    address, _ = served
    _, run_id, _, _ = reported
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(300_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: None if request.failure == "csp" else asked.append(request.url))

    def look():
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
        serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in {"serious", "critical"}]
        assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []

    try:
        page.goto(address)
        look()
        page.get_by_role("link", name=run_id).click()
        assert page.locator("figure").count() >= 4
        look()
        page.get_by_role("link", name="Search").click()
        page.get_by_label("Id of a user").fill("i")
        page.get_by_role("button", name="Search").click()
        look()
        page.get_by_role("link", name="Translate a user").click()
        look()
        page.locator("main ul a").first.click()
        look()
        page.get_by_role("button", name="Draw with the run's seed").click()
        page.locator("section.event summary").first.click()
        assert HOSTILE_TITLE in page.inner_text("main")
        assert page.title().startswith("User u"), "no title of an item is run as a script"
        look()
        assert said == []
        page.get_by_label("User").fill(HOSTILE_USER)
        page.get_by_role("button", name="Show").click()
        assert page.title() == f"User {HOSTILE_USER} · gadgets_to_dishes"
        look()
        page.get_by_role("link", name="Data docs").click()
        # Written by a script, some time after the page is there.
        expect(page.locator("body")).to_contain_text(re.compile(r"\S"), use_inner_text=True, timeout=300_000)
        home = address.rsplit("/", 2)[0]
        assert [url for url in asked if not url.startswith((home, "data:"))] == [], "no other host is asked"
    finally:
        page.close()


def test_before_there_is_anything(make_project, tmp_path):
    links = {"dask": "http://127.0.0.1:8787/status", "airflow": "https://airflow.example/home?a=1&b=2"}
    settings = make_project(tmp_path / "logs", LOCAL, users=20).with_sections(ui=links)
    with opened_in_a_thread(settings) as address:
        status, _, text = ask(address)
        assert (status, "There is no run yet." in text, "Nothing is published yet." in text) == (200, True, True)
        assert all(f'href="{html.escape(link)}"' in text for link in links.values())
        assert "Data docs" not in text
        assert ask(address, "data_docs/index.html")[0] == 404
        for method in ("GET", "POST"):
            status, _, text = ask(address, "translate", method=method, user="u1")
            assert (status, "scalr ingest" in text, "Traceback" in text) == (500, True, False)
    assert not settings.home.exists() or not list(settings.home.glob("lake/*"))


def test_a_port_that_is_taken_is_one_error(served, reported):
    address, _ = served
    opened, *_ = reported
    port = urlsplit(address).port
    with pytest.raises(ReportError, match=f"port {port} is not available"):
        serve(opened.settings, port=port, on_started=lambda _: None)
    config = str(opened.settings.base / "scalr.toml")
    done = run([SCALR, "ui", "--port", str(port), "--json", "--config", config])
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "ReportError"
