"""Publication off and on, and rollbacks that bring back what a run had replaced: on real Delta tables and a real ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support.small_project import Handmade
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.errors import CommitFailed, LakeError, PublicationDisabled, PublicationError
from scalr_prod.generation.late_events import late_windows
from scalr_prod.lake.corrections import Correction
from scalr_prod.ledger import RunState
from scalr_prod.publication import publish, rollback_run
from scalr_prod.publication.toggle import disable_publication, enable_publication, publication_state
from scalr_prod.schemas import Table

#: Publishes, switches off, and rolls back in twenty orders; test_publication.py has each publication and rollback once.
pytestmark = pytest.mark.long


VIEW = Table.SYNTHETIC_TARGET_EVENTS


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


def files(project: Handmade) -> dict[str, bytes]:
    """What a reader of the table reads, byte for byte."""
    return {uri: Path(uri).read_bytes() for uri in project.lake.open_table(VIEW).file_uris()}


def rows(project: Handmade) -> pd.DataFrame:
    table = project.lake.read(VIEW)
    return table.sort_by([(name, "ascending") for name in table.schema.names]).to_pandas()


def test_off_and_on_gives_the_same_bytes_in_one_commit_each(project):
    spec, other = project.accepted(start=50, end=100), project.accepted(start=100, end=150)
    publish(project.settings, spec.run_id)
    publish(project.settings, other.run_id)
    before, version = files(project), project.lake.version(VIEW)
    off = disable_publication(project.settings)
    assert (off.publication, off.changed, off.delta_version) == ("disabled", True, version + 1)
    assert off.rows == 200 + len(project.candidates(other))
    assert off.since is not None
    assert files(project) == {}
    assert not len(project.view())
    on = enable_publication(project.settings)
    assert (on.publication, on.changed, on.since, on.delta_version) == ("enabled", True, None, version + 2)
    assert files(project) == before
    assert len(before) == 2


def test_each_is_done_once_and_can_be_repeated(project):
    publish(project.settings, project.accepted().run_id)
    before = files(project)
    assert enable_publication(project.settings).changed is False
    for _ in range(2):
        assert disable_publication(project.settings).changed
        version = project.lake.version(VIEW)
        assert disable_publication(project.settings).changed is False
        assert project.lake.version(VIEW) == version
        assert enable_publication(project.settings).changed
        assert files(project) == before


def test_a_view_without_rows_can_be_off_too(project):
    assert disable_publication(project.settings).rows == 0
    with pytest.raises(PublicationDisabled):
        publish(project.settings, project.accepted().run_id)
    assert enable_publication(project.settings).rows == 0


def test_nothing_is_published_or_rolled_back_while_it_is_off(project):
    published, waiting = project.accepted(start=50, end=100), project.accepted(start=100, end=150)
    publish(project.settings, published.run_id)
    disable_publication(project.settings)
    version = project.lake.version(VIEW)
    for work, run in ((publish, waiting), (publish, published), (rollback_run, published)):
        with pytest.raises(PublicationDisabled, match="switched off") as caught:
            work(project.settings, run.run_id)
        assert "scalr publication enable" in caught.value.next_step
    assert project.lake.version(VIEW) == version
    assert project.state(waiting.run_id) is RunState.VALIDATED
    assert publication_state(project.settings).waiting == [waiting.run_id]
    enable_publication(project.settings)
    assert publish(project.settings, published.run_id).outcome == "already_published"
    assert publish(project.settings, waiting.run_id).outcome == "published"
    assert project.held() == {one.run_id: len(project.candidates(one)) for one in (published, waiting)}


def test_a_publisher_that_is_overtaken_by_the_switch_publishes_nothing(project, monkeypatch):
    from scalr_prod.lake import Lake

    spec = project.accepted()
    real = Lake.replace_window_with_files

    def overtaken(lake, *args, **kwargs):
        monkeypatch.setattr(Lake, "replace_window_with_files", real)
        disable_publication(project.settings)
        return real(lake, *args, **kwargs)

    monkeypatch.setattr(Lake, "replace_window_with_files", overtaken)
    with pytest.raises(PublicationDisabled):
        publish(project.settings, spec.run_id)
    assert not len(project.view())
    enable_publication(project.settings)
    assert publish(project.settings, spec.run_id).outcome == "published"


def test_rows_written_by_hand_while_it_is_off_are_not_lost_in_silence(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    there = project.lake.read(VIEW)
    disable_publication(project.settings)
    project.lake.append(VIEW, there.slice(0, 3), key="by hand")
    with pytest.raises(PublicationError, match="3 rows were written"):
        enable_publication(project.settings)
    assert len(project.view()) == 3


def test_maintenance_keeps_what_is_set_aside(project):
    publish(project.settings, project.accepted().run_id)
    before = files(project)
    disable_publication(project.settings)
    with Project.open(project.settings, retention={"days": 0, "files_days": 0}) as opened:
        opened.maintain()
        assert opened.enable_publication().changed
    assert files(project) == before


def test_files_that_are_gone_are_named_and_nothing_changes(project):
    publish(project.settings, project.accepted().run_id)
    before = files(project)
    disable_publication(project.settings)
    version = project.lake.version(VIEW)
    Path(next(iter(before))).unlink()
    with pytest.raises(
        LakeError, match=r"no longer there\n  next: put the file back from a copy, then run: scalr publication enable"
    ):
        enable_publication(project.settings)
    assert project.lake.version(VIEW) == version
    assert publication_state(project.settings).rows is None


def test_a_view_with_a_lost_file_goes_off_is_maintained_and_comes_back_with_the_file(project, caplog):
    publish(project.settings, project.accepted(start=50, end=100).run_id)
    publish(project.settings, project.accepted(start=100, end=150).run_id)
    before = files(project)
    lost = Path(next(iter(before)))
    lost.unlink()
    assert disable_publication(project.settings).changed
    assert "files of the hidden rows are lost" in caplog.text
    with Project.open(project.settings, retention={"days": 0, "files_days": 0}) as opened:
        opened.maintain()
        lost.write_bytes(before[str(lost)])
        assert opened.enable_publication().changed
    assert files(project) == before


def test_the_command_line_and_the_status_say_it(project):
    publish(project.settings, project.accepted().run_id)
    config = ["--config", str(project.config), "--json"]
    runner = CliRunner()
    off = json.loads(runner.invoke(app, ["publication", "disable", *config]).stdout)
    assert (off["publication"], off["rows"]) == ("disabled", 200)
    status = json.loads(runner.invoke(app, ["status", *config]).stdout)["publication"]
    assert (status["publication"], status["rows"], status["since"]) == ("disabled", 200, off["since"])
    refused = runner.invoke(app, ["publish", project.accepted(start=100, end=150).run_id, *config])
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"] == "PublicationDisabled"
    assert json.loads(runner.invoke(app, ["publication", "enable", *config]).stdout)["publication"] == "enabled"
    assert json.loads(runner.invoke(app, ["status", *config]).stdout)["publication"]["since"] is None


# --- what a rollback brings back


def test_a_rollback_brings_back_what_the_run_had_replaced(project):
    other, first, second = project.accepted(start=100, end=150), project.accepted(seed=1), project.accepted(seed=2)
    for spec in (other, first):
        publish(project.settings, spec.run_id)
    before = rows(project)
    publish(project.settings, second.run_id)
    report = rollback_run(project.settings, second.run_id)
    assert (report.outcome, report.rows, report.restored, list(report.replaced_by)) == (
        "rolled_back",
        200,
        {first.run_id: 200},
        [],
    )
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)
    # The first one is published as if nothing had been, and can itself be rolled back and published again.
    assert publish(project.settings, first.run_id).outcome == "already_published"
    assert [one.published_by for one in windows_with_late_events(project)] == [first.run_id]
    assert rollback_run(project.settings, first.run_id).restored == {}
    assert publish(project.settings, second.run_id).replaced == {}


def windows_with_late_events(project):
    """A late source event in the first one's window: whose window it is, the publications say."""
    from support.small_project import events, hour

    project.lake.append(Table.SOURCE_EVENTS, events([("u1", "s1", 70, 70)]), key="late")
    project.configure("[generation]\nlookback = 365\n")
    return [one for one in late_windows(project.settings, hour(200), hour(300), hour(300)).windows if one.start == hour(50)]


