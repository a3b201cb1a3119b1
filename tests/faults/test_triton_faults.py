"""What a real Triton may do in the middle of a run: die, hang, lose its model. The run goes on, and publishes the same."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest
from tritonclient.grpc import service_pb2

from scalr_prod.config.settings import load_settings
from scalr_prod.serving import triton_status
from scalr_prod.serving.client.security import Security
from scalr_prod.serving.client.transport import Channel
from scalr_prod.serving.local_server.server_state import read_record

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.triton]


def stubs(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if "stub" in p.name()]


def server_killed(record, _) -> None:
    os.killpg(record.pid, signal.SIGKILL)


def model_process_killed(record, _) -> None:
    for process in stubs(record.pid):
        process.kill()


def server_stopped(record, _) -> None:
    """It hangs: its connections stay open, and nothing answers."""
    os.kill(record.pid, signal.SIGSTOP)


def model_process_stopped(record, _) -> None:
    for process in stubs(record.pid):
        process.suspend()


def model_unloaded(record, settings) -> None:
    request = service_pb2.RepositoryModelUnloadRequest(model_name="translator")
    with Channel(record.url) as channel:
        channel._stub.RepositoryModelUnload(request, timeout=20, metadata=Security.for_control(settings).metadata)


FAULTS = [server_killed, model_process_killed, server_stopped, model_process_stopped, model_unloaded]
#: Those that `make test-long` has time for.
SOON = [server_killed]


def in_the_middle(driver, settings, after: float):
    """The server's record, once it answers and workers ask it; None where the run was faster."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and driver.process.is_alive():
        # A part is being written: the server has started, the guard watches it, and workers ask it.
        if any((settings.home / "runs").glob("*/parts/*")):
            time.sleep(after)
            return read_record(settings)
        time.sleep(0.02)
    return None


@pytest.mark.parametrize(
    ("fault", "seed"),
    [
        pytest.param(
            fault, seed, id=f"{fault.__name__}-{seed}", marks=[] if fault in SOON and not seed else [pytest.mark.nightly]
        )
        for fault in FAULTS
        for seed in range(3)
    ],
)
def test_the_run_goes_on_by_itself(drivers, served, fault, seed):
    config = served.before("generate")
    settings = load_settings(config, **served.options)
    driver = drivers.start(config, "run", **served.options)
    record = in_the_middle(driver, settings, after=random.Random(seed).uniform(0, 1.5))  # noqa: S311 - reproducible
    assert record is not None
    fault(record, settings)
    found = driver.wait()
    assert found.error is None, found.error
    served.check(exact=False)
    assert not triton_status(settings).running, "its last user stops it"
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(record.name in part for part in p.info["cmdline"] or ())]


@pytest.mark.nightly
def test_a_killed_driver_leaves_a_server_that_the_next_command_uses_and_stops(drivers, served):
    config = served.before("generate")
    settings = load_settings(config, **served.options)
    driver = drivers.start(config, "run", **served.options)
    record = in_the_middle(driver, settings, after=0.3)
    driver.process.kill()
    assert driver.wait().killed
    assert triton_status(settings).running
    found = drivers.drive(config, "resume", **served.options)
    assert found.error is None, found.error
    served.check(exact=False)
    assert not record.is_alive


def test_a_finished_run_starts_no_server(drivers, served):
    config = served.before("dataset")
    found = drivers.drive(config, "resume", **served.options)
    assert found.error is None, found.error
    assert found.report["stages"]["publish"]["outcome"] == "already_published"
    assert drivers.drive(config, "run", **served.options).error is None
    assert not (load_settings(config).home / "triton-server" / "triton.log").exists()
