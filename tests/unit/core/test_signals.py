"""SIGTERM and SIGINT: what they raise, what a second one does, and what a command says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time

import pytest
from support.warm import run

from scalr_prod.core.signals import Interrupted, defer_signals, graceful_shutdown
from scalr_prod.pipeline import stage_context


@pytest.fixture(autouse=True)
def sigint_as_at_a_terminal():
    """What a shell starts in the background ignores SIGINT, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_closes_what_is_open_and_names_where_it_came(number, code):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    closed = []

    def work():
        try:
            signal.raise_signal(number)  # to this thread: any thread may get what is sent to the process
            time.sleep(5)
        finally:
            signal.raise_signal(signal.SIGTERM)  # another one, while it closes
            closed.append("all of it")

    with pytest.raises(Interrupted) as caught, graceful_shutdown(), stage_context("generate", "run_1"):
        work()
    assert closed == ["all of it"]
    assert caught.value.exit_code == code
    assert str(caught.value).endswith(
        "during generate; finished work is kept. Continue with: the same command again, "
        "or, as far as its publication, scalr runs resume run_1"
    )
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_stage_without_a_run_is_repeated():
    stopped = Interrupted(signal.SIGTERM).add_context(stage="ingest", run_id=None)
    assert stopped.to_json() == {
        "error": "Interrupted",
        "found": "stopped by SIGTERM",
        "where": None,
        "next_step": "the same command again",
        "stage": "ingest",
        "run_id": None,
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_went_nowhere_is_raised_by_the_next_stage():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def stage(name):
        with stage_context(name, "run_1"):
            Dying()  # raised in its destructor, where Python prints an error and goes on
            passed.append(name)

    passed = []
    with pytest.raises(Interrupted, match="SIGTERM") as caught, graceful_shutdown():
        list(map(stage, ("validate", "publish")))
    assert (passed, caught.value.stage) == (["validate"], "publish")


def test_a_block_within_a_block_changes_nothing():
    with graceful_shutdown():
        outer = signal.getsignal(signal.SIGTERM)
        with graceful_shutdown():
            assert signal.getsignal(signal.SIGTERM) is outer
        assert signal.getsignal(signal.SIGTERM) is outer


def test_a_signal_that_was_ignored_stays_so():
    """As of a command that a script starts with & at its end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with graceful_shutdown():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_goes_nowhere_is_raised_again_after_a_while(monkeypatch):
    monkeypatch.setattr("scalr_prod.core.signals._CLOSING_S", 0.2)

    def work():
        with contextlib.suppress(Interrupted):  # as in a destructor
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)  # too early
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(Interrupted), graceful_shutdown():
        work()


def test_what_must_not_be_begun_by_halves_holds_a_signal_back():
    done = []

    def work():
        with defer_signals(), defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("opened")
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")
        done.append("went on")

    with pytest.raises(Interrupted, match="SIGTERM"), graceful_shutdown():
        work()
    assert done == ["opened", "whole"]


def test_a_second_ctrl_c_breaks_off_what_holds_the_first_one_back():
    done = []

    def work():
        signal.raise_signal(signal.SIGINT)
        done.append("held")
        signal.raise_signal(signal.SIGINT)
        done.append("went on")

    with pytest.raises(KeyboardInterrupt) as caught, graceful_shutdown(), defer_signals():
        work()
    assert done == ["held"]
    assert not isinstance(caught.value, Interrupted)


def test_without_a_handler_nothing_is_held_back():
    with pytest.raises(KeyboardInterrupt), defer_signals():
        signal.raise_signal(signal.SIGINT)


def test_a_fork_ends_as_it_would_have():
    with graceful_shutdown():
        child = os.fork()
        if child == 0:
            try:
                time.sleep(20)
            finally:
                os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_another_thread_changes_no_handler():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with graceful_shutdown():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.slow
def test_a_command_says_how_to_go_on(project):
    code = (
        "import os, signal, sys, scalr_prod.ingest as room\n"
        "room.ingest = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv = ['scalr', 'ingest', '--config', {str(project)!r}, '--json']\n"
        "from scalr_prod.apps.cli import main\nmain()"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 143, done.stderr
    assert json.loads(done.stdout)["stage"] == "ingest"
    assert "stopped by SIGTERM during ingest; finished work is kept. Continue with: the same command again" in done.stderr
    assert "Traceback" not in done.stderr
