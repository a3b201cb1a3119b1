"""Two logs that have nothing to do with each other are refused with exit code 3; a tenth of a nat between them is enough."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable

from benchmarks.worlds import World

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500), pytest.mark.usefixtures("at_hand")]

LEAN = """
[translator]
estimators = ["popularity", "frequency", "linear"]
[generation]
contexts = "users"
partitions = 2
[compute]
workers = 1
[serving]
scorer = "local"
[quality]
max_bucket_distance = 1.0
"""
WORLD = {"users": 1_200, "topics": 8, "source_items": 64, "target_items": 64}


def published(folder: Path) -> int:
    """Rows of the view."""
    return DeltaTable(str(folder / ".scalr" / "lake" / "synthetic_target_events")).to_pyarrow_table().num_rows


def test_independent_logs_are_refused_and_published_only_on_purpose(tmp_path, scalr):
    config = World(signal=0.0, repeats=0.2, drift=0.5, **WORLD).make().write(tmp_path, LEAN + "min_source_coverage = 0\n")
    code, error, stderr = scalr("run", config=config, timeout=1400)
    assert (code, error["error"]) == (3, "QualityGateFailed"), stderr
    assert "min_information = 0" in error["next_step"]
    assert not published(tmp_path)
    if "no candidate event" not in stderr:
        assert "information_of_source_histories" in stderr
        code, _, stderr = scalr("run", config=config, env={"SCALR_QUALITY__MIN_INFORMATION": "0"}, timeout=1400)
        assert code == 0, stderr
        assert published(tmp_path)


def test_a_tenth_of_a_nat_passes(tmp_path, scalr):
    config = World(signal=0.2, **WORLD).make().write(tmp_path, LEAN)
    code, report, stderr = scalr("run", config=config, timeout=1400)
    assert code == 0, stderr
    assert published(tmp_path)
    found = report["stages"]["translator"]["metrics"]["information"]
    assert found["own_over_others"]["ci99"][0] > 0
    assert report["stages"]["validate"]["figures"]["nats_own_over_others_low"] == found["own_over_others"]["ci99"][0]
