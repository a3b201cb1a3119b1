"""Work tells how far it is where there is no terminal: share done, rate, and time left."""

from __future__ import annotations

import threading
import time
from itertools import accumulate, pairwise

import pytest
from support.shown import difference, example

from scalr_prod.core.logging import log_context
from scalr_prod.core.progress import ProgressTracker, heartbeat, heartbeat_interval, track


@pytest.fixture
def lines(caplog):
    caplog.set_level("INFO", logger="scalr_prod")

    def wait_for(count: int) -> list:
        give_up = time.monotonic() + 30
        while len(caplog.records) < count:
            assert time.monotonic() < give_up, caplog.text
            time.sleep(0.005)
        return caplog.records

    return wait_for


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("scalr_prod.core.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_says_share_rate_and_time_left(clock):
    tracker = ProgressTracker("reading", total=1000, unit="events", done=200)
    for _ in range(3):
        clock[0] += 2
        tracker.advance(100)
    snapshot = tracker.snapshot()
    assert (snapshot["done"], snapshot["share"], snapshot["rate"]) == (500, 0.5, 50)  # of this call: not what was there before
    line = tracker.describe(snapshot)
    assert line == "reading: 500 of 1,000 events (50 %) in 6 s, 50/s, about 10 s left"
    (shown,) = example("docs/guides/logs.md")
    assert difference(shown.replace("translating", "reading").replace("contexts", "events"), line) == ""


def run_task(clock, durations, total):
    """Yield (time left as shown, true time left) twice a second during a task whose units take these times."""
    tracker = ProgressTracker("task", total=total)
    ends, now, begin = list(accumulate(durations)), 0.0, clock[0]
    for end in ends:
        while now < end:
            clock[0] = begin + now
            yield tracker.snapshot()["eta_s"], ends[-1] - now
            now += 0.5
        clock[0] = begin + end
        tracker.advance(1)


@pytest.mark.parametrize(
    "durations",
    [
        [0.6] * 100,
        [55.0] + [0.05] * 99,  # the rate after the first unit would tell more than an hour
        [0.01] * 50 + [1.0] * 50,
        [7.0] * 10,
        [20.0, *[0.4] * 20, 0.2, 0.2],
    ],
    ids=["steady", "slow start", "fast start", "long steps", "short"],
)
def test_a_time_left_is_shown_only_once_it_is_right_within_a_factor_of_two(clock, durations):
    shown = [(eta, left) for eta, left in run_task(clock, durations, len(durations)) if eta is not None]
    assert all(left / 2 <= eta <= 2 * left for eta, left in shown if left > 2), shown


def test_a_steady_task_shows_its_time_left_from_a_tenth_on(clock):
    shown = list(run_task(clock, [0.6] * 100, 100))
    first = next(left for eta, left in shown if eta is not None)
    assert first == pytest.approx(54, abs=2)
    assert all(eta is None for eta, _ in run_task(clock, [0.01] * 100, 100))  # too short for a rate


def test_unknown_totals_are_left_out(lines):
    with heartbeat_interval(0.02), track("reading", show=False) as advance:
        lines(1)
        advance(5)
        record = lines(2)[1]
    assert not hasattr(record, "share")
    assert not hasattr(record, "eta_s")
    assert "of" not in record.message.split()


def test_only_the_innermost_task_is_logged(lines):
    with heartbeat_interval(0.02), heartbeat(ProgressTracker("histories")):
        lines(1)
        with track("item statistics", show=False, total=10) as advance:
            advance(1)
            count = len(lines(1))
            records = lines(count + 4)[count + 1 :]  # one line of the outer work may have been under way
        assert {record.message.split(":")[0] for record in records} == {"item statistics"}
        count = len(lines(1))
        assert lines(count + 2)[-1].message.startswith("histories: 0 s")


def test_a_bar_silences_the_lines_of_the_work_around_it(lines):
    with heartbeat_interval(0.02), heartbeat(ProgressTracker("ingest")):
        lines(1)
        with track("read source", show=True):
            count = len(lines(1)) + 1  # one line may have been under way
            time.sleep(0.3)
            assert len(lines(1)) <= count
        count = len(lines(1))
        assert lines(count + 2)[-1].message.startswith("ingest: ")


def test_a_stage_writes_at_most_one_line_an_interval_whatever_its_tasks(lines):
    with heartbeat_interval(0.2), heartbeat(ProgressTracker("histories")):
        for number in range(20):
            with track(f"table {number}", show=False, total=10):
                time.sleep(0.05)
    times = [record.created for record in lines(1)]
    assert len(times) <= 5
    assert all(after - before > 0.15 for before, after in pairwise(times))


def test_work_of_less_than_a_minute_writes_no_line_by_default():
    from scalr_prod.config.sections.observability import LoggingSettings
    from scalr_prod.core import progress

    assert LoggingSettings().heartbeat_s == progress._interval_s.get() == 60


def test_short_work_writes_no_line(caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    with track("nothing", show=False, total=1) as advance:
        advance(1)
    assert not caplog.records


def test_no_thread_is_left_behind_after_an_error():
    with pytest.raises(ValueError, match="bad row"), heartbeat_interval(0.02), track("reading", show=False):
        raise ValueError("bad row")
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_lines_of_the_heartbeat_know_what_they_are_about():
    from scalr_prod.core.logging import current_log_context

    told: list[dict] = []

    class Listening(ProgressTracker):
        def log_progress(self) -> None:
            told.append(current_log_context())

    with log_context(project="shop", stage="histories"), heartbeat_interval(0.01), heartbeat(Listening("histories")):
        give_up = time.monotonic() + 30
        while not told and time.monotonic() < give_up:
            time.sleep(0.005)
    assert told[0] == {"project": "shop", "stage": "histories"}


def test_expected_work_is_told_by_its_share_and_the_time_left(lines):
    with heartbeat_interval(0.02), track("translator", show=False, total=8e6, unit="") as advance:
        advance(2e6)
        record = lines(2)[1]
    assert record.share == 0.25
    assert record.message == "translator: 25 % in 0 s"
    assert not {"done", "total", "rate"} & set(vars(record))


def test_the_time_left_of_expected_work_is_reckoned_from_its_first_step_on(clock):
    pulse = ProgressTracker("translator", total=8e6, unit="")
    clock[0] += 20  # libraries are imported
    pulse.advance(1e6)
    clock[0] += 5
    pulse.advance(1e6)
    assert pulse.snapshot()["eta_s"] == pytest.approx(30)
    assert pulse.describe(pulse.snapshot()) == "translator: 25 % in 25 s, about 30 s left"
