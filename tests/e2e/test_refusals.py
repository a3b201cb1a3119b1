"""Runs that cannot be: each ends with one clear error and exit code 1, and publishes nothing."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from deltalake import DeltaTable

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand")]


@pytest.fixture
def trained(trained_home, tmp_path) -> Path:
    """A copy of the trained home, for each test: what one has generated, another would find."""
    folder = tmp_path / "logs"
    shutil.copytree(trained_home.parent, folder)
    return folder / trained_home.name


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CASES = {
    "a window before any data": (
        {"SCALR_GENERATION__START": "1999-01-01T00:00:00Z", "SCALR_GENERATION__END": "2000-01-01T00:00:00Z"},
        ("EmptyWindow", "1999-01-01", "2024-01-01"),
    ),
    "a translator that was trained past the window": (
        {"SCALR_GENERATION__MODE": "causal", "SCALR_GENERATION__START": "2024-03-01T00:00:00Z"},
        ("TrainedPastWindow", "2024-03-01"),
    ),
    "Triton that cannot be reached": (
        {"SCALR_SERVING__URL": "127.0.0.1:{port}", "SCALR_SERVING__DEADLINE_S": "1"},
        ("ServerUnreachable", "127.0.0.1:{port}", "scalr triton status"),
    ),
    "no environment for Triton": (
        {"SCALR_SERVING__ENVIRONMENT": "nowhere"},
        ("ServingError", "nowhere", "scalr serving install"),
    ),
    "a scheduler that does not answer": (
        {
            "SCALR_SERVING__SCORER": "local",
            "SCALR_COMPUTE__DASK": "tcp://127.0.0.1:{port}",
            "SCALR_COMPUTE__CONNECT_TIMEOUT_S": "0.2",
        },
        ("SchedulerUnreachable", "tcp://127.0.0.1:{port}"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_plainly(trained, scalr, case):
    port = closed_port()
    variables, expected = CASES[case]
    code, error, stderr = scalr(
        "generate", config=trained, env={name: value.format(port=port) for name, value in variables.items()}, timeout=120
    )
    assert code == 1, stderr
    assert "Traceback" not in stderr
    assert error["error"] == expected[0], stderr
    assert error["next_step"]
    for part in expected[1:]:
        assert part.format(port=port) in stderr, stderr
    published = DeltaTable(str(trained.parent / ".scalr" / "lake" / "synthetic_target_events"))
    assert published.version() == 0


def test_a_run_is_published_only_once_validated_and_the_gate_says_no_with_exit_code_3(trained, scalr):
    # Without a least lift every context gets its events, and no coverage is too strict.
    environment = {"SCALR_SERVING__SCORER": "local", "SCALR_GENERATION__MIN_LIFT": "3"}
    code, report, stderr = scalr("generate", config=trained, env=environment)
    assert code == 0, stderr
    code, error, _ = scalr("publish", report["run_id"], config=trained)
    assert (code, error["error"]) == (1, "PublicationError")
    assert f"scalr runs resume {report['run_id']}" in error["next_step"]
    strictest = {"SCALR_QUALITY__MIN_SOURCE_COVERAGE": "1.0", **environment}
    code, error, stderr = scalr("validate", report["run_id"], config=trained, env=strictest)
    assert (code, error["error"]) == (3, "QualityGateFailed")
    assert "source_coverage" in stderr
    assert "index.html" in stderr
