"""Whoever reads a log sees that an evaluation goes on, however long one step takes."""

from __future__ import annotations

import threading

from scalr_prod.core.progress import heartbeat_interval
from scalr_prod.evaluation.progress import evaluation_progress


def test_a_long_step_is_told_of_again_and_again(caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    behind = []
    with heartbeat_interval(0.01), evaluation_progress(show_bar=False) as pulse:
        pulse.total = 40
        pulse.start_task("training the translator")
        for arm in pulse.track_steps(["real", "ours"], {"real": 2, "ours": 18}.get):
            pulse.count_fits(f"als {arm}", 5)
            behind.append(pulse.done)
        while sum("als ours: " in line for line in caplog.messages) < 3:
            pass
    # Five fits where two were expected, then five of eighteen; and all that were expected when a step is done with.
    assert behind == [2, 7]
    assert "20 of 40 expected fits (50 %)" in caplog.text
    assert "10 models fitted" in caplog.text
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_bar_needs_no_lines(caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    with heartbeat_interval(0.0001), evaluation_progress(show_bar=True) as pulse:
        pulse.count_fits("als real")
        assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert "als real: " not in caplog.text
