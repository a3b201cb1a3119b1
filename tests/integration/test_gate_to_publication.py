"""From the gate to the view: what it accepts is published, what it refuses is not, also where it is killed."""

from __future__ import annotations

import sys

import pytest
from support.small_project import IDS, Handmade, in_processes
from support.warm import run

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import LedgerError, PublicationError, QualityGateFailed
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.publication import publish, rollback_run
from scalr_prod.publication.toggle import disable_publication, enable_publication
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table, table_schema

#: Several audits and publications; each step has its tests in units.
long = pytest.mark.long

VIEW = Table.SYNTHETIC_TARGET_EVENTS


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


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
    assert project.state(spec.run_id) is RunState.PUBLISHED


@pytest.mark.parametrize("damage", ["gone", pytest.param("another", marks=long)])
def test_accepted_files_of_a_run_that_was_rolled_back_are_made_again(project, damage):
    spec = project.run()
    validate_run(project.settings, spec.run_id)
    published = publish(project.settings, spec.run_id).rows
    rollback_run(project.settings, spec.run_id)
    file = next((run_folder(project.settings.home, spec.run_id) / "accepted").glob("*.parquet"))
    before = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(before[:-1] + b"x")
    with pytest.raises(PublicationError, match="not the one that the gate accepted"):
        publish(project.settings, spec.run_id)
    validate_run(project.settings, spec.run_id)
    assert project.state(spec.run_id) is RunState.ROLLED_BACK
    assert publish(project.settings, spec.run_id).rows == published == len(project.view())


def test_a_rejected_run_does_not_reach_the_view(project):
    spec = project.run()
    project.write(spec, project.candidates(spec).assign(weight=2))
    with pytest.raises(QualityGateFailed):
        validate_run(project.settings, spec.run_id)
    with pytest.raises(PublicationError, match="rejected"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())
    assert (run_folder(project.settings.home, spec.run_id) / "gate.json").exists()


def test_a_run_that_another_driver_works_on_is_left_alone(project, monkeypatch):
    spec = project.accepted()
    monkeypatch.setattr("scalr_prod.publication.commit._LEASE_WAIT_S", 0.3)
    with Ledger.open(project.settings) as ledger:
        ledger.leases.acquire(spec.run_id, "someone else")
    with pytest.raises(LedgerError, match="someone else holds the run's lease"):
        publish(project.settings, spec.run_id)
    assert not len(project.view())


@long
@pytest.mark.slow
def test_the_online_store_follows_where_the_settings_ask_for_it(project):
    from scalr_prod.features import open_feature_store

    for table in Table:
        project.lake.create(table, table_schema(table, **IDS))
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
    assert disable_publication(project.settings).online
    assert served("u3") == [None], "publication is off"
    assert enable_publication(project.settings).online
    assert served("u3") == [spec.run_id]
    assert rollback_run(project.settings, spec.run_id).online
    assert served("u3") == [None]


GATE_KILLED = """
import os, sys
from scalr_prod.ledger.runs import RunRepository
from scalr_prod.quality import gate
from scalr_prod.config.settings import load_settings

point, config, run_id = sys.argv[1:]

def die(*_args, **_options):
    os._exit(77)

if point == "before the verdict is written":
    gate.write_json = die
elif point == "before the ledger is told":
    RunRepository.set_state = die
gate.validate_run(load_settings(config), run_id)
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the verdict is written", "before the ledger is told"])
def test_a_gate_killed_at_any_point_is_finished_by_the_next_call(project, point):
    spec = project.run()
    assert run([sys.executable, "-c", GATE_KILLED, point, project.config, spec.run_id]).returncode == 77
    assert project.state(spec.run_id) is RunState.GENERATED
    with pytest.raises(PublicationError):
        publish(project.settings, spec.run_id)
    report = validate_run(project.settings, spec.run_id)
    assert (report.accepted, report.repeated) == (200, point == "before the ledger is told")
    assert publish(project.settings, spec.run_id).rows == 200


def _validate(config: str, run_id: str, barrier: object) -> bool:
    settings = load_settings(config)
    barrier.wait()
    return validate_run(settings, run_id).passed


@long
@pytest.mark.slow
def test_gates_of_several_runs_at_once_share_the_data_docs(project):
    specs = [project.run(seed=seed) for seed in range(2)]
    assert in_processes(_validate, [(str(project.config), spec.run_id) for spec in specs]) == [True, True]
    index = (project.settings.home / "data_docs" / "index.html").read_text()
    assert all(spec.run_id in index for spec in specs)
