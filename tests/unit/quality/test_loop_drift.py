"""Real events that become less varied after the first publication set off an alarm; more or fewer events, and chance, do not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from support.small_project import START, Handmade, hour, target_rows

from scalr_prod.config import QualitySettings
from scalr_prod.ledger import Ledger
from scalr_prod.quality import validate_run
from scalr_prod.quality.gate import _loop_start
from scalr_prod.quality.loop_drift import (
    LoopStart,
    compare_calibration,
    compare_periods,
    count_items,
    warn_on_loop_drift,
)

ITEMS, EVENTS = 200, 4000


def drawn(skew: float, events: int = EVENTS, seed: int = 0) -> np.ndarray:
    share = np.arange(1.0, ITEMS + 1) ** -skew
    return np.random.default_rng(seed).multinomial(events, share / share.sum())


def record(*classes: tuple[float, float, int]):
    """The ledger's record of a translator: class, predicted and true events."""
    reliability = [
        {"low": low, "high": 1.0, "pairs": 10**6, "expected": expected, "events": events} for low, expected, events in classes
    ]
    return type("Record", (), {"metrics": {"reliability": reliability}})()


def warnings_of(figures: dict, caplog, limit: float = 0.2) -> str:
    caplog.clear()
    warn_on_loop_drift(figures, QualitySettings(max_loop_drift_warn=limit))
    return caplog.text


def test_events_on_fewer_items_set_off_the_alarm(caplog):
    figures = compare_periods(drawn(0.8), drawn(1.4, seed=1))
    assert figures["loop_tail_share"] < figures["loop_tail_share_before"]
    assert figures["loop_tail_share_fall"] == pytest.approx(1 - figures["loop_tail_share"] / figures["loop_tail_share_before"])
    assert figures["loop_effective_items_fall"] == pytest.approx(
        1 - figures["loop_effective_items"] / figures["loop_effective_items_before"]
    )
    assert "tail_share by " in warnings_of(figures, caplog)
    assert "effective_items by " in caplog.text
    assert not warnings_of(figures, caplog, limit=0.0)
    assert not warnings_of(compare_periods(drawn(1.4), drawn(0.8)), caplog), "more variety is no alarm"


def test_neither_chance_nor_the_number_of_events_does(caplog):
    for seed in range(50):
        figures = compare_periods(drawn(1.0, 20 * EVENTS, seed), drawn(1.0, 1500, 100 + seed))
        assert figures["loop_events"] == 1500
        assert not warnings_of(figures, caplog)
    assert compare_periods(drawn(1.0), drawn(2.0, 999)) == {}


def test_a_translator_whose_likely_items_come_true_less_often_does(caplog):
    first = record((0.0, 9000, 9500), (0.01, 2000, 1950))
    figures = compare_calibration(first, record((0.0, 9000, 9900), (0.01, 2000, 1100)))
    assert (figures["loop_calibration_before"], figures["loop_calibration"]) == (0.975, 0.55)
    assert "calibration by 44%" in warnings_of(figures, caplog)
    assert not warnings_of(compare_calibration(first, record((0.01, 2000, 1900))), caplog)
    assert compare_calibration(first, record((0.01, 90, 10))) == {} == compare_calibration(None, first)


def test_the_periods_are_before_the_first_publication_and_lately(tmp_path):
    rows = [("a", "t0", 0, 0), ("b", "t1", 700, 700), ("a", "t1", 5000, 5000), ("b", "t1", 5001, 9999), ("b", "t2", 6000, 6000)]
    project = Handmade(tmp_path, target=[*target_rows(), *rows])
    spec = project.run()
    run = replace(spec, as_of=hour(5500))
    before, lately = count_items(project.lake, run, START + timedelta(hours=701))
    assert (before.tolist(), lately.tolist()) == ([1], [1]), (
        "of t1 only: t0 is too old, t2 too late, and one event of t1 not known yet"
    )


def test_the_gate_reports_the_figures_once_something_was_published(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("scalr_prod.quality.loop_drift.MIN_EVENTS", 100)
    rng = np.random.default_rng(0)
    spread = [(f"v{k}", f"t{k % 10}", -100 + 0.1 * k, -100 + 0.1 * k) for k in range(500)]
    narrow = [(f"w{k}", f"t{rng.integers(0, 2)}", 1 + 0.05 * k, 1 + 0.05 * k) for k in range(500)]
    project = Handmade(tmp_path, target=[*target_rows(), *spread, *narrow])
    spec = project.run()
    with Ledger.open(project.settings) as ledger:
        assert _loop_start(ledger, []) is None
    monkeypatch.setattr("scalr_prod.quality.gate._loop_start", lambda *_: LoopStart(hour(0), None))
    figures = validate_run(project.settings, spec.run_id).figures
    assert figures["loop_effective_items_fall"] > 0.5
    assert "effective_items by " in caplog.text
