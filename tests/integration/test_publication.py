"""Publishing on real Delta tables and a real ledger: once, whole, in spite of kills and of other publishers."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import IDS, Handmade, in_processes

from scalr_prod.contracts import Table, schema_of
from scalr_prod.errors import CommitFailed, LedgerError, PublicationError, QualityGateFailed
from scalr_prod.ledger import Ledger, PublicationStatus, RunSpec, RunState, run_folder
from scalr_prod.publication import publish, rollback_run
from scalr_prod.quality import validate_run
from scalr_prod.quality.accept import write_accepted
from scalr_prod.settings import load_settings

VIEW = Table.SYNTHETIC_TARGET_EVENTS


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


def held(project: Handmade) -> dict[str, int]:
    """Rows of the view by run."""
    return project.view()["run_id"].value_counts().to_dict()


def stands(project: Handmade, run_id: str) -> RunState:
    with Ledger.open(project.settings) as ledger:
        return ledger.run(run_id).state


def expected(project: Handmade, spec: RunSpec) -> pd.DataFrame:
    frame = project.candidates(spec)
    return frame.sort_values(["user_id", "event_timestamp", "item_id"], ignore_index=True)


def test_a_validated_run_appears_whole(project):
    spec = project.accepted()
    report = publish(project.settings, spec.run_id)
    assert (report.outcome, report.rows, report.replaced, report.attempt) == ("published", 200, {}, 1)
    view = project.view()
    assert view["event_id"].tolist() == expected(project, spec)["event_id"].tolist()
    assert set(view["created_timestamp"]) == {pd.Timestamp(spec.as_of)}
    assert stands(project, spec.run_id) is RunState.PUBLISHED
    with Ledger.open(project.settings) as ledger:
        last = ledger.last_publication(spec.run_id)
        assert (last.status, last.delta_version, last.rows) == (PublicationStatus.PUBLISHED, report.delta_version, 200)
    assert project.lake.commit_version(VIEW, last.key) == report.delta_version


def test_publishing_again_changes_nothing(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    version = project.lake.version(VIEW)
    again = publish(project.settings, spec.run_id)
    assert (again.outcome, again.rows, again.delta_version) == ("already_published", 200, version)
    assert project.lake.version(VIEW) == version
    with Ledger.open(project.settings) as ledger:
        assert len(ledger.publications(spec.run_id)) == 1


def test_another_run_of_the_window_replaces_it_and_can_be_replaced_in_turn(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    report = publish(project.settings, second.run_id)
    assert report.replaced == {first.run_id: 200}
    assert held(project) == {second.run_id: 200}
    back = publish(project.settings, first.run_id)
    assert (back.outcome, back.attempt, back.replaced) == ("published", 2, {second.run_id: 200})
    assert held(project) == {first.run_id: 200}


def test_neighbouring_windows_do_not_touch_each_other(project):
    early, late = project.accepted(start=30, end=60), project.accepted(start=60, end=90)
    for spec in (early, late, early, late):
        publish(project.settings, spec.run_id)
    assert held(project) == {spec.run_id: len(project.candidates(spec)) for spec in (early, late)}


def test_an_overlapping_window_takes_the_overlap_and_says_from_whom(project):
    first, second = project.accepted(start=30, end=80), project.accepted(start=60, end=100)
    publish(project.settings, first.run_id)
    report = publish(project.settings, second.run_id)
    before = project.candidates(first)
    lost = int((before["event_timestamp"] >= pd.Timestamp(second.start)).sum())
    assert 0 < lost < len(before)
    assert report.replaced == {first.run_id: lost}
    assert held(project) == {first.run_id: len(before) - lost, second.run_id: len(project.candidates(second))}
    # What is left of the first one can still be taken out, and the second one stays as it is.
    out = rollback_run(project.settings, first.run_id)
    assert (out.outcome, out.rows, list(out.replaced_by)) == ("rolled_back", len(before) - lost, [second.run_id])
    assert held(project) == {second.run_id: len(project.candidates(second))}


def test_a_rollback_takes_the_run_out_once_and_it_can_be_put_back(project):
    spec, other = project.accepted(start=50, end=100), project.accepted(start=100, end=150)
    publish(project.settings, other.run_id)
    publish(project.settings, spec.run_id)
    report = rollback_run(project.settings, spec.run_id)
    assert (report.outcome, report.rows) == ("rolled_back", 200)
    assert held(project) == {other.run_id: len(project.candidates(other))}
    assert stands(project, spec.run_id) is RunState.ROLLED_BACK
    version = project.lake.version(VIEW)
    again = rollback_run(project.settings, spec.run_id)
    assert (again.outcome, again.delta_version) == ("already_rolled_back", report.delta_version)
    assert project.lake.version(VIEW) == version
    back = publish(project.settings, spec.run_id)
    assert (back.outcome, back.attempt) == ("published", 2)
    assert held(project)[spec.run_id] == 200
    assert rollback_run(project.settings, spec.run_id).rows == 200


def test_rolling_back_a_run_that_was_replaced_says_so_and_touches_nothing(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    publish(project.settings, second.run_id)
    version = project.lake.version(VIEW)
    report = rollback_run(project.settings, first.run_id)
    assert (report.outcome, report.rows, list(report.replaced_by)) == ("replaced", 0, [second.run_id])
    assert project.lake.version(VIEW) == version
    assert held(project) == {second.run_id: 200}
    assert stands(project, first.run_id) is RunState.ROLLED_BACK


@pytest.mark.parametrize("state", ["planned", "generated", "rejected"])
def test_only_an_audited_run_can_be_published(project, state):
    spec = project.run(generated=state != "planned")
    if state == "rejected":
        with Ledger.open(project.settings) as ledger:
            ledger.set_stage(spec.run_id, "rejected", cause="test")
    for work in (publish, rollback_run):
        with pytest.raises(PublicationError, match="rejected" if state == "rejected" else f"{state}, not validated") as caught:
            work(project.settings, spec.run_id)
        assert caught.value.next_step
    assert not len(project.view())


def test_a_validated_run_that_was_never_published_cannot_be_rolled_back(project):
    spec = project.accepted()
    with pytest.raises(PublicationError, match="never published"):
        rollback_run(project.settings, spec.run_id)


def test_files_that_the_gate_did_not_accept_are_not_published(project):
    spec = project.accepted()
    folder = run_folder(project.settings, spec.run_id)
    path = next((folder / "accepted").glob("*.parquet"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PublicationError, match="not the one that the gate accepted") as caught:
        publish(project.settings, spec.run_id)
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(PublicationError, match="not the one"):
        publish(project.settings, spec.run_id)
    (folder / "gate.json").unlink()
    with pytest.raises(PublicationError, match="verdict is not there"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())
    with Ledger.open(project.settings) as ledger:
        assert ledger.publications() == []


def test_a_commit_that_cannot_land_is_not_tried_over_and_over(project):
    spec = project.accepted(start=50, end=100)
    stray = project.candidates(spec).assign(event_timestamp=pd.Timestamp(spec.end))
    project.write(spec, stray)
    folder = run_folder(project.settings, spec.run_id)
    schema = project.lake.schema(VIEW)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "candidates").glob("*"))]).cast(schema)
    gate = json.loads((folder / "gate.json").read_text())
    gate["report"]["files"] = write_accepted(folder, rows.to_reader(), schema)
    (folder / "gate.json").write_text(json.dumps(gate))
    started = time.monotonic()
    with pytest.raises(CommitFailed, match="nothing was written"):
        publish(project.settings, spec.run_id)
    assert time.monotonic() - started < 10
    assert not len(project.view())
    assert stands(project, spec.run_id) is RunState.VALIDATED


# Killed ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from scalr_prod import publication
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.settings import load_settings

work, point, config, run_id = sys.argv[1:]

def die(*_args, **_options):
    os._exit(77)

def half(files, schema):
    import pyarrow as pa
    import pyarrow.parquet as pq
    def batches():
        yield from pq.read_table(files[0]).cast(schema).slice(0, 50).to_batches()
        die()
    return pa.RecordBatchReader.from_batches(schema, batches())

if point == "before the intent":
    Ledger.intend_publication = die
elif point == "before the commit":
    Lake.replace_window = Lake.delete = die
elif point == "within the commit":
    publication._reader = half
elif point == "before the confirmation":
    Ledger.record_publication = Ledger.record_rollback = die
elif point == "before the lease is given back":
    Ledger.release_lease = die
getattr(publication, work)(load_settings(config), run_id)
"""

