# SPDX-License-Identifier: Apache-2.0
"""Provenance in a table of its own: written before the events, counted with them, removed after them; and the move of a former view."""

from __future__ import annotations

import shutil

import pandas as pd
import pyarrow as pa
import pytest
from support.provenance import published_with_sources
from support.small_project import IDS, Handmade

from scalr_prod.errors import CommitFailed, ProvenanceNotFound
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.operations import apply_retention, explain_event
from scalr_prod.operations.erasure.scrubbing import UserSubjects
from scalr_prod.operations.erasure.tables import AFFECTED_TABLES, count_rows, delete_rows
from scalr_prod.publication import disable_publication, enable_publication, publish, rollback_run
from scalr_prod.schemas import SOURCE_COLUMNS, Table, generated_event_schema

VIEW, PROVENANCE = Table.SYNTHETIC_TARGET_EVENTS, Table.SYNTHETIC_EVENT_PROVENANCE
#: Nothing is too young to be removed.
NO_GRACE = "[retention]\ndays = 0\nfiles_days = 0\n"


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, NO_GRACE)


def runs_held(project: Handmade) -> dict[str, int]:
    """Rows of the provenance table by run."""
    return project.lake.read(PROVENANCE).to_pandas()["run_id"].value_counts().to_dict()


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[sorted(frame)].sort_values(["run_id", "event_id"], ignore_index=True)


def assert_sources_known(project: Handmade, *specs) -> None:
    """Every published event has one row of provenance, and together they are the generated event."""
    found = sorted_rows(published_with_sources(project.lake))
    generated = sorted_rows(pd.concat([project.candidates(spec) for spec in specs]))
    generated = generated[generated["event_id"].isin(found["event_id"])].reset_index(drop=True)
    assert len(found) == len(project.view()) > 0
    pd.testing.assert_frame_equal(found, generated, check_dtype=False)


def kinds(project: Handmade, *, dry_run: bool = False) -> list[tuple[str, str]]:
    removed = apply_retention(project.settings, dry_run=dry_run).removed
    return [(one.kind, one.name) for one in removed if one.kind in {"columns", "provenance"}]


def test_the_view_has_no_source_column_and_the_provenance_has_them(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    assert not {*SOURCE_COLUMNS} & {*project.lake.schema(VIEW).names}
    assert_sources_known(project, spec)
    publish(project.settings, spec.run_id)
    assert runs_held(project) == {spec.run_id: 200}


def test_provenance_of_a_commit_that_never_came_does_not_count_and_is_replaced(project, monkeypatch):
    spec = project.accepted()

    def fail(*_args, **_options):
        raise CommitFailed("nothing was written", where="lake", next_step="repeat")

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "replace_window_with_files", fail)
        with pytest.raises(CommitFailed):
            publish(project.settings, spec.run_id)
    assert runs_held(project) == {spec.run_id: 200}
    assert published_with_sources(project.lake).empty
    assert kinds(project) == [], "the run can still be published"
    publish(project.settings, spec.run_id)
    assert runs_held(project) == {spec.run_id: 200}
    assert_sources_known(project, spec)


def test_rows_that_come_back_have_their_provenance(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2, start=60, end=80)
    for spec in (first, second):
        publish(project.settings, spec.run_id)
    assert_sources_known(project, first, second)
    rollback_run(project.settings, second.run_id)
    assert_sources_known(project, first)
    disable_publication(project.settings)
    assert published_with_sources(project.lake).empty
    assert ("provenance", first.run_id) not in kinds(project), "hidden rows come back"
    enable_publication(project.settings)
    assert_sources_known(project, first)


