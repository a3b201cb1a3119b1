"""Publishing on real Delta tables and a real ledger: once, whole, in spite of kills and of other publishers."""

from __future__ import annotations

import json
import shutil
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from support.object_store import running_store
from support.small_project import IDS, Handmade, write_accepted
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.errors import CommitFailed, PublicationError
from scalr_prod.lake.exclusive_commits import _check
from scalr_prod.ledger import Ledger, PublicationStatus, RunSpec, RunState, run_folder
from scalr_prod.publication import publish, rollback_run
from scalr_prod.schemas import Table, generated_event_schema, table_schema

#: Starts a store; unit/lake/test_exclusive_commits.py has what is found out about one.
long = pytest.mark.long

VIEW = Table.SYNTHETIC_TARGET_EVENTS


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


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
    assert project.state(spec.run_id) is RunState.PUBLISHED
    with Ledger.open(project.settings) as ledger:
        last = ledger.publications.last(spec.run_id)
        assert (last.status, last.delta_version, last.rows) == (PublicationStatus.PUBLISHED, report.delta_version, 200)
    assert project.lake.commit_version(VIEW, last.key) == report.delta_version


def test_a_run_whose_table_was_lost_is_published_again(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    before = project.view()
    shutil.rmtree(project.lake.uri(VIEW))
    project.lake.create(VIEW, table_schema(VIEW, **IDS))
    report = publish(project.settings, spec.run_id)
    assert (report.outcome, report.rows, report.attempt) == ("published", 200, 2)
    pd.testing.assert_frame_equal(project.view(), before)
    assert publish(project.settings, spec.run_id).outcome == "already_published"


@long
@pytest.mark.slow
def test_a_store_that_no_longer_honours_conditional_put_is_refused(tmp_path):
    """Its lake was made while the store honoured it."""
    with running_store(honours_conditions=True) as store:
        project = Handmade(tmp_path, store.toml)
        spec = project.accepted()
        store.ignore_conditions()
        _check.cache_clear()  # as another process
        before = store.keys()
        done = CliRunner().invoke(app, ["publish", spec.run_id, "--config", str(project.config), "--json"])
        assert done.exit_code == 1
        told = json.loads(done.stdout)
        assert (told["error"], told["where"]) == ("LakeError", project.settings.lake_url)
        assert "If-None-Match" in told["found"]
        assert "docs/guides/lake.md" in told["next_step"]
        assert store.keys() == before
        assert project.state(spec.run_id) is RunState.VALIDATED
        with Ledger.open(project.settings) as ledger:
            assert not ledger.publications.find(spec.run_id)


def test_publishing_again_changes_nothing(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    version = project.lake.version(VIEW)
    again = publish(project.settings, spec.run_id)
    assert (again.outcome, again.rows, again.delta_version) == ("already_published", 200, version)
    assert project.lake.version(VIEW) == version
    with Ledger.open(project.settings) as ledger:
        assert len(ledger.publications.find(spec.run_id)) == 1


def test_rows_that_were_taken_out_by_hand_do_not_come_back(project):
    """A user's rows that were erased, for one: nobody has replaced them."""
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    project.lake.delete(VIEW, "user_id = 'u3'", key="erased")
    held = project.held()[spec.run_id]
    assert held < 200
    assert publish(project.settings, spec.run_id).outcome == "already_published"
    assert project.held() == {spec.run_id: held}


def test_another_run_of_the_window_replaces_it_and_can_be_replaced_in_turn(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    report = publish(project.settings, second.run_id)
    assert report.replaced == {first.run_id: 200}
    assert project.held() == {second.run_id: 200}
    with Project(project.settings) as opened:
        assert opened.rows_in_view() == {first.run_id: 0, second.run_id: 200}
    back = publish(project.settings, first.run_id)
    assert (back.outcome, back.attempt, back.replaced) == ("published", 2, {second.run_id: 200})
    assert project.held() == {first.run_id: 200}


def test_a_publication_opens_the_view_once(project, monkeypatch):
    """Into an empty window, and in place of another run; a rollback, too, looks for what it brings back in former versions alone."""
    real, opened = DeltaTable.__init__, []

    def counted(self, uri, version=None, *args, **kwargs):
        opened.append((str(uri).rpartition("/")[2], version))
        real(self, uri, version, *args, **kwargs)

    first, second = project.accepted(seed=1), project.accepted(seed=2)
    for spec, replaced in ((first, {}), (second, {first.run_id: 200})):
        monkeypatch.setattr(DeltaTable, "__init__", counted)
        assert publish(project.settings, spec.run_id).replaced == replaced
        monkeypatch.undo()
        assert [version for table, version in opened if table == VIEW] == [None]
        opened.clear()
    monkeypatch.setattr(DeltaTable, "__init__", counted)
    assert rollback_run(project.settings, second.run_id).restored == {first.run_id: 200}
    monkeypatch.undo()
    assert [version for table, version in opened if table == VIEW].count(None) == 1


def test_neighbouring_windows_do_not_touch_each_other(project):
    early, late = project.accepted(start=30, end=60), project.accepted(start=60, end=90)
    for spec in (early, late, early, late):
        publish(project.settings, spec.run_id)
    assert project.held() == {spec.run_id: len(project.candidates(spec)) for spec in (early, late)}


def test_an_overlapping_window_takes_the_overlap_and_says_from_whom(project):
    first, second = project.accepted(start=30, end=80), project.accepted(start=60, end=100)
    publish(project.settings, first.run_id)
    report = publish(project.settings, second.run_id)
    before = project.candidates(first)
    lost = int((before["event_timestamp"] >= pd.Timestamp(second.start)).sum())
    assert 0 < lost < len(before)
    assert report.replaced == {first.run_id: lost}
    assert project.held() == {first.run_id: len(before) - lost, second.run_id: len(project.candidates(second))}
    # What is left of the first one can still be taken out, and the second one stays as it is.
    out = rollback_run(project.settings, first.run_id)
    assert (out.outcome, out.rows, list(out.replaced_by)) == ("rolled_back", len(before) - lost, [second.run_id])
    assert project.held() == {second.run_id: len(project.candidates(second))}


def test_a_rollback_takes_the_run_out_once_and_it_can_be_put_back(project):
    spec, other = project.accepted(start=50, end=100), project.accepted(start=100, end=150)
    publish(project.settings, other.run_id)
    publish(project.settings, spec.run_id)
    report = rollback_run(project.settings, spec.run_id)
    assert (report.outcome, report.rows) == ("rolled_back", 200)
    assert project.held() == {other.run_id: len(project.candidates(other))}
    assert project.state(spec.run_id) is RunState.ROLLED_BACK
    version = project.lake.version(VIEW)
    again = rollback_run(project.settings, spec.run_id)
    assert (again.outcome, again.delta_version) == ("already_rolled_back", report.delta_version)
    assert project.lake.version(VIEW) == version
    back = publish(project.settings, spec.run_id)
    assert (back.outcome, back.attempt) == ("published", 2)
    assert project.held()[spec.run_id] == 200
    assert rollback_run(project.settings, spec.run_id).rows == 200


def test_rolling_back_a_run_that_was_replaced_says_so_and_touches_nothing(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    publish(project.settings, second.run_id)
    version = project.lake.version(VIEW)
    report = rollback_run(project.settings, first.run_id)
    assert (report.outcome, report.rows, list(report.replaced_by)) == ("replaced", 0, [second.run_id])
    assert project.lake.version(VIEW) == version
    assert project.held() == {second.run_id: 200}
    assert project.state(first.run_id) is RunState.ROLLED_BACK


@pytest.mark.parametrize("state", ["planned", "generated", "rejected"])
def test_only_an_audited_run_can_be_published(project, state):
    spec = project.run(generated=state != "planned")
    if state == "rejected":
        with Ledger.open(project.settings) as ledger:
            ledger.runs.set_state(spec.run_id, "rejected", cause="test")
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
    folder = run_folder(project.settings.home, spec.run_id)
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
    with pytest.raises(PublicationError, match="verdict is missing"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())
    with Ledger.open(project.settings) as ledger:
        assert ledger.publications.find() == []


def test_a_commit_that_cannot_land_is_not_tried_over_and_over(project):
    spec = project.accepted(start=50, end=100)
    stray = project.candidates(spec).assign(event_timestamp=pd.Timestamp(spec.end))
    project.write(spec, stray)
    folder = run_folder(project.settings.home, spec.run_id)
    schema = generated_event_schema(**IDS)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "candidates").glob("*"))]).cast(schema)
    gate = json.loads((folder / "gate.json").read_text())
    gate["report"]["files"] = write_accepted(folder, rows)
    (folder / "gate.json").write_text(json.dumps(gate))
    started = time.monotonic()
    with pytest.raises(CommitFailed, match="nothing was written"):
        publish(project.settings, spec.run_id)
    assert time.monotonic() - started < 10
    assert not len(project.view())
    assert project.state(spec.run_id) is RunState.VALIDATED
