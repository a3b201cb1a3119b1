"""`Project` on two runs: each method acts on the run that it is asked for, also after upkeep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.contracts import Table
from scalr_prod.ledger import RunState, run_folder

pytestmark = pytest.mark.slow

TRAINED = datetime(2024, 6, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
EXTRA = f"""{LOCAL}[retention]
days = 0
training_sets = 1
translators = 1
files_days = 0
"""


def window(number):
    start = TRAINED + number * WEEK
    return {"mode": "causal", "start": start, "end": start + WEEK, "as_of": start + WEEK}


def rows_of(project, run_id):
    rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    return rows[rows["run_id"] == run_id].sort_values("event_id", ignore_index=True)


@pytest.fixture(scope="module")
def two_runs(make_project, tmp_path_factory):
    """Two generated runs; the settings' own window is the second's."""
    config = lean(make_project(tmp_path_factory.mktemp("runs") / "logs", EXTRA, users=80).base / "scalr.toml")
    with Project.open(config, generation=window(0)) as first:
        first.ingest()
        first.histories()
        first.train(TRAINED)
        one = first.generate().run_id
    with Project.open(config, generation=window(1)) as second:
        two = second.generate().run_id
        yield second, one, two


def test_each_method_acts_on_the_run_that_it_is_asked_for(two_runs):
    project, one, two = two_runs
    assert one != two
    assert project.validate(one).passed
    assert project.publish(one).run_id == one
    states = {run.run_id: run.state for run in project.runs()}
    assert states == {one: RunState.PUBLISHED, two: RunState.GENERATED}
    published = rows_of(project, one)
    assert len(published) > 20

    # A training set is built of what is there, and plans no run.
    assert project.build_training_set().synthetic > 0
    assert len(project.runs()) == 2

    # Upkeep takes the ended run's parts, and neither its rows nor the other run's parts.
    project.rollback(one)
    assert rows_of(project, one).empty
    assert [found.name for found in project.maintain().removed if found.kind == "run"] == [one]
    assert not (run_folder(project.settings, one) / "candidates").exists()
    assert project.publish(one).outcome == "published"
    pd.testing.assert_frame_equal(rows_of(project, one), published)

    # A published run that is gone on with is left as it is, though its parts are gone.
    assert project.resume(one).stages["publish"]["outcome"] == "already_published"
    pd.testing.assert_frame_equal(rows_of(project, one), published)
    assert not (run_folder(project.settings, one) / "candidates").exists()
    assert project.resume(two).stages["publish"]["outcome"] == "published"
    assert len(project.runs()) == 2
