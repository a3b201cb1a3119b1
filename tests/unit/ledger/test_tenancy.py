"""Several projects in one ledger: each has its own runs, versions and data sets, and none can touch another's."""

from __future__ import annotations

from collections import Counter

import pytest
import sqlalchemy as sa
from support.ledger_runs import T0, make_spec, one, validated

from scalr_prod.errors import ProjectsMixed, RunNotFound, RunOfOtherProject, TranslatorNotFound
from scalr_prod.ledger import Ledger, RunState


def rows_of(ledger: Ledger) -> dict[str, list]:
    """Every row of every table."""
    with ledger.database.engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        return {name: sorted(repr(row) for row in connection.execute(sa.text(f"SELECT * FROM {name}"))) for name in tables}


def add_version(ledger: Ledger, version: int, sha256: str = "ab") -> None:
    path = f"{ledger.project.home}/models/translator/{version}"
    ledger.models.record(version, path=path, sha256=sha256, fingerprint=sha256, trained_until=T0, metrics={})


@pytest.fixture
def two(url):
    """Two projects on one ledger."""
    with Ledger(url, one("dee")) as first, Ledger(url, one("ee")) as second:
        yield first, second


def test_the_same_run_of_two_projects_is_two_runs(two):
    for ledger in two:
        assert ledger.runs.begin(make_spec()).created
    first, second = two
    run_id = make_spec().run_id
    first.runs.set_state(run_id, "generating", cause="x")
    first.runs.record_partitions(run_id, [(0, {"rows": 4})])
    assert second.runs.get(run_id).state is RunState.PLANNED
    assert (first.runs.get(run_id).project, second.runs.get(run_id).project) == ("dee", "ee")
    assert second.runs.partitions(run_id) == []
    assert [change.to_state for change in second.changes.find(run_id)] == ["planned"]
    with first.leases.hold(run_id), second.leases.hold(run_id):
        pass
    for ledger in (first, second):
        published = validated(ledger, seed=5)
        ledger.publications.record_intent(published, base_version=1, rows=3, replaced={})
        ledger.publications.confirm(published, attempt=1, delta_version=2, rows=3, cause="x")
    assert len(first.publications.find()) == 1
    assert first.publications.superseding(first.publications.last(published)) == []


def test_versions_promotions_and_data_sets_are_numbered_by_project(two):
    first, second = two
    add_version(first, 1, "aa")
    add_version(second, 1, "bb")
    add_version(second, 2, "cc")
    assert [found.sha256 for found in first.models.find()] == ["aa"]
    second.models.promote(2, cause="x")
    assert first.models.promoted_version() is None
    assert first.models.promotions() == []
    facts = {"path": "p", "rows": 1, "cutoff": T0, "manifest": {}}
    for ledger, fingerprint in ((first, "f1"), (second, "f2")):
        ledger.datasets.record("training_set", 1, fingerprint=fingerprint, **facts)
    assert [found.fingerprint for found in first.datasets.find()] == ["f1"]