POINTS = [
    "before the intent",
    "before the commit",
    "within the commit",
    "before the confirmation",
    "before the lease is given back",
]


def killed(project: Handmade, work: str, point: str, run_id: str) -> None:
    command = [sys.executable, "-c", KILLED, work, point, str(project.config), run_id]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 77, done.stderr


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_publication_killed_at_any_point_is_finished_by_the_next_call(project, point):
    old, new = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, old.run_id)
    version = project.lake.version(VIEW)
    killed(project, "publish", point, new.run_id)

    landed = POINTS.index(point) >= POINTS.index("before the confirmation")
    assert held(project) == {(new if landed else old).run_id: 200}, "all of one run, or all of the other"
    assert stands(project, new.run_id) is (RunState.PUBLISHED if point == POINTS[-1] else RunState.VALIDATED)

    started = time.monotonic()
    report = publish(project.settings, new.run_id)
    assert time.monotonic() - started < 20, "the lease of the dead process was in the way"
    wanted = {"before the confirmation": "recovered", "before the lease is given back": "already_published"}
    assert report.outcome == wanted.get(point, "published")
    assert (report.rows, report.replaced, report.attempt) == (200, {old.run_id: 200}, 1)
    assert report.delta_version == version + 1
    assert project.lake.version(VIEW) == version + 1, "committed once"
    assert held(project) == {new.run_id: 200}
    assert stands(project, new.run_id) is RunState.PUBLISHED


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the commit", "before the confirmation"])
def test_a_rollback_killed_at_any_point_is_finished_by_the_next_call(project, point):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    version = project.lake.version(VIEW)
    killed(project, "rollback_run", point, spec.run_id)
    assert stands(project, spec.run_id) is RunState.PUBLISHED
    report = rollback_run(project.settings, spec.run_id)
    assert (report.outcome, report.rows, report.delta_version) == ("rolled_back", 200, version + 1)
    assert project.lake.version(VIEW) == version + 1
    assert not len(project.view())


