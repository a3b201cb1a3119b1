"""Work tells how far it is where there is no terminal: share done, rate, and time left."""

from __future__ import annotations

import threading
import time

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


def test_a_line_says_share_rate_and_time_left(lines):
    with heartbeat_interval(0.02), track("reading", show=False, total=1000, unit="events", done=200) as advance:
        advance(300)
        record = lines(2)[1]
    assert record.done == 500
    assert record.share == 0.5
    assert record.rate == pytest.approx(300 / record.seconds, rel=0.01)  # of this call: not what was there before
    assert record.eta_s == pytest.approx(500 / record.rate, rel=0.01)
    assert "reading: at work for 0 s, 500 of 1,000 events (50 %)" in record.message
    assert "s left" in record.message
    (shown,) = example("docs/guides/logs.md")
    assert difference(shown.replace("translating", "reading").replace("contexts", "events"), record.message) == ""


def test_unknown_totals_are_left_out(lines):
    with heartbeat_interval(0.02), track("reading", show=False) as advance:
        lines(1)
        advance(5)
        record = lines(2)[1]
    assert not hasattr(record, "share")
    assert not hasattr(record, "eta_s")
    assert "of" not in record.message.split()


def test_work_without_figures_is_silent_while_a_part_of_it_has_some(lines):
    with heartbeat_interval(0.02), heartbeat(ProgressTracker("histories")):
        lines(1)
        with track("item statistics", show=False, total=10) as advance:
            advance(1)
            told = len(lines(1))
            records = lines(told + 4)[told + 1 :]  # one line of the outer work may have been under way
        assert {record.message.split(":")[0] for record in records} == {"item statistics"}
        told = len(lines(1))
        assert lines(told + 2)[-1].message.startswith("histories: at work for")


def test_where_bars_are_shown_work_without_one_is_told_by_lines(lines):
    with heartbeat_interval(0.02, with_bars=True), heartbeat(ProgressTracker("ingest")):
        lines(1)
        with track("read source", show=True):
            told = len(lines(1)) + 1  # one line may have been under way
            time.sleep(0.3)
            assert len(lines(1)) <= told
        told = len(lines(1))
        assert lines(told + 2)[-1].message.startswith("ingest: at work for")


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
    assert record.message == "translator: at work for 0 s, 25 %"
    assert not {"done", "total", "rate"} & set(vars(record))


def test_the_time_left_of_expected_work_is_reckoned_from_its_first_step_on(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("scalr_prod.core.progress.time.monotonic", lambda: clock[0])
    pulse = ProgressTracker("translator", total=8e6, unit="")
    clock[0] += 20  # libraries are imported
    pulse.advance(1e6)
    clock[0] += 5
    pulse.advance(1e6)
    assert pulse.snapshot()["eta_s"] == pytest.approx(30)
    assert pulse.describe(pulse.snapshot()) == "translator: at work for 25 s, 25 %, about 30 s left"
