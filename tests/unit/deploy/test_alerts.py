"""What the alert rules say when a driver is killed, a machine is gone or a scheduler is off: rules over exported metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.ledger_runs import make_spec, to_state
from support.promql import Evaluator, parse_textfile

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import ScalrError
from scalr_prod.integrations.metrics import export_metrics
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.pipeline import PipelineContext, Stage, execute_stages

ALERTS = Path(__file__).resolve().parents[3] / "deploy/prometheus/alerts.yml"
MINUTE, HOUR, DAY = 60, 3600, 86400
#: A driver that begins a stage and goes on forever; once it is at work it brings the run to the state "generating".
DRIVER = """
import sys, time
from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import Ledger, RunState
from scalr_prod.pipeline import PipelineContext, Stage, execute_stages

settings = load_settings(sys.argv[1], metrics={"textfile": "scalr.prom"}, logging={"heartbeat_s": 0.2})

def work(_):
    with Ledger.open(settings) as ledger:
        if sys.argv[2] != "-":
            ledger.runs.set_state(sys.argv[2], RunState.GENERATING, cause="test")
    print("at work", flush=True)
    time.sleep(600)

execute_stages(PipelineContext(settings), [Stage("generate", (), "", "", work, lambda _: True, light=sys.argv[3] == "light")])
"""


@pytest.fixture
def settings(project):
    return load_settings(project, metrics={"textfile": "scalr.prom"})


def finish(settings, name, work=lambda _: None):
    execute_stages(PipelineContext(settings), [Stage(name, (), "", "", work, lambda _: True)])


def scrape(settings):
    return parse_textfile(settings.resolve("scalr.prom").read_text())


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def killed_driver(project, settings, run_id="-", kind="long"):
    """Kill a driver at work, after a heartbeat."""
    command = [sys.executable, "-c", DRIVER, str(project), run_id, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout.readline() == "at work\n"
        begun = time.time()
        textfile = settings.resolve("scalr.prom")
        wait_for(lambda: textfile.exists() and textfile.stat().st_mtime > begun + 0.3)
        os.kill(driver.pid, signal.SIGKILL)


def firing(scrapes, at):
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    evaluator = Evaluator(scrapes, step_s=5 * MINUTE)
    return {rule["alert"] for rule in rules if evaluator.firing(rule, at)}


def scraped(samples, begin, end, every=4 * MINUTE):
    return [(at, samples) for at in range(int(begin), int(end) + 1, every)]


def test_nothing_fires_after_a_stage_that_ended(settings):
    finish(settings, "ingest")
    now = time.time()
    scrapes = scraped(scrape(settings), now, now + DAY)
    for after in (MINUTE, 20 * MINUTE, 13 * HOUR, DAY):
        assert firing(scrapes, now + after) == set()


def test_a_stage_that_failed_fires_after_its_retries_and_not_once_it_has_succeeded(settings):
    def fails(_):
        raise ScalrError("broke")

    with pytest.raises(ScalrError, match="broke"):
        finish(settings, "ingest", fails)
    now = time.time()
    scrapes = scraped(scrape(settings), now, now + HOUR)
    assert firing(scrapes, now + 10 * MINUTE) == set()
    assert firing(scrapes, now + 40 * MINUTE) == {"ScalrStageFailed"}
    finish(settings, "ingest")
    assert firing([*scrapes, (now + 61 * MINUTE, scrape(settings))], now + 62 * MINUTE) == set()


@pytest.mark.parametrize("kind", ["long", "light"])
def test_a_killed_driver_fires_within_minutes_and_its_run_within_half_a_day(project, settings, kind):
    finish(settings, "ingest")
    with Ledger.open(settings) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
    before = scrape(settings)
    killed_driver(project, settings, run_id, kind)
    now = time.time()
    after = scrape(settings)
    assert after["scalr_runs", frozenset({("project", settings.project_name), ("state", "generating")})] == 1
    scrapes = [*scraped(before, now - DAY, now), *scraped(after, now, now + DAY)]
    assert firing(scrapes, now + 5 * MINUTE) == set()
    assert firing(scrapes, now + 20 * MINUTE) == {"ScalrDriverLost"}
    assert firing(scrapes, now + 13 * HOUR) == {"ScalrDriverLost", "ScalrRunStuck"}
    finish(settings, "generate")  # the run was resumed
    with Ledger.open(settings) as ledger:
        to_state(ledger, run_id, RunState.GENERATED, begin=RunState.GENERATING)
    export_metrics(settings)
    later = now + 13 * HOUR + MINUTE
    assert firing([*scraped(after, now, later - 1), (later, scrape(settings))], later) == set()


def test_a_driver_that_is_killed_in_the_first_stage_of_all_fires(project, settings):
    killed_driver(project, settings)
    now = time.time()
    assert firing(scraped(scrape(settings), now, now + HOUR), now + 20 * MINUTE) == {"ScalrDriverLost"}


def test_a_stage_at_work_for_hours_does_not_fire(settings):
    seen = []
    finish(settings, "generate", lambda _: seen.append(scrape(settings)))
    heartbeat = "scalr_stage_heartbeat_timestamp_seconds"
    ((key, began),) = [(key, value) for key, value in seen[0].items() if key[0] == heartbeat]
    scrapes = [(at, {**samples, key: at}) for at, samples in scraped(seen[0], began, began + DAY)]
    assert firing(scrapes, began + DAY) == set()
    assert not any(name == heartbeat for name, _ in scrape(settings))


def test_a_machine_that_is_gone_fires_also_beside_machines_that_are_there(settings):
    finish(settings, "ingest")
    now = time.time()
    samples = scrape(settings)
    scrapes = [*scraped(samples, now - HOUR, now), *scraped({}, now + MINUTE, now + DAY)]
    assert firing(scrapes, now + 10 * MINUTE) == set()
    assert firing(scrapes, now + 30 * MINUTE) == {"ScalrMetricsGone"}
    other = {
        (name, labels - {("project", settings.project_name)} | {("project", "other")}): v
        for (name, labels), v in samples.items()
    }
    scrapes = [*scraped(samples | other, now - HOUR, now), *scraped(other, now + MINUTE, now + DAY)]
    assert firing(scrapes, now + 30 * MINUTE) == {"ScalrMetricsGone"}
    rule = next(one for one in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"] if one["alert"] == "ScalrMetricsGone")
    assert Evaluator(scrapes).firing(rule, now + 30 * MINUTE) == [{"project": settings.project_name}]


def test_a_project_that_never_wrote_metrics_fires():
    assert firing(scraped({}, 0, DAY), DAY) == {"ScalrMetricsGone"}


def test_a_scheduler_that_is_off_fires_after_two_days(settings):
    finish(settings, "ingest")
    now = time.time()
    scrapes = scraped(scrape(settings), now, now + 3 * DAY, every=4 * MINUTE)
    assert firing(scrapes, now + 47 * HOUR) == set()
    assert firing(scrapes, now + 49 * HOUR) == {"ScalrNothingRuns"}