ATTEMPTS = {
    "show": lambda ledger, run_id: ledger.runs.get(run_id),
    "show its parts": lambda ledger, run_id: ledger.runs.partitions(run_id),
    "show its last publication": lambda ledger, run_id: ledger.publications.last(run_id),
    "resume": lambda ledger, run_id: ledger.leases.hold(run_id).__enter__(),
    "generate": lambda ledger, run_id: ledger.runs.set_state(run_id, "generating", cause="x"),
    "stage": lambda ledger, run_id: ledger.runs.record_partitions(run_id, [(0, {})], partitions=1),
    "validate": lambda ledger, run_id: ledger.runs.set_state(run_id, "rejected", cause="x"),
    "publish": lambda ledger, run_id: ledger.publications.record_intent(run_id, base_version=0, rows=1, replaced={}),
    "confirm": lambda ledger, run_id: ledger.publications.confirm(run_id, attempt=1, delta_version=9, rows=1, cause="x"),
    "roll back": lambda ledger, run_id: ledger.publications.record_rollback(run_id, attempt=1, delta_version=9, cause="x"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_run_of_another_project_is_refused_by_its_name_and_nothing_changes(two, attempt):
    first, second = two
    run_id = validated(second)
    second.publications.record_intent(run_id, base_version=1, rows=3, replaced={})
    second.publications.confirm(run_id, attempt=1, delta_version=2, rows=3, cause="x")
    before = rows_of(second)
    with pytest.raises(RunOfOtherProject, match="a run of project 'ee'") as caught:
        ATTEMPTS[attempt](first, run_id)
    assert caught.value.run_id == run_id
    assert "project 'dee'" in str(caught.value)
    assert "--config" in caught.value.next_step
    assert rows_of(second) == before


def test_a_version_of_another_project_cannot_be_promoted(two):
    first, second = two
    add_version(first, 1)
    add_version(second, 1)
    add_version(second, 2)
    before = rows_of(second)
    with pytest.raises(TranslatorNotFound, match=r"no version 2; there is one of project 'ee' \(lake /lakes/ee\)"):
        first.models.promote(2, cause="x")
    assert rows_of(second) == before


def test_a_project_that_only_looks_leaves_no_trace(url):
    with Ledger(url, one("ee")) as second:
        run_id = second.runs.begin(make_spec()).run_id
        before = rows_of(second)
        with Ledger(url, one("dee")) as first:
            assert (
                first.runs.find()
                == first.publications.find()
                == first.datasets.find()
                == first.models.find()
                == first.changes.find()
                == []
            )
            with pytest.raises(RunOfOtherProject):
                first.leases.acquire(run_id, "me")
        assert rows_of(second) == before


def test_one_name_on_two_lakes_is_refused_with_both_lakes(url):
    with Ledger(url, one()) as ledger:
        ledger.runs.begin(make_spec())
        before = rows_of(ledger)
        with pytest.raises(ProjectsMixed, match="/lakes/one; the settings name lake /lakes/other") as caught:
            Ledger(url, one(lake="/lakes/other"))
        assert 'moved_from = "/lakes/one"' in caught.value.next_step
        with pytest.raises(ProjectsMixed, match="/homes/one; the settings name home /homes/other"):
            Ledger(url, one(home="/homes/other"))
        assert rows_of(ledger) == before


def test_of_two_that_open_at_once_the_first_to_write_has_the_name(url):
    with Ledger(url, one()) as first, Ledger(url, one(lake="/lakes/other", home="/homes/other")) as second:
        first.runs.begin(make_spec())
        before = rows_of(first)
        with pytest.raises(ProjectsMixed, match="/lakes/one"):
            second.runs.begin(make_spec(seed=1))
        assert rows_of(first) == before


def test_two_names_on_one_lake_or_home_are_refused(url):
    with Ledger(url, one()) as ledger:
        ledger.runs.begin(make_spec())
        before = rows_of(ledger)
        with pytest.raises(ProjectsMixed, match="lake /lakes/one belongs to project 'one'"):
            Ledger(url, one("two", lake="/lakes/one"))
        with pytest.raises(ProjectsMixed, match="home /homes/one belongs to project 'one'") as caught:
            Ledger(url, one("two", home="/homes/one"))
        assert 'formerly = "one"' in caught.value.next_step
        assert rows_of(ledger) == before


def test_a_project_is_renamed_or_moved_when_the_settings_say_so(url):
    with Ledger(url, one()) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
    renamed = one("new", lake="/lakes/one", home="/homes/one", formerly="one")
    for _ in range(2):
        with Ledger(url, renamed) as ledger:
            assert ledger.runs.get(run_id).project == "new"
    with Ledger(url, one("new", moved_from="/lakes/one")) as ledger:
        assert ledger.runs.get(run_id)
    with pytest.raises(ProjectsMixed, match="/lakes/new"):
        Ledger(url, renamed)
    with Ledger(url, one()) as ledger, pytest.raises(RunNotFound):
        ledger.runs.get("run_0123456789abcdef")


def test_a_project_that_gives_up_a_name_which_another_has_is_a_new_one(url):
    with Ledger(url, one()) as ledger:
        run_id = ledger.runs.begin(make_spec()).run_id
    with Ledger(url, one("two", formerly="one")) as ledger:
        assert ledger.runs.find() == []
        ledger.runs.begin(make_spec(seed=1))
    with Ledger(url, one()) as ledger:
        assert [found.run_id for found in ledger.runs.find()] == [run_id]


def test_a_home_that_is_mounted_elsewhere_is_the_same_and_its_copy_is_not(url, tmp_path):
    there, mounted = tmp_path / "there", tmp_path / "mounted"
    with Ledger(url, one(home=str(there), home_id="1f")) as ledger:
        ledger.runs.begin(make_spec())
    with Ledger(url, one(home=str(mounted), home_id="1f")) as ledger:
        assert len(ledger.runs.find()) == 1
    there.mkdir()
    with pytest.raises(ProjectsMixed, match="mounted"):
        Ledger(url, one(home=str(mounted), home_id="1f"))


def test_each_counts_its_own_runs_and_their_changes(url):
    with Ledger(url, one("dee")) as first, Ledger(url, one("ee")) as second:
        validated(first)
        first.runs.begin(make_spec(seed=1))
        validated(second, seed=2)
        assert first.runs.count_by_state() == {RunState.PLANNED: 1, RunState.VALIDATED: 1}
        assert second.runs.count_by_state() == {RunState.VALIDATED: 1}
        for ledger in (first, second):
            assert ledger.changes.count_by_target_state("run") == Counter(
                change.to_state for change in ledger.changes.find(subject="run")
            )
