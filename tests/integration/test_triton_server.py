"""A real Triton's own life: started, found, killed, gone, and without what it needs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.triton_home import contexts, family, project

from scalr_prod.errors import (
    ModelNotReady,
    ServerUnreachable,
    ServingError,
)
from scalr_prod.serving import ensure_serving, serve_with_watchdog, serving_checks, start_triton, stop_triton, triton_status
from scalr_prod.serving.client import open_scorer
from scalr_prod.serving.local_server import watchdog
from scalr_prod.serving.local_server.server_state import read_record

#: Starts and kills a server for each test; the same errors from a server of plain Python: unit/serving/test_retry.py.
pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def home(tmp_path, trained_home):
    """A home of one's own, to break things in."""
    settings = project(tmp_path / "logs", trained_home)
    yield settings
    stop_triton(settings)


def stubs(settings) -> list[psutil.Process]:
    """The processes of the model."""
    return [p for p in psutil.Process(read_record(settings).pid).children(recursive=True) if "stub" in p.name()]


def test_a_killed_server_is_told_and_a_new_one_is_followed(home):
    """The stream goes on where the server, killed in the middle, is started anew on another port."""
    batches = [contexts(200, seed=n) for n in range(6)]
    with ensure_serving(home, 1), open_scorer(home, 1) as scorer:
        expected = [scorer.sample(batch, 3).items for batch in batches]
        answers = scorer.sample_stream(iter(batches), 3)
        got = [next(answers)]
        former = read_record(home)
        os.kill(former.pid, signal.SIGKILL)
        thread = threading.Thread(target=lambda: (time.sleep(0.5), start_triton(home)))
        thread.start()
        got += list(answers)
        thread.join()
    assert all(np.array_equal(answer.items, items) for answer, items in zip(got, expected, strict=True))
    assert read_record(home).pid != former.pid
    assert stop_triton(home)
    assert not family(former.name)


def test_a_model_whose_process_died_is_told_at_once_and_loaded_anew_for_the_next_run(home):
    with ensure_serving(home, 1), open_scorer(home, 1) as scorer:
        before = scorer.sample(contexts(20), 3).items
        processes = stubs(home)
        assert processes
        for process in processes:
            process.kill()
        with pytest.raises(ModelNotReady, match="has exited"):
            scorer.sample(contexts(20), 3)
        pid = read_record(home).pid
        with ensure_serving(home, 1):
            assert np.array_equal(scorer.sample(contexts(20), 3).items, before)
        assert read_record(home).pid == pid


def test_two_processes_hold_a_small_model_and_the_loss_of_one_is_made_good(home, monkeypatch):
    """With a process of its own for each of two threads, the draws are those of one process; a run goes on where one of them dies."""
    twice = home.with_sections(serving={"threads": 2})
    with ensure_serving(home, 1), open_scorer(home, 1) as scorer:
        expected = [scorer.sample(contexts(100, seed=seed), 3).items for seed in range(8)]
        assert len(stubs(home)) == 1
        stop_triton(home)
    monkeypatch.setattr(watchdog, "_PROBE_INTERVAL_S", 0.2)
    with serve_with_watchdog(twice, 1), open_scorer(twice, 1, has_watchdog=True) as scorer:
        before = read_record(twice)
        assert len(stubs(twice)) == 2
        answers = scorer.sample_stream((contexts(100, seed=seed) for seed in range(8)), 3)
        found = [next(answers).items]
        stubs(twice)[0].kill()
        found += [answer.items for answer in answers]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and read_record(twice).pid == before.pid:
            time.sleep(0.05)
        assert read_record(twice).pid != before.pid
        assert np.array_equal(scorer.sample(contexts(100, seed=0), 3).items, expected[0])
        assert len(stubs(twice)) == 2
    assert all(map(np.array_equal, found, expected))


@pytest.mark.nightly
def test_a_model_process_that_stood_still_mixes_no_answers_up_and_the_server_is_started_anew(home, monkeypatch):
    """Triton takes it for dead after a second, asks it on, and gives each answer to the next request, until one crashes."""
    waiting, over = threading.Barrier(5), threading.Event()
    wrong: list[int] = []

    def ask(seed: int) -> None:
        asked = contexts(40, seed=seed)
        with open_scorer(home, 1, has_watchdog=True) as scorer:
            expected = scorer.sample(asked, 4).items
            waiting.wait()
            while not over.is_set():
                wrong.extend([seed] * (not np.array_equal(scorer.sample(asked, 4).items, expected)))

    with ensure_serving(home, 1), ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, seed) for seed in range(4)]
        waiting.wait()
        record = read_record(home)
        (stub,) = stubs(home)
        monkeypatch.setattr(
            watchdog, "_PROBE_INTERVAL_S", 4.0
        )  # it does not see that the process is halted, only what comes of it
        try:
            with serve_with_watchdog(home, 1):
                stub.suspend()
                time.sleep(2.5)
                stub.resume()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline and read_record(home).pid == record.pid:
                    time.sleep(0.1)
                assert read_record(home).pid != record.pid
        finally:
            over.set()
        for client in clients:
            client.result()
    assert not wrong


