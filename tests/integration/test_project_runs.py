"""`Project` on two runs: each method acts on the run that it is asked for, also after upkeep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from support.small import LOCAL, lean

from scalr_prod import Project, pipeline
from scalr_prod.integrations.airflow.tasks import run_task
from scalr_prod.ledger import RunState, run_folder
from scalr_prod.schemas import Table

#: Trains, runs twice and looks at the runs; `Project` in small steps: unit/project/test_project.py.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand"), pytest.mark.long]

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
    assert not (run_folder(project.settings.home, one) / "candidates").exists()
    assert project.publish(one).outcome == "published"
    pd.testing.assert_frame_equal(rows_of(project, one), published)

    # A published run that is gone on with is left as it is, though its parts are gone.
    assert project.resume(one).stages["publish"]["outcome"] == "already_published"
    pd.testing.assert_frame_equal(rows_of(project, one), published)
    assert not (run_folder(project.settings.home, one) / "candidates").exists()
    assert project.resume(two).stages["publish"]["outcome"] == "published"
    assert len(project.runs()) == 2


def test_a_dry_run_tells_what_would_be_done_and_leaves_the_home_as_it_is(two_runs):
    project, _, two = two_runs
    home = project.settings.home
    before = files_of(home)
    published = project.ledger.runs.get(two).state is RunState.PUBLISHED  # tests run in any order, and another publishes it
    source = project.lake.read(Table.SOURCE_EVENTS).to_pandas()
    mine = source[source["event_timestamp"].between(TRAINED + WEEK, TRAINED + 2 * WEEK, inclusive="left")]
    contexts = len(mine.drop_duplicates(["user_id", "item_id", "event_timestamp"]))

    found = project.dry_run().to_json()
    assert (found["contexts"], found["users"], found["partitions"]) == (contexts, mine["user_id"].nunique(), 8)
    would = found["stages"]
    assert list(would) == [stage.name for stage in pipeline.GRAPH if not stage.light]
    assert {would[name] for name in ("ingest", "histories")} == {"check"}
    # The whole run may learn from a week more than the version that is there, so it would train one and generate another run.
    assert {would[name] for name in would if name not in {"ingest", "histories"}} == {"run"}
    assert found["reasons"]["translator"].startswith(
        f"version 1 was trained until {TRAINED.isoformat()}, this run may use events until"
    )
    assert found["reasons"]["generate"] == "after translator"
    with Project(
        project.settings.with_sections(translator={**project.settings.translator.model_dump(), "pin": True})
    ) as pinned:
        would = pinned.dry_run().to_json()["stages"]
    assert {would[name] for name in ("ingest", "histories", "translator", "generate")} == {"check"}
    assert {would[name] for name in ("validate", "publish")} == {"check" if published else "run"}

    # Another window is another run: about as long as the ledger says that contexts took.
    with Project(project.settings.with_sections(generation=window(2))) as later:
        found = later.dry_run("generate").to_json()
        assert found["stages"] == {"generate": "run"}
        assert found["reasons"] == {"generate": "another run: its window changed"}
        took = []
        for run in later.runs():
            contexts = sum(part.manifest["contexts"] for part in later.ledger.runs.partitions(run.run_id))
            at = {change.to_state: change.at for change in later.ledger.changes.find(run.run_id, subject="run")}
            took.append((at[RunState.GENERATED] - at[RunState.GENERATING]).total_seconds() / contexts)
        assert found["seconds"]["generate"] == pytest.approx(min(took) * found["contexts"], abs=0.1)
        assert found["seconds_in_all"] == found["seconds"]["generate"] > 0
        assert "contexts per second in earlier runs" in found["measured"]
    assert files_of(home) == before


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_where_synthetic_events_weigh_nothing_none_is_generated(make_project, tmp_path, caplog):
    """By `Project.run` and by the scheduler's tasks; who asks for events gets them, and what was published stays."""
    caplog.set_level("INFO", logger="scalr_prod")
    config = lean(make_project(tmp_path / "logs", LOCAL, users=60).base / "scalr.toml")
    with Project.open(config, training_set={"synthetic_weight": 0}) as project:
        report = project.run()
        assert (report.run_id, list(report.stages)) == (None, ["ingest", "histories", "translator", "dataset"])
        assert report.stages["dataset"]["real"] > report.stages["dataset"]["synthetic"] == 0
        assert "λ is 0 for all users (set by [training_set] synthetic_weight)" in report.to_json()["not_generated"]
        assert caplog.messages.count(report.not_generated) == 1
        assert project.runs() == []

        asked = project.generate().run_id
        assert project.resume(asked).stages["publish"]["outcome"] == "published"
        published = rows_of(project, asked)
        assert len(published) > 0
        assert project.run().run_id is None
        pd.testing.assert_frame_equal(rows_of(project, asked), published)
        page = project.report(asked).path
    first, _, _ = Path(page).read_text(encoding="utf-8").partition("<dl>")
    assert first.index("New runs generate nothing.") < first.rindex('<p class="verdict')

    config.write_text(config.read_text() + "[training_set]\nsynthetic_weight = 0\n")
    window_told = {name: value.isoformat() for name, value in window(0).items() if name != "mode"}
    call = {"params": {"config": str(config), "mode": "causal", **window_told}, "run_id": None}
    done = {stage: run_task("events", call | {"stage": stage}) for stage in ("generate", "validate", "publish", "late")}
    days = [(window(0)["start"] + timedelta(days=number)).date().isoformat() for number in range(7)]
    announced = {"run_id": None, "days": days} | window_told
    assert done.pop("late") == {"run_id": None, "announced": [announced]}
    assert list(done.values()) == [{"run_id": None}] * 3
    assert run_task("window", call | {"window": [window_told["start"], window_told["end"]]}) == announced