@pytest.mark.slow
def test_a_rollback_finds_a_publication_that_was_not_confirmed(project):
    spec = project.accepted()
    killed(project, "publish", "before the confirmation", spec.run_id)
    assert rollback_run(project.settings, spec.run_id).rows == 200
    assert not len(project.view())


@pytest.mark.nightly
@pytest.mark.slow
def test_others_may_publish_between_a_kill_and_its_recovery(project):
    first, second, other = project.accepted(seed=1), project.accepted(seed=2), project.accepted(start=100, end=150)
    killed(project, "publish", "before the confirmation", first.run_id)
    landed = project.lake.version(VIEW)
    publish(project.settings, other.run_id)
    report = publish(project.settings, first.run_id)
    assert (report.outcome, report.delta_version) == ("recovered", landed)

    killed(project, "publish", "before the commit", second.run_id)
    publish(project.settings, other.run_id)
    rollback_run(project.settings, other.run_id)
    report = publish(project.settings, second.run_id)
    assert (report.outcome, report.attempt) == ("published", 1)
    assert held(project) == {second.run_id: 200}


# At the same time --------------------------------------------------------------------------------------------------


def _publish(config: str, run_id: str, barrier: object) -> dict:
    settings = load_settings(config)
    barrier.wait()
    return publish(settings, run_id).to_json()


@pytest.mark.slow
def test_publishers_of_different_windows_lose_nothing(project):
    specs = [project.accepted(start=start, end=start + 20) for start in (20, 40, 60, 80)]
    reports = in_processes(_publish, [(str(project.config), spec.run_id) for spec in specs])
    assert [report["outcome"] for report in reports] == ["published"] * 4
    assert len({report["delta_version"] for report in reports}) == 4
    assert held(project) == {spec.run_id: len(project.candidates(spec)) for spec in specs}


@pytest.mark.slow
def test_publishers_of_one_window_leave_one_run_and_a_ledger_that_says_which(project):
    specs = [project.accepted(seed=seed) for seed in range(3)]
    reports = in_processes(_publish, [(str(project.config), spec.run_id) for spec in specs])
    assert {report["outcome"] for report in reports} == {"published"}
    in_order = sorted(reports, key=lambda report: report["delta_version"])
    assert held(project) == {in_order[-1]["run_id"]: 200}
    assert [report["replaced"] for report in in_order] == [
        {},
        {in_order[0]["run_id"]: 200},
        {in_order[1]["run_id"]: 200},
    ], "each says exactly what it took the place of"


