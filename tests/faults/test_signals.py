"""A driver that is asked to end, at any point: no process is left, the lease is free, and the run goes on to the same set."""

from __future__ import annotations

import os
import signal
import time
import uuid
from dataclasses import replace

import psutil
import pytest
from support.fault_harness import drawn

from scalr_prod.config.settings import load_settings
from scalr_prod.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.triton]

SHARES = {"translator": 1, "generate": 5, "validate": 2, "publish": 2}
#: SIGTERM at each of ten points, SIGINT at three of them, a quarter of a minute each: by `make test-long` one of each, the others by night.
ASKED = [(signal.SIGTERM, number) for number in range(10)] + [(signal.SIGINT, number) for number in (2, 5, 8)]
BY_DAY = {(signal.SIGTERM, 1), (signal.SIGINT, 8)}


@pytest.mark.parametrize(
    ("by", "number"),
    [
        pytest.param(*asked, marks=() if asked in BY_DAY else pytest.mark.nightly, id=f"{asked[0].name}-{asked[1]}")
        for asked in ASKED
    ],
)
def test_a_driver_that_is_asked_to_end_leaves_nothing_behind(served, drivers, by, number):
    kills = drawn(served.points, served.seconds, SHARES, seed=3)
    assert len(set(kills)) == 10, "ten points, all of them different"
    kill = replace(kills[number], signal=by)
    config, mark = served.before(kill.stage), uuid.uuid4().hex
    options = served.options | {"compute": {"dask": "local", "workers": 1}}
    found = drivers.drive(config, "run", kill=kill, environment={"FAULTS_MARK": mark}, **options)
    assert found.error is not None
    # A stage that was faster than when it was measured is struck at its end, where none is at work any more.
    assert found.error.startswith(f"Interrupted: stopped by {kill.signal.name}"), found.error
    assert processes(config.parent, mark) == []
    settings = load_settings(config, **options)
    with Ledger.open(settings) as ledger:
        runs = ledger.runs.find()
    assert [run.lease_owner for run in runs] == [None] * len(runs)
    after = drivers.drive(config, "resume" if kill.stage != "translator" else "run", **served.options)
    assert after.error is None, after.error
    served.check(exact=False)


def processes(folder, mark, *, patience_s=60.0):
    """What runs for the project: its Triton names the folder, local workers and the process that they are forked from carry the
    mark. The latter ends by itself, as soon as the imports are done that it may be at."""
    give_up = time.monotonic() + patience_s
    while True:
        found = [process.cmdline() for process in psutil.process_iter() if _is_of(process, str(folder), mark)]
        if not found or time.monotonic() > give_up:
            return found
        time.sleep(0.2)


def _is_of(process, folder, mark):
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(folder in word for word in process.cmdline()) or process.environ().get("FAULTS_MARK") == mark
    except psutil.Error:
        return False
