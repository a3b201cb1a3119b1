"""What a command writes on stderr: each line can be read by a machine, and says what it is about."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.warm import run

#: Looks at the log of one generation, which takes ten seconds.
long = pytest.mark.long

SETTINGS = {
    "SCALR_LOGGING__FORMAT": "json",
    "SCALR_LOGGING__LEVEL": "debug",
    "SCALR_LOGGING__HEARTBEAT_S": "0.2",
    "SCALR_SERVING__SCORER": "local",
    "SCALR_GENERATION__PARTITIONS": "2",
    "SCALR_COMPUTE__WORKERS": "1",
    "SCALR_METRICS__TEXTFILE": "scalr.prom",
}


def scalr(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([Path(sys.executable).with_name("scalr"), *arguments], env=os.environ | environment, timeout=300)


def parsed(stderr: str) -> list[dict]:
    lines = [json.loads(line) for line in stderr.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message", "project"} <= line.keys(), line
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
    return lines


@pytest.fixture(scope="module")
def generated(trained_home, tmp_path_factory):
    """A run of `scalr generate` with lines in JSON, and the settings file."""
    folder = tmp_path_factory.mktemp("logs") / "logs"
    shutil.copytree(trained_home.parent, folder)
    config = folder / trained_home.name
    done = scalr("generate", "--config", str(config), "--json", **SETTINGS)
    assert done.returncode == 0, done.stderr
    return done, config


@long
@pytest.mark.slow
def test_every_line_is_json_and_says_what_it_is_about(generated):
    done, _ = generated
    report = json.loads(done.stdout)
    lines = parsed(done.stderr)
    at_work = [line for line in lines if line.get("stage") == "generate"]
    assert {line["project"] for line in lines} == {"gadgets_to_dishes"}
    assert {line["run_id"] for line in at_work if "run_id" in line} == {report["run_id"]}


@long
@pytest.mark.slow
def test_lines_of_workers_name_the_partition(generated):
    done, _ = generated
    report = json.loads(done.stdout)
    theirs = [line for line in parsed(done.stderr) if line["logger"] == "scalr_prod.generation.task"]
    assert sorted(line["partition"] for line in theirs) == [0, 1]
    assert {line["run_id"] for line in theirs} == {report["run_id"]}
    assert sum(int(line["message"].split()[0]) for line in theirs) == report["contexts"]


@long
@pytest.mark.slow
def test_generation_tells_how_far_it_is(generated):
    done, _ = generated
    report = json.loads(done.stdout)
    beats = [line for line in parsed(done.stderr) if line["message"].startswith("translating: ")]
    assert beats
    assert {line["total"] for line in beats} == {report["contexts"]}
    assert [line["done"] for line in beats] == sorted(line["done"] for line in beats)
    assert all(line["share"] == pytest.approx(line["done"] / line["total"], abs=1e-3) for line in beats)


@long
@pytest.mark.slow
def test_what_workers_measured_is_in_the_textfile(generated):
    done, config = generated
    report = json.loads(done.stdout)
    families = {family.name: family for family in text_string_to_metric_families((config.parent / "scalr.prom").read_text())}
    latency = {
        sample.name.removeprefix("scalr_scoring_latency_seconds_"): sample.value
        for sample in families["scalr_scoring_latency_seconds"].samples
    }
    assert latency["count"] >= 2  # a batch at least in each of two parts
    assert 0 < latency["sum"] < report["seconds"]
    assert [sample.value for sample in families["scalr_generation_contexts"].samples] == [report["contexts"]]
    # A light stage is there too where it took longer than a heartbeat.
    ended = [sample.labels for sample in families["scalr_stage_seconds"].samples]
    assert {"project": "gadgets_to_dishes", "stage": "generate"} in ended


def test_an_error_is_a_line_too_and_the_option_goes_before_the_settings(project):
    done = scalr("--log-format", "json", "publish", "run_none", "--config", str(project), SCALR_LOGGING__FORMAT="text")
    assert done.returncode == 1
    line = parsed(done.stderr)[-1]
    assert line["level"] == "ERROR"
    assert line["error"] == "RunNotFound"
    assert line["run_id"] == "run_none"
    assert line["next_step"]


def test_text_is_the_default_and_level_and_quiet_hold(project):
    told = scalr("ingest", "--config", str(project))
    assert told.returncode == 0
    assert "INFO scalr_prod.pipeline.runner: ingest done in" in told.stderr
    assert told.stderr.splitlines()[-1].endswith("[project=gadgets_to_dishes stage=ingest]")
    assert scalr("--quiet", "ingest", "--config", str(project)).stderr == ""
    assert scalr("ingest", "--config", str(project), SCALR_LOGGING__LEVEL="error").stderr == ""
