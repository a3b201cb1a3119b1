"""A real Triton whose model is slow: one that makes progress is left at work, one that hangs is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.core import assets
from scalr_prod.serving import ensure_serving, serve_with_watchdog, stop_triton
from scalr_prod.serving.client import codec, open_scorer
from scalr_prod.serving.client.transport import Channel
from scalr_prod.serving.client.wire import encode_request
from scalr_prod.serving.local_server.server_state import read_record
from scalr_prod.translator.data.contexts import Contexts

#: Waits for a watchdog to give a server up; the same retries with a server of plain Python: unit/serving/test_retry.py.
pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.long]

ROW_S = 0.25
ROWS = 36
#: A server that is silent for half of it hangs; the batch above takes over twice as long as that.
DEADLINE_S = 8.0
#: The model's program, with a pause before each context, and a way to have it hang.
SLOW = """
import time
from scalr_prod.translator.data.contexts import Samples

_sample = TranslatorModule.sample


def _slowly(self, contexts, k, **options):
    parts = []
    for row in range(len(contexts)):
        while Path({hang!r}).exists():
            time.sleep(0.05)
        time.sleep({pause})
        parts.append(_sample(self, contexts.slice(row, row + 1), k, **options))
    return Samples.concat(parts)


TranslatorModule.sample = _slowly
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, trained_home):
    """A home whose server's model takes a quarter of a second for each context; it runs for all tests, and the file that hangs it."""
    folder = tmp_path_factory.mktemp("slow")
    hang, models, config = folder / "hang", folder / "triton_models", folder / "logs" / trained_home.name
    shutil.copytree(assets.asset_folder("triton_models"), models)
    program = models / "translator" / "1" / "model.py"
    program.write_text(program.read_text() + SLOW.format(hang=str(hang), pause=ROW_S))
    shutil.copytree(trained_home.parent, config.parent)
    settings = load_settings(config, serving={"threads": 1, "deadline_s": DEADLINE_S, "startup_timeout_s": 240})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "asset_folder", lambda _: models)
        with ensure_serving(settings, 1):
            yield settings, hang
        stop_triton(settings)


@pytest.fixture
def slow(served):
    return served[0]


@pytest.fixture
def hang(served) -> Path:
    """While this file exists, the model works on nothing."""
    yield served[1]
    served[1].unlink(missing_ok=True)


def contexts(rows: int) -> Contexts:
    times = np.full(rows, 1_719_792_000_000_000)
    return Contexts(
        history_items=np.ones((rows, 4), np.int32),
        history_ages=np.zeros((rows, 4), np.float32),
        history_end=times,
        event_time=times,
        fold=np.full(rows, -1, np.int32),
        noise_key=np.arange(rows),
        exclude=np.full((rows, 1), -1, np.int32),
    )


def one_large_request(settings) -> threading.Thread:
    """Sent past every limit of the scorer's; the thread's ``items`` hold what came back."""
    message = codec.build_request("translator", 1, encode_request(contexts(ROWS), k=3), ("items",), timeout_s=240)
    url = read_record(settings).url

    def ask() -> None:
        with Channel(url) as channel:
            (output,) = channel.infer(message, 240).result().raw_output_contents
            thread.items = np.frombuffer(output, np.int32).reshape(ROWS, 3)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.long
def test_a_batch_that_takes_longer_than_a_server_may_be_silent_is_seen_through_and_another_run_waits(slow):
    with serve_with_watchdog(slow, 1):
        before = read_record(slow)
        started = time.monotonic()
        thread = one_large_request(slow)
        time.sleep(4 * ROW_S)  # it is at work
        with ensure_serving(slow, 1):
            assert read_record(slow) == before
        thread.join()
        assert time.monotonic() - started > 2 * DEADLINE_S / 2, "longer than the limit, or this test shows nothing"
        assert thread.items.shape == (ROWS, 3)
        assert read_record(slow) == before


def kill(settings, _) -> None:
    os.killpg(read_record(settings).pid, signal.SIGKILL)


def halt(settings, _) -> None:
    for process in psutil.Process(read_record(settings).pid).children(recursive=True):
        if "stub" in process.name():
            process.suspend()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(kill, id="killed"),
        pytest.param(lambda _, hang: hang.touch(), id="no progress", marks=pytest.mark.long),
        pytest.param(halt, id="halted", marks=pytest.mark.nightly),  # CONTRIBUTING.md
    ],
)
def test_a_server_that_ends_or_hangs_within_a_batch_is_replaced(slow, hang, fault):
    # The request has to outlive the silence, a new server's start, and its first answer.
    patient = slow.with_sections(serving={"deadline_s": 60.0})
    with serve_with_watchdog(slow, 1), open_scorer(patient, 1, has_watchdog=True) as scorer:
        expected = scorer.sample(contexts(4), 3).items
        before = read_record(slow)
        answers: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: answers.append(scorer.sample(contexts(4), 3).items))
        thread.start()
        time.sleep(2 * ROW_S)
        fault(slow, hang)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and read_record(slow).pid == before.pid:
            time.sleep(0.05)
        hang.unlink(missing_ok=True)
        assert read_record(slow).pid != before.pid
        thread.join()
        assert not before.is_alive
    assert len(answers) == 1
    assert np.array_equal(answers[0], expected)


def test_a_slow_server_is_asked_for_as_much_as_it_answers_in_time(slow):
    """All at once would take longer than the deadline."""
    with serve_with_watchdog(slow, 1), open_scorer(slow, 1, has_watchdog=True) as scorer:
        assert ROWS * ROW_S > DEADLINE_S
        before = read_record(slow)
        assert len(scorer.sample(contexts(ROWS), 3)) == ROWS
        assert read_record(slow) == before