def test_only_its_own_piece_of_a_window_comes_back(project):
    first = project.accepted(start=30, end=90)
    second = project.accepted(start=50, end=100)
    third = project.accepted(start=70, end=80)
    publish(project.settings, first.run_id)
    alone = rows(project)
    publish(project.settings, second.run_id)
    publish(project.settings, third.run_id)
    report = rollback_run(project.settings, second.run_id)
    assert list(report.replaced_by) == [third.run_id]
    moment = alone["event_timestamp"]
    hidden = (moment >= pd.Timestamp(third.start)) & (moment < pd.Timestamp(third.end))
    now = rows(project)
    pd.testing.assert_frame_equal(
        now[now["run_id"] == first.run_id].reset_index(drop=True), alone[~hidden].reset_index(drop=True), check_exact=True
    )
    assert project.held()[third.run_id] == len(project.candidates(third))
    rollback_run(project.settings, third.run_id)
    pd.testing.assert_frame_equal(rows(project), alone, check_exact=True)


def test_what_was_rolled_back_itself_stays_out_and_what_it_had_replaced_comes(project):
    first, second, third = (project.accepted(seed=seed) for seed in (1, 2, 3))
    publish(project.settings, first.run_id)
    alone = rows(project)
    for spec in (second, third):
        publish(project.settings, spec.run_id)
    assert rollback_run(project.settings, second.run_id).outcome == "replaced"
    assert rollback_run(project.settings, third.run_id).restored == {first.run_id: 200}
    pd.testing.assert_frame_equal(rows(project), alone, check_exact=True)


