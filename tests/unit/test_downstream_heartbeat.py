"""Whoever reads a log sees that work goes on, however long one step takes."""

from __future__ import annotations

import threading

from scalr_prod.downstream.heartbeat import heartbeat


def test_a_long_step_is_told_of_again_and_again(caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    with heartbeat(bar=False, every_s=0.01) as pulse:
        pulse.at("training the translator")
        pulse.fitted("als real")
        while sum("still at als real" in line for line in caplog.messages) < 3:
            pass
    assert "1 models fitted" in caplog.text
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_bar_needs_no_lines(caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    with heartbeat(bar=True, every_s=0.0001) as pulse:
        pulse.fitted("als real")
        assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert "still at" not in caplog.text
