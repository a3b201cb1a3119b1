"""`scalr maintain`: what goes, what stays, and that a dry run changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta

import pytest
from support.fault_harness import files_of
from support.ledger_runs import T0, make_spec, to_state

from scalr_prod import Project
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.operations import retention
from scalr_prod.schemas import Table
from scalr_prod.training_set.manifest import MANIFEST_FILE
from scalr_prod.workspace import ConsentState, staging_folder

#: Publishes or builds twice before it removes anything; the same rules decide in the others.
long = pytest.mark.long

NOW = {"days": 0, "training_sets": 1, "translators": 1, "files_days": 0}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of temporary files in which nothing lies."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def opened(settings):
    with Project.open(settings, retention=NOW) as project:
        project.runs()  # opens the ledger, and marks the home as the project's
        yield project


def staged(project, seed, state, **changes):
    """A run in a state, with a part of each kind."""
    run_id = project.ledger.runs.begin(make_spec(seed=seed, **changes)).run_id
    to_state(project.ledger, run_id, state)
    folder = run_folder(project.settings.home, run_id)
    for name in ("shards", "asked", "parts", "candidates", "accepted"):
        (folder / name).mkdir(parents=True)
        (folder / name / "part-00000.parquet").write_bytes(b"x" * 100)
    (folder / "gate.json").write_text("{}")
    return run_id


def trained(project, version):
    folder = project.settings.home / "models" / "translator" / str(version)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"y" * 50)
    project.ledger.models.record(
        version, path=str(folder), sha256=f"{version}", fingerprint=f"{version}", trained_until=T0, metrics={}
    )
    return folder


def built(project, version):
    folder = project.settings.home / "datasets" / "training_set" / f"v{version}"
    (folder / "rows").mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(json.dumps({"version": version}))
    return folder


def test_a_part_that_versions_share_goes_with_the_last_of_them(opened):
    folders = [built(opened, version) for version in (1, 2, 3)]
    parts = [folder / "rows" / "part-2026-01-01-00000.parquet" for folder in folders]
    parts[0].write_bytes(b"z" * 1000)
    for part in parts[1:]:
        os.link(parts[0], part)
    (folders[0] / "rows" / "part-2026-01-02-00000.parquet").write_bytes(b"z" * 70)
    manifests = [(folder / MANIFEST_FILE).stat().st_size for folder in folders[:2]]
    report = opened.maintain()
    assert names(report, "training_set") == ["training_set v1", "training_set v2"]
    assert report.bytes == 70 + sum(manifests), "the third version still has the other file"
    assert parts[2].read_bytes() == b"z" * 1000
    assert not any(folder.exists() for folder in folders[:2])


def names(report, kind):
    return sorted(one.name for one in report.removed if one.kind == kind)


def test_a_new_project_has_nothing_to_remove(opened):
    assert opened.maintain().removed == []


def test_parts_go_of_runs_that_have_ended_and_their_verdict_stays(opened):
    ended = [staged(opened, n, state) for n, state in enumerate((RunState.PUBLISHED, RunState.REJECTED, RunState.ROLLED_BACK))]
    others = [
        staged(opened, n, state) for n, state in enumerate((RunState.GENERATING, RunState.GENERATED, RunState.VALIDATED), 5)
    ]
    report = opened.maintain()
    assert names(report, "run") == sorted(ended)
    assert report.bytes == 3 * 4 * 100
    for run_id in ended:
        assert sorted(path.name for path in run_folder(opened.settings.home, run_id).iterdir()) == ["accepted", "gate.json"]
        assert opened.ledger.runs.get(run_id).run_id == run_id
    for run_id in others:
        assert len(list(run_folder(opened.settings.home, run_id).rglob("*.parquet"))) == 5
    assert opened.maintain().removed == []
    assert not list((opened.settings.home / "staging").glob("*"))


def test_a_run_at_work_stays_as_it_is(opened):
    run_id = staged(opened, 1, RunState.PUBLISHED)
    with Ledger.open(opened.settings) as other, other.leases.hold(run_id, owner="elsewhere:1:-:x"):
        assert opened.maintain().removed == []
    assert names(opened.maintain(), "run") == [run_id]


def test_what_is_younger_than_the_settings_say_stays(settings):
    with Project.open(settings, retention=NOW | {"days": 30}) as project:
        staged(project, 1, RunState.PUBLISHED)
        trained(project, 1)
        trained(project, 2)
        built(project, 1)
        built(project, 2)
        assert project.maintain().removed == []
        old = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
        os.utime(project.settings.home / "datasets" / "training_set" / "v1", (old, old))
        assert names(project.maintain(), "training_set") == ["training_set v1"]


def test_consents_go_but_the_current_and_those_of_runs_in_the_view_or_unfinished(opened):
    """A canary is widened, and a published event explained, by the consents that its run was planned with."""
    folder = opened.settings.home / "consent"
    folder.mkdir()
    for digest in ("former", "published", "unfinished", "now"):
        (folder / f"{digest}.parquet").write_bytes(b"c" * 10)
    (folder / "current.json").write_text(json.dumps({"digest": "now", "domains": ["shop"]}))
    plans = {
        digest: {"settings": {"generation": {"temperature": 1.0}} | ConsentState(digest, ("shop",)).to_run_settings()}
        for digest in ("former", "published", "unfinished")
    }
    staged(opened, 1, RunState.REJECTED, **plans["former"])
    staged(opened, 2, RunState.GENERATED, **plans["unfinished"])
    run_id = staged(opened, 3, RunState.VALIDATED, **plans["published"])
    attempt = opened.ledger.publications.record_intent(run_id, base_version=0, rows=1, replaced={})
    opened.ledger.publications.confirm(run_id, attempt=attempt.attempt, delta_version=1, rows=1, cause="test")
    assert names(opened.maintain(), "consent") == ["former"]
    assert sorted(path.stem for path in folder.glob("*.parquet")) == ["now", "published", "unfinished"]


def test_translators_go_but_the_latest_the_served_and_those_of_published_windows(opened):
    folders = {version: trained(opened, version) for version in range(1, 8)}
    for version in (3, 5):  # 3 is what a rollback brings back
        opened.ledger.models.promote(version, cause="scalr translator promote")
    run_id = staged(opened, 1, RunState.VALIDATED, translator_version=2)
    attempt = opened.ledger.publications.record_intent(run_id, base_version=0, rows=1, replaced={})
    opened.ledger.publications.confirm(run_id, attempt=attempt.attempt, delta_version=1, rows=1, cause="test")
    staged(opened, 2, RunState.GENERATING, translator_version=4)
    report = opened.maintain()
    assert names(report, "translator") == ["1", "6"]
    assert {version for version, folder in folders.items() if folder.is_dir()} == {2, 3, 4, 5, 7}
    assert [record.version for record in opened.translators()] == list(range(1, 8)), "the ledger keeps its account"


def test_training_sets_go_but_the_latest(opened):
    folders = [built(opened, version) for version in (1, 2, 3)]
    assert names(opened.maintain(), "training_set") == ["training_set v1", "training_set v2"]
    assert [folder.exists() for folder in folders] == [False, False, True]


@long
def test_files_that_no_version_of_a_table_uses_go(opened, settings):
    opened.ingest()
    opened.histories()
    with Project.open(settings, retention=NOW, histories={"length": 7}) as project:
        project.histories()  # in place of the former ones
        rows = project.lake.read(Table.SOURCE_USER_HISTORY)
        version = project.lake.version(Table.SOURCE_USER_HISTORY)
        assert "source_user_history" in names(project.maintain(), "table")
        assert project.lake.read(Table.SOURCE_USER_HISTORY).equals(rows)
        assert project.lake.version(Table.SOURCE_USER_HISTORY) == version, (
            "histories, runs and training sets stay what they are"
        )
        assert "histories" in [stage.stage for stage in project.status() if stage.done]
        assert names(project.maintain(), "table") == []


def test_a_version_that_a_run_reads_stays_until_the_run_has_ended(opened, settings):
    opened.ingest()
    opened.histories()
    version = opened.lake.version(Table.SOURCE_USER_HISTORY)
    rows = opened.lake.read(Table.SOURCE_USER_HISTORY)
    run_id = staged(opened, 1, RunState.GENERATING, table_versions={"source_user_history": version})
    with Project.open(settings, retention=NOW, histories={"length": 7}) as project:
        project.histories()
        assert "source_user_history" not in names(project.maintain(), "table")
        assert project.lake.read(Table.SOURCE_USER_HISTORY, version=version).equals(rows)
        to_state(project.ledger, run_id, RunState.PUBLISHED, begin=RunState.GENERATING)
        assert "source_user_history" in names(project.maintain(), "table")


@long
def test_a_version_that_a_run_takes_while_maintenance_is_at_work_stays(opened, settings, monkeypatch):
    """And is replaced then, too: with ``files_days = 0`` nothing but the run keeps its files."""
    opened.ingest()
    opened.histories()
    version = opened.lake.version(Table.SOURCE_USER_HISTORY)
    rows = opened.lake.read(Table.SOURCE_USER_HISTORY)
    vacuum = Lake.vacuum
    with Project.open(settings, retention=NOW, histories={"length": 7}) as project:

        def meanwhile(lake, table, **options):
            if table is Table.SOURCE_USER_HISTORY:
                staged(opened, 1, RunState.GENERATING, table_versions={"source_user_history": version})
                project.histories()
            return vacuum(lake, table, **options)

        monkeypatch.setattr(Lake, "vacuum", meanwhile)
        project.maintain()
        assert project.lake.read(Table.SOURCE_USER_HISTORY, version=version).equals(rows)


@pytest.mark.parametrize("stage", ["dataset", pytest.param("maintain", marks=long)])
def test_a_version_that_a_command_at_work_may_read_stays(opened, settings, monkeypatch, stage):
    """Whatever was replaced since it began stays, and goes with its end; another maintenance reads no table."""
    monkeypatch.setattr(retention, "_CLOCK_SKEW", timedelta(0))
    opened.ingest()
    opened.histories()
    first = opened.lake.version(Table.SOURCE_USER_HISTORY)
    with Project.open(settings, retention=NOW, histories={"length": 7}) as project:
        project.histories()
        second = project.lake.version(Table.SOURCE_USER_HISTORY)
        with staging_folder(settings, stage):
            opened.histories()
            assert "source_user_history" in names(project.maintain(), "table")
            assert not project.lake.is_readable(Table.SOURCE_USER_HISTORY, first), "replaced before the command began"
            assert project.lake.is_readable(Table.SOURCE_USER_HISTORY, second) == (stage != "maintain")
        project.maintain()
        assert not project.lake.is_readable(Table.SOURCE_USER_HISTORY, second)


@long
def test_a_version_that_a_stage_has_begun_to_read_stays(opened, settings, monkeypatch):
    """``files_days = 0``: a histories build and a maintenance, while the training has opened its tables and read nothing yet."""
    monkeypatch.setattr(retention, "_CLOCK_SKEW", timedelta(0))
    opened.ingest()
    opened.histories()
    with Project.open(settings, retention=NOW, histories={"length": 7}) as project:
        version, kept = project.lake.version(Table.SOURCE_USER_HISTORY), []

        def meanwhile(*_, **__):
            project.histories()
            project.maintain()
            kept.append(project.lake.is_readable(Table.SOURCE_USER_HISTORY, version))
            raise InterruptedError("enough was seen")

        monkeypatch.setattr("scalr_prod.translator.train", meanwhile)
        with pytest.raises(InterruptedError):
            opened.train()
        assert kept == [True]
        project.maintain()
        assert not project.lake.is_readable(Table.SOURCE_USER_HISTORY, version)


def test_a_dry_run_says_the_same_and_changes_nothing(opened):
    opened.ingest()
    staged(opened, 1, RunState.PUBLISHED)
    trained(opened, 1)
    trained(opened, 2)
    built(opened, 1)
    built(opened, 2)
    before = files_of(opened.settings.home)
    planned = opened.maintain(dry_run=True)
    assert {one.kind for one in planned.removed} >= {"run", "translator", "training_set"}
    assert files_of(opened.settings.home) == before
    assert opened.maintain().removed == planned.removed


@long
def test_a_run_that_is_pinned_to_what_a_forgetting_removed_is_no_hindrance(opened):
    opened.ingest()
    opened.histories()
    version = opened.lake.version(Table.SOURCE_EVENTS)
    shutil.rmtree(
        run_folder(opened.settings.home, staged(opened, 1, RunState.GENERATING, table_versions={"source_events": version}))
    )
    user = opened.lake.read(Table.SOURCE_EVENTS)["user_id"][0].as_py()
    with Project.open(opened.settings.base / "scalr.toml") as project:
        project.forget([str(user)])
        assert not project.lake.is_readable(Table.SOURCE_EVENTS, version)
        project.maintain(dry_run=True)
        project.maintain()