def test_a_server_that_is_gone_is_told_within_the_deadline(home):
    quick = home.model_copy(update={"serving": home.serving.model_copy(update={"deadline_s": 2.0})})
    with ensure_serving(quick, 1), open_scorer(quick, 1) as scorer:
        os.kill(read_record(home).pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match="scalr triton status"):
            scorer.sample(contexts(5), 2)
        assert time.monotonic() - started < 4
    assert not triton_status(home).running


def test_nobody_home(home):
    with pytest.raises(ServerUnreachable, match="scalr triton start"):
        open_scorer(home, 1)
    away = project(home.base, home.base / "scalr.toml", url="127.0.0.1:9", deadline_s=1.0)
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"), ensure_serving(away, 1):
        pass
    assert not stop_triton(home)


def test_two_starters_find_one_server_and_its_last_user_stops_it(home):
    """Two processes ensure serving at once; one server comes up, outlives the first user and ends with the second."""
    program = (
        "import sys\nfrom scalr_prod.serving import ensure_serving, triton_status\n"
        "from scalr_prod.config.settings import load_settings\n"
        "settings = load_settings(sys.argv[1], serving={'threads': 1})\n"
        "with ensure_serving(settings, 1):\n"
        "    print(triton_status(settings).pid, flush=True)\n    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(home.base / "scalr.toml")]
    users = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    pids = {user.stdout.readline().strip() for user in users}
    assert len(pids) == 1
    (pid,) = map(int, pids)
    for user in users:
        assert psutil.pid_exists(pid), "it outlives the first user"
        user.communicate("\n", timeout=60)
        assert user.returncode == 0
    assert not triton_status(home).running
    assert read_record(home) is None


def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(home, tmp_path):
    broken = tmp_path / "venv"
    real = Path(sys.prefix).parent / ".venv-triton"
    wheel = next(real.glob("lib/python*/site-packages/pytriton"))
    packages = broken / wheel.parent.relative_to(real)
    packages.mkdir(parents=True)
    for entry in wheel.parent.iterdir():
        if entry.name != "pytriton":
            (packages / entry.name).symlink_to(entry)
    shutil.copytree(wheel / "tritonserver", packages / "pytriton" / "tritonserver")
    (packages / "pytriton" / "__init__.py").write_text("")
    (broken / "bin").mkdir()
    (broken / "bin" / "python").symlink_to(real / "bin" / "python")
    server = packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    server.unlink()
    server.write_text("#!/bin/sh\necho 'E1125 error: the disk is full'\nexit 1\n")
    server.chmod(0o755)
    shutil.copy(real / "pyvenv.cfg", broken / "pyvenv.cfg")
    settings = project(home.base, home.base / "scalr.toml", environment=str(broken))
    with pytest.raises(ServingError, match="the disk is full"):
        start_triton(settings)
    assert read_record(home) is None


def test_a_gpu_that_the_server_cannot_use_is_told(home, monkeypatch, caplog):
    """By the doctor, and whenever a server is started; it works on the CPU."""
    monkeypatch.setattr("scalr_prod.serving.install.virtualenvs.has_nvidia_gpu", lambda: True)
    (torch,) = (check for check in serving_checks(home) if check.name == "serving torch")
    if "+cpu" not in torch.found:
        pytest.skip("the serving environment has torch for GPUs")
    assert torch.ok
    assert "does not see this machine's GPU" in torch.found
    with caplog.at_level("WARNING"), ensure_serving(home, 1), open_scorer(home, 1) as scorer:
        assert scorer.sample(contexts(3), 2).items.shape == (3, 2)
    assert "does not see this machine's GPU" in caplog.text


def test_without_an_environment_the_way_out_is_named(home, tmp_path):
    settings = project(home.base, home.base / "scalr.toml", environment=str(tmp_path / "none"))
    with pytest.raises(ServingError, match='scorer = "local"'):
        start_triton(settings)
    checks = serving_checks(settings)
    assert [check.ok for check in checks if check.name == "serving environment"] == [False]
    with ensure_serving(project(home.base, home.base / "scalr.toml", scorer="local"), 1):
        assert read_record(home) is None


def test_the_doctor_starts_one_and_leaves_nothing():
    started = set()
    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(serving_checks, None, deep=True)
        while not checking.done():
            started |= set(family("scalr-doctor-"))  # its own: others of this machine may start servers meanwhile
            time.sleep(0.05)
    checks = checking.result()
    assert all(check.ok for check in checks), checks
    assert checks[-1].name == "tritonserver runs"
    assert started
    assert not started & set(family("scalr-doctor-"))
