"""Three pairs of strangers' logs → published events, by the two commands of the README, with no file edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.foreign_logs import PAIRS
from support.obscure_logs import CLEAR_PAIRS
from support.warm import run

SCALR = Path(sys.executable).with_name("scalr")


@pytest.mark.nightly  # three whole runs with a Triton server each: 35 CPU seconds a run
@pytest.mark.triton
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PAIRS)
def test_strangers_logs_become_published_events(name, tmp_path):
    pair = PAIRS[name]
    pair.make(tmp_path)

    def scalr(*arguments: str) -> dict:
        done = subprocess.run([SCALR, *arguments, "--json"], check=False, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    scalr("init", "--yes", "--source", pair.source, "--target", pair.target)
    try:
        report = scalr("run")
    finally:
        scalr("triton", "stop")
    ingested, published = report["stages"]["ingest"], report["stages"]["publish"]
    assert ingested["common_users"] > 150
    assert ingested["source"]["rows"] == 240 * 18
    assert published["rows"] > 1000


@pytest.mark.long  # a whole run in this process' share of the machine: most of a minute
@pytest.mark.timeout(900)
def test_logs_of_obscure_names_become_published_events(tmp_path):
    pair = CLEAR_PAIRS["hotels and tables"]
    pair.write(tmp_path)

    def scalr(*arguments: str) -> dict:
        environment = os.environ | {"SCALR_SERVING__SCORER": "local"}
        done = run([SCALR, *arguments, "--json"], cwd=tmp_path, timeout=800, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    scalr("init", "--yes", "--source", pair.source, "--target", pair.target)
    report = scalr("run")
    assert report["stages"]["ingest"]["source"]["rows"] == 6200
    assert report["stages"]["ingest"]["common_users"] == 242
    assert report["stages"]["publish"]["rows"] > 1000