@pytest.mark.slow
def test_publishers_of_the_same_run_commit_it_once(project):
    spec = project.accepted()
    before = project.lake.version(VIEW)
    reports = in_processes(_publish, [(str(project.config), spec.run_id)] * 3)
    assert sorted(report["outcome"] for report in reports) == ["already_published", "already_published", "published"]
    assert project.lake.version(VIEW) == before + 1
    assert held(project) == {spec.run_id: 200}


# From the gate on --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_gate_accepts_is_what_is_published(project):
    project.configure('[quality]\npolicy = "quarantine"\nmax_quarantine_share = 0.1')
    spec = project.run()
    frame = project.candidates(spec)
    frame.loc[[3, 7], "weight"] = 2
    project.write(spec, frame)
    validate_run(project.settings, spec.run_id)
    assert publish(project.settings, spec.run_id).rows == 198
    assert sorted(project.view()["event_id"]) == sorted(frame.drop(index=[3, 7])["event_id"])
    # The verdict on a published run stays, whatever the settings are now.
    project.configure("")
    assert validate_run(project.settings, spec.run_id).repeated
    assert stands(project, spec.run_id) is RunState.PUBLISHED


def test_a_rejected_run_does_not_reach_the_view(project):
    spec = project.run()
    project.write(spec, project.candidates(spec).assign(weight=2))
    with pytest.raises(QualityGateFailed):
        validate_run(project.settings, spec.run_id)
    with pytest.raises(PublicationError, match="rejected"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())
    assert (run_folder(project.settings, spec.run_id) / "gate.json").exists()


def test_a_run_that_another_driver_works_on_is_left_alone(project, monkeypatch):
    spec = project.accepted()
    monkeypatch.setattr("scalr_prod.publication._LEASE_WAIT_S", 0.3)
    with Ledger.open(project.settings) as ledger:
        ledger.acquire_lease(spec.run_id, "someone else")
    with pytest.raises(LedgerError, match="someone else works on this run"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())


@pytest.mark.slow
def test_the_online_store_follows_where_the_settings_ask_for_it(project):
    from scalr_prod.feast_store import open_feature_store

    for table in Table:
        project.lake.create(table, schema_of(table, **IDS))
    spec = project.accepted()
    assert not publish(project.settings, spec.run_id).online
    project.configure("[publication]\nonline = true")
    report = publish(project.settings, spec.run_id)
    assert (report.outcome, report.online) == ("already_published", True), "a repeated call makes good what was left out"

    def served(user: str) -> object:
        store = open_feature_store(project.settings)
        features = ["synthetic_target_events:run_id"]
        return store.get_online_features(features=features, entity_rows=[{"user_id": user}]).to_dict()["run_id"]

    assert served("u3") == [spec.run_id]
    assert served("first") == [None]
    assert rollback_run(project.settings, spec.run_id).online
    assert served("u3") == [None]


GATE_KILLED = """
import os, sys
from scalr_prod.ledger import Ledger
from scalr_prod.quality import gate
from scalr_prod.settings import load_settings

point, config, run_id = sys.argv[1:]

def die(*_args, **_options):
    os._exit(77)

if point == "before the verdict is written":
    gate.write_json = die
elif point == "before the ledger is told":
    Ledger.set_stage = die
gate.validate_run(load_settings(config), run_id)
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the verdict is written", "before the ledger is told"])
def test_a_gate_killed_at_any_point_is_finished_by_the_next_call(project, point):
    spec = project.run()
    command = [sys.executable, "-c", GATE_KILLED, point, str(project.config), spec.run_id]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 77
    assert stands(project, spec.run_id) is RunState.GENERATED
    with pytest.raises(PublicationError):
        publish(project.settings, spec.run_id)
    report = validate_run(project.settings, spec.run_id)
    assert (report.accepted, report.repeated) == (200, point == "before the ledger is told")
    assert publish(project.settings, spec.run_id).rows == 200


def _validate(config: str, run_id: str, barrier: object) -> bool:
    settings = load_settings(config)
    barrier.wait()
    return validate_run(settings, run_id).passed


@pytest.mark.slow
def test_gates_of_several_runs_at_once_share_the_data_docs(project):
    specs = [project.run(seed=seed) for seed in range(2)]
    assert in_processes(_validate, [(str(project.config), spec.run_id) for spec in specs]) == [True, True]
    index = (project.settings.home / "data_docs" / "index.html").read_text()
    assert all(spec.run_id in index for spec in specs)