def test_maintain_removes_the_provenance_of_runs_without_rows(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    for spec in (first, second):
        publish(project.settings, spec.run_id)
    rollback_run(project.settings, second.run_id)
    assert kinds(project, dry_run=True) == [("provenance", second.run_id)]
    assert runs_held(project) == {first.run_id: 200, second.run_id: 200}
    assert kinds(project) == [("provenance", second.run_id)]
    assert runs_held(project) == {first.run_id: 200}
    assert_sources_known(project, first)
    publish(project.settings, second.run_id)
    assert_sources_known(project, second)


def test_none_keeps_no_source_event_and_says_so(project):
    former, later = project.accepted(seed=1, start=50, end=60), project.accepted(seed=2, start=60, end=70)
    publish(project.settings, former.run_id)
    project.configure(NO_GRACE + '[publication]\nprovenance = "none"\n')
    publish(project.settings, later.run_id)
    assert later.run_id not in runs_held(project)
    event = project.view().query("run_id == @later.run_id")["event_id"].iloc[0]
    with pytest.raises(ProvenanceNotFound, match="the settings say so") as caught:
        explain_event(project.settings, event)
    assert "provenance" in str(caught.value.next_step)
    assert kinds(project) == [("provenance", former.run_id)]
    assert runs_held(project) == {}
    assert project.held() == {former.run_id: 40, later.run_id: 40}


def test_a_table_that_was_lost_is_named_and_comes_back_with_the_run(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    shutil.rmtree(project.lake.uri(PROVENANCE))
    event = project.view()["event_id"].iloc[0]
    with pytest.raises(ProvenanceNotFound, match="or the table was lost") as caught:
        explain_event(project.settings, event)
    assert caught.value.where == project.lake.uri(PROVENANCE)
    assert "set [publication]" not in caught.value.next_step
    assert f"scalr runs rollback {spec.run_id}, then: scalr runs resume {spec.run_id}" in caught.value.next_step
    rollback_run(project.settings, spec.run_id)
    publish(project.settings, spec.run_id)
    assert_sources_known(project, spec)


def test_a_forgotten_user_leaves_the_provenance(project):
    publish(project.settings, project.accepted().run_id)
    assert PROVENANCE in AFFECTED_TABLES["user"]
    assert delete_rows(project.lake, PROVENANCE, UserSubjects(["u3"])) == 10
    assert count_rows(project.lake, PROVENANCE, UserSubjects(["u3"])) == 0


@pytest.fixture
def former(project) -> Handmade:
    """A home whose view was made by a former version: with the source columns, and without a table of provenance."""
    import shutil

    for table in (VIEW, PROVENANCE):
        shutil.rmtree(project.lake.uri(table))
    project.lake.create(VIEW, generated_event_schema(**IDS))
    return project


def publish_as_before(project: Handmade, spec) -> None:
    """Publish as a former version did: all columns in the view, no provenance."""
    project.configure(NO_GRACE + '[publication]\nprovenance = "none"\n')
    publish(project.settings, spec.run_id)
    project.configure(NO_GRACE)
    assert {*SOURCE_COLUMNS} <= {*project.lake.schema(VIEW).names}
    assert not project.lake.exists(PROVENANCE)


def test_maintain_moves_the_columns_of_a_former_view(former):
    first, second, third = (former.accepted(seed=seed) for seed in (1, 2, 3))
    publish_as_before(former, first)
    publish_as_before(former, second)
    before = sorted_rows(former.view())
    assert kinds(former, dry_run=True) == [("columns", VIEW.value)]
    former.configure("")  # what `second` had replaced is still kept for a rollback
    assert kinds(former) == [("columns", VIEW.value)]
    after = sorted_rows(former.view())
    assert set(before) - set(after) == {*SOURCE_COLUMNS}
    pd.testing.assert_frame_equal(after, before[list(after)])
    assert_sources_known(former, second)
    assert kinds(former) == [], "it is done once"
    rollback_run(former.settings, second.run_id)
    assert_sources_known(former, first)
    publish(former.settings, third.run_id)
    assert_sources_known(former, third)


def test_a_former_view_is_published_to_before_it_is_moved(former):
    first, second = former.accepted(seed=1, start=50, end=60), former.accepted(seed=2, start=60, end=70)
    publish_as_before(former, first)
    publish(former.settings, second.run_id)
    assert runs_held(former) == {second.run_id: 40}
    assert former.view()["source_item_id"].notna().all()
    assert kinds(former) == [("columns", VIEW.value)]
    assert runs_held(former) == {first.run_id: 40, second.run_id: 40}
    assert_sources_known(former, first, second)


def test_a_move_that_died_between_its_commits_is_finished(former, monkeypatch):
    spec = former.accepted()
    publish_as_before(former, spec)

    def fail(*_args, **_options):
        raise CommitFailed("nothing was written", where="lake", next_step="repeat")

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "drop_columns", fail)
        with pytest.raises(CommitFailed):
            kinds(former)
    assert runs_held(former) == {spec.run_id: 200}
    assert kinds(former) == [("columns", VIEW.value)]
    assert runs_held(former) == {spec.run_id: 200}, "nothing is copied twice"
    assert_sources_known(former, spec)


def test_hidden_rows_are_moved_once_they_are_back(former):
    spec = former.accepted()
    publish_as_before(former, spec)
    disable_publication(former.settings)
    assert kinds(former, dry_run=True) == kinds(former) == []
    enable_publication(former.settings)
    assert kinds(former) == [("columns", VIEW.value)]
    assert_sources_known(former, spec)


def test_the_ledger_knows_the_publications_of_a_moved_view(former):
    spec = former.accepted()
    publish_as_before(former, spec)
    kinds(former)
    assert publish(former.settings, spec.run_id).outcome == "already_published"
    with Ledger.open(former.settings) as ledger:
        assert [one.run_id for one in ledger.publications.live()] == [spec.run_id]
    assert isinstance(former.lake.read(PROVENANCE), pa.Table)
