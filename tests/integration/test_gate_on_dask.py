"""The quality gate on Dask workers: the same bytes as in one process, whatever is lost on the way, and no file left behind."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.lost_worker import lose_a_worker
from support.object_store import running_store
from support.small_project import GATE_TARGET, QUARANTINE, Handmade

from scalr_prod.compute import executor
from scalr_prod.core import partitioned
from scalr_prod.errors import ComputeError, QualityError
from scalr_prod.ledger import RunSpec, RunState, run_folder
from scalr_prod.publication import publish
from scalr_prod.quality import audit_tasks, drift, partition_audit, user_partitions, validate_run
from scalr_prod.schemas import Table

#: Starts worker processes.
long = pytest.mark.long

SETTINGS = QUARANTINE.replace("0.2", "0.9")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Many partitions and tasks of few rows."""
    monkeypatch.setattr(partitioned, "PARTITION_ROWS", 60)
    monkeypatch.setattr(audit_tasks, "_TASK_ROWS", 50)
    monkeypatch.setattr(drift, "MIN_EVENTS", 100)
    monkeypatch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)


def make(folder: Path, extra: str = SETTINGS) -> tuple[Handmade, RunSpec]:
    """A run with candidates that break rules, and one published before it."""
    project = Handmade(folder, extra, target=GATE_TARGET, items=[*(f"t{i}" for i in range(10)), "late", "unseen"])
    publish(project.settings, project.accepted(start=0, end=50).run_id)
    spec = project.run()
    project.write(spec, project.faulty_candidates(spec), parts=4)
    return project, spec


def judge(project: Handmade, spec: RunSpec, **compute) -> dict[str, str]:
    """Audit the run: digests of its files, of the report and of its quarantine."""
    settings = project.settings
    folder = run_folder(settings.home, spec.run_id)
    (folder / "gate.json").unlink(missing_ok=True)
    validate_run(settings.model_copy(update={"compute": settings.compute.model_copy(update=compute)}), spec.run_id)
    assert not any((settings.home / "staging").iterdir())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    contents = {path.name: path.read_bytes() for path in (folder / "accepted").iterdir()}
    assert len(contents) > 5
    report = json.loads((folder / "gate.json").read_text())["report"]
    assert report["quarantined"] >= 14
    assert report["figures"]["psi_sample"] > 50
    contents["report"] = json.dumps(report | {"docs": ""}).encode()
    contents["quarantine"] = repr(project.lake.read(Table.SYNTHETIC_QUARANTINE).to_pylist()).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def shuffle_files(project: Handmade) -> list[str]:
    return [path.name for path in Path(project.settings.lake_url).rglob("shuffle-*")]


def test_workers_of_a_scheduler_give_the_same_verdict_and_bytes(here, tmp_path):
    project, spec = make(tmp_path)
    expected = judge(project, spec, workers=1)
    assert judge(project, spec, dask=here) == expected
    assert not shuffle_files(project)


@long
def test_workers_and_driver_share_nothing_but_an_object_store(here, tmp_path, monkeypatch):
    with running_store(honours_conditions=True) as store:
        project, spec = make(tmp_path, SETTINGS + store.toml)
        expected = judge(project, spec, workers=1)
        tasks, ran = executor._Workers.map, []

        def map_elsewhere(*arguments):
            """Nothing of the run's folder exists while tasks run."""
            with hidden(run_folder(project.settings.home, spec.run_id) / "candidates"):
                for result in tasks(*arguments):
                    ran.append(result)
                    yield result

        monkeypatch.setattr(executor._Workers, "map", map_elsewhere)
        assert judge(project, spec, dask=here) == expected
        assert len(ran) > 15
        left = store.keys()
    assert not [key for key in left if "shuffle-" in key]


@contextmanager
def hidden(path: Path):
    path.rename(f"{path}.hidden")
    try:
        yield
    finally:
        Path(f"{path}.hidden").rename(path)


def test_an_error_of_a_task_arrives_as_it_was_raised_and_nothing_is_left(here, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise QualityError("a rule fails", where="here", next_step="look")

    project, spec = make(tmp_path)
    monkeypatch.setattr(partition_audit, "create_verdicts_table", fail)
    with pytest.raises(QualityError, match="a rule fails"):
        judge(project, spec, dask=here)
    assert not shuffle_files(project)
    assert not any((project.settings.home / "staging").iterdir())
    assert project.state(spec.run_id) is RunState.GENERATED
    assert {path.name for path in run_folder(project.settings.home, spec.run_id).iterdir()} == {"candidates", "run.json"}


def test_an_unexpected_error_names_the_command(here, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no such thing")

    project, spec = make(tmp_path)
    monkeypatch.setattr(audit_tasks, "audit_partition", fail)
    with pytest.raises(ComputeError, match="ValueError: no such thing") as caught:
        judge(project, spec, dask=here)
    assert caught.value.next_step == f"fix the cause, then run: scalr validate {spec.run_id}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "task"),
    [
        pytest.param(user_partitions, "_write_by_partition", marks=long),
        pytest.param(user_partitions, "_rank_event_ids", marks=long),
        pytest.param(audit_tasks, "audit_partition", marks=long),
    ],
)
def test_a_worker_that_dies_changes_no_byte(tmp_path, monkeypatch, module, task):
    project, spec = make(tmp_path / "project")
    expected, died = judge(project, spec, workers=1), tmp_path / "died"
    lose_a_worker(monkeypatch, module, task, died)
    assert judge(project, spec, workers=2) == expected
    assert died.exists()


@long
@pytest.mark.slow
def test_any_number_of_local_workers_gives_the_same_bytes(tmp_path, monkeypatch):
    project, spec = make(tmp_path)
    expected = judge(project, spec, workers=1)
    monkeypatch.setattr(executor, "is_distributed", lambda *_, **__: True)
    for workers in (1, 2, 4):
        assert judge(project, spec, workers=workers) == expected