def test_a_run_published_twice_comes_back_as_its_latest_publication(project):
    first, second, third = (project.accepted(seed=seed) for seed in (1, 2, 3))
    for spec in (first, second, first, third):
        publish(project.settings, spec.run_id)
    assert rollback_run(project.settings, first.run_id).outcome == "replaced"
    assert rollback_run(project.settings, third.run_id).restored == {second.run_id: 200}


def test_rows_that_were_erased_before_stay_erased(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    project.lake.delete(VIEW, "user_id = 'u3'", key="erased")
    left = rows(project)
    publish(project.settings, second.run_id)
    rollback_run(project.settings, second.run_id)
    pd.testing.assert_frame_equal(rows(project), left, check_exact=True)


def test_rows_of_a_run_whose_events_were_replaced_since_stay_out(project):
    """A correction took source events out of the log: a rollback does not bring back what they had been translated into."""
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    for spec in (first, second):
        publish(project.settings, spec.run_id)
    lake, table = project.lake, Table.SOURCE_EVENTS
    version, kept = lake.version(table), lake.read(table)
    corrected = Correction(first.start, 1, 0).commit_metadata(version + 1)
    lake.replace_where(table, kept.slice(1), "true", key="corrected", metadata=corrected)
    report = rollback_run(project.settings, second.run_id)
    assert (report.restored, report.not_restored) == ({}, [first.run_id])
    assert rows(project).empty


def test_maintenance_keeps_what_a_rollback_brings_back(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    before = rows(project)
    publish(project.settings, second.run_id)
    with Project.open(project.settings, retention={"files_days": 0}) as opened:
        opened.maintain()
    rollback_run(project.settings, second.run_id)
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)


def test_a_run_goes_out_even_where_the_former_rows_are_gone(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    former = set(files(project))
    publish(project.settings, second.run_id)
    for path in former - set(files(project)):
        Path(path).unlink()
    report = rollback_run(project.settings, second.run_id)
    assert (report.rows, report.restored, list(report.not_restored)) == (200, {}, [first.run_id])
    assert project.held() == {}
    assert publish(project.settings, first.run_id).rows == 200
    assert project.held() == {first.run_id: 200}


def test_a_rollback_that_died_before_it_could_say_so_is_told_whole(project, monkeypatch):
    from scalr_prod.ledger.publications import PublicationRepository

    first, second = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, first.run_id)
    publish(project.settings, second.run_id)

    def dies(*_, **__):
        raise CommitFailed("the process was killed")

    with monkeypatch.context() as patched:
        patched.setattr(PublicationRepository, "record_rollback", dies)
        with pytest.raises(CommitFailed, match="killed"):
            rollback_run(project.settings, second.run_id)
    assert rollback_run(project.settings, second.run_id).restored == {first.run_id: 200}
    assert project.held() == {first.run_id: 200}
