"""A driver killed with SIGKILL at any point of any stage: after the next command the published set is the undisturbed run's."""

from __future__ import annotations

import pytest
from support.fault_harness import drawn, files_of

pytestmark = [pytest.mark.slow, pytest.mark.long]

#: Kills of each stage: a handful, and a hundred for the night. A run spends most of its points and its time in the last five.
SOME = {"ingest": 1, "translator": 1, "generate": 2, "publish": 2}
MANY = {
    "ingest": 8,
    "histories": 8,
    "feast": 6,
    "translator": 8,
    "plan": 6,
    "generate": 24,
    "validate": 16,
    "publish": 16,
    "dataset": 8,
}


@pytest.mark.parametrize("number", range(sum(SOME.values())))
def test_a_killed_driver_costs_nothing(project, survive, number):
    survive(drawn(project.points, project.seconds, SOME, seed=1)[number])


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(sum(MANY.values())))
def test_a_hundred_killed_drivers_cost_nothing(project, survive, number):
    survive(drawn(project.points, project.seconds, MANY, seed=2)[number])


@pytest.mark.parametrize("action", ["run", "resume"])
def test_a_finished_run_repeated_adds_no_row_and_changes_no_file(project, drivers, action):
    config = project.before("dataset")
    assert drivers.drive(config, "run", **project.options).error is None
    before = files_of(config.parent)
    found = drivers.drive(config, action, **project.options)
    assert found.error is None, found.error
    assert found.report["stages"]["publish"]["outcome"] == "already_published"
    assert files_of(config.parent) == before
    project.check()
