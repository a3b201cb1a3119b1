"""What is told of a local server's process that has ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from scalr_prod.errors import ServingError
from scalr_prod.serving import start_triton, stop_triton
from scalr_prod.serving.local_server import process, watchdog
from scalr_prod.serving.local_server.launch import child_processes
from scalr_prod.serving.local_server.server_state import ServerRecord, server_user

LOG = 'E1129 12:00:00.0 cuda.cc:10] "CudaDriverHelper has not been initialized."\n'


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Returns a function that runs a program in a server's place."""

    children = []

    def launch(program):
        child = subprocess.Popen([sys.executable, "-c", program, "--id=scalr-test"])
        children.append(child)
        monkeypatch.setitem(child_processes, child.pid, child)
        log = tmp_path / "triton.log"
        log.write_text(LOG)
        return ServerRecord(
            url=f"unix:{tmp_path}/grpc:1",
            metrics_url="",
            pid=child.pid,
            created=psutil.Process(child.pid).create_time(),
            name="scalr-test",
            repository="",
            log=str(log),
            lasting=False,
            socket_folder=str(tmp_path),
        )

    yield launch
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("number", "told"), [(9, "killed by signal 9 (SIGKILL), likely out of memory"), (11, "killed by signal 11 (SIGSEGV)")]
)
def test_a_server_that_is_killed_while_starting_says_by_which_signal(launched, settings, number, told):
    record = launched(f"import os; os.kill(os.getpid(), {number})")
    with pytest.raises(ServingError) as caught:
        process._wait_ready(settings, record)
    assert f": Triton was {told}, while starting\n" in str(caught.value)
    assert "CudaDriverHelper" not in str(caught.value)
    assert record.log in str(caught.value)


def test_a_server_that_exits_says_its_status_and_the_end_of_its_log(launched, settings):
    record = launched("raise SystemExit(3)")
    with pytest.raises(ServingError, match=r"exited with status 3 while starting") as caught:
        process._wait_ready(settings, record)
    assert "CudaDriverHelper" in str(caught.value)


def test_a_server_is_alive_until_it_is_killed(launched):
    record = launched("import time; time.sleep(600)")
    assert process.is_alive(record)
    os.kill(record.pid, signal.SIGKILL)
    assert process._wait_until_ended(record, 30)
    assert process.describe_end(record) == "was killed by signal 9 (SIGKILL), likely out of memory"
    del child_processes[record.pid]  # as in a process that did not start it
    assert process.describe_end(record) == "has ended"


def test_a_second_machine_does_not_replace_a_server_that_the_first_uses(launched, settings, monkeypatch):
    record = replace(launched(""), host=socket.gethostname())
    assert process._wait_until_ended(record, 30)
    (settings.home / "triton").mkdir(parents=True)
    with server_user(settings):  # a run of the first machine
        record.write(settings)
        with server_user(settings):
            pass
        monkeypatch.setattr(socket, "gethostname", lambda: "second")
        for use in (lambda: server_user(settings).__enter__(), lambda: start_triton(settings), lambda: stop_triton(settings)):
            with pytest.raises(ServingError, match=f"{record.host}, which shares this home, uses a local Triton") as caught:
                use()
            assert "[serving] url" in str(caught.value)
        assert process.triton_status(settings).detail == f"it was started on {record.host}"
    with server_user(settings):  # the first machine has finished, or was killed
        pass


def test_a_watchdog_outlives_a_probe_that_fails(monkeypatch, caplog):
    """Such as a shared home that does not answer for a moment: a server that is lost later is restarted all the same."""
    from scalr_prod.serving.local_server import watchdog

    answers = [OSError(116, "Stale file handle"), None]

    def read_record(settings):
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(watchdog, "_PROBE_INTERVAL_S", 0.0)
    monkeypatch.setattr(watchdog, "read_record", read_record)
    watchdog._Watchdog(None, 1).run()
    assert not answers
    assert "could not be probed" in caplog.text


def test_a_restart_loads_those_of_its_versions_that_retention_kept(launched, settings, monkeypatch):
    record = launched("pass")
    child_processes[record.pid].wait()
    loaded = []
    for name, found in {
        "read_record": lambda _: record,
        "configured_versions": lambda _: [1, 2, 3],
        "version_numbers": lambda _: [2, 3, 4],
        "find_environment": lambda _: None,
        "prepare_backend_folder": lambda *_: None,
        "load_version": lambda _, version: version,
        "install_version": lambda _, version: loaded.append(version),
        "write_config": lambda *_: None,
    }.items():
        monkeypatch.setattr(process, name, found)
    monkeypatch.setattr(process, "launch_server", lambda *_, **__: (_ for _ in ()).throw(ServingError("no server here")))
    with pytest.raises(ServingError, match="no server here"):
        process.start_locked(settings, [4], keep_running=False)
    assert loaded == [2, 3, 4]


def test_the_processes_of_another_version_are_not_counted(settings, monkeypatch):
    """Version 10 begins as version 1 does."""
    folder = str(watchdog.model_folder(settings))
    running = [f"{folder}/{version}/model.py" for version in (1, 1, 10, 10)]
    monkeypatch.setattr(watchdog, "configured_instances", lambda _: 2)
    monkeypatch.setattr(
        psutil, "Process", lambda _: SimpleNamespace(children=lambda **_: [
            SimpleNamespace(status=lambda: "sleeping", cmdline=lambda path=path: ["stub", path]) for path in running
        ])
    )  # fmt: skip
    guard, record = watchdog._Watchdog(settings, 1), SimpleNamespace(pid=1)
    assert not guard._has_lost_process(record)
    running.pop(0)
    assert guard._has_lost_process(record)
