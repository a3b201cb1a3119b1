"""Whole generations on Dask's own processes: the same events however the work is shared out, resumed, or interrupted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr_prod.compute import executor
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import LakeError, LedgerError, SchedulerUnreachable, TranslatorError
from scalr_prod.generation import GenerationReport, generate, generation, plan_run, task
from scalr_prod.generation.part_files import part_path
from scalr_prod.generation.policy import Policy, logs_digest, policy_path, settings_digest
from scalr_prod.generation.shards import write_shards
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunSpec, RunState, run_folder
from scalr_prod.schemas import SOURCE_COLUMNS, Table

pytestmark = pytest.mark.slow
#: A generation takes two to four seconds; these are of other settings, which their own tests cover without a run.
long = pytest.mark.long


@pytest.fixture(scope="module")
def config(trained_home, tmp_path_factory) -> Path:
    from scalr_prod.features import apply_feature_repo

    folder = tmp_path_factory.mktemp("generation") / "project"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    path = folder / trained_home.name
    apply_feature_repo(load_settings(path))
    return path


def project(config: Path, dask: str, *, workers: int = 1, connect: float = 10, **generation):
    return load_settings(
        config,
        generation={"partitions": 5, "align": True, **generation},
        compute={"workers": workers, "dask": dask, "connect_timeout_s": connect},
        serving={"scorer": "local", "threads": 2},
    )


class Made(NamedTuple):
    spec: RunSpec
    report: GenerationReport
    rows: pd.DataFrame
    staged: pd.DataFrame


def candidates(settings, run_id: str) -> pd.DataFrame:
    rows = pd.read_parquet(run_folder(settings.home, run_id) / "candidates")
    return rows.sort_values("event_id", ignore_index=True)


def fresh(settings, spec) -> None:
    shutil.rmtree(run_folder(settings.home, spec.run_id), ignore_errors=True)


@pytest.fixture(scope="module")
def made(config, here):
    """One generation, small batches; gives what it came to."""
    settings = project(config, here, batch_size=64)
    spec = plan_run(settings, version=1)
    report = generate(settings, spec)
    assert not (run_folder(settings.home, spec.run_id) / "shards").exists()
    staged = pd.read_parquet(run_folder(settings.home, spec.run_id) / "parts")
    return Made(spec, report, candidates(settings, spec.run_id), staged)


def test_the_report_adds_up_and_the_run_is_written_down(config, made):
    settings = project(config, "local")
    spec, report, rows, _ = made
    assert report.run_id == spec.run_id
    assert report.drawn == 2 * report.contexts == report.events + sum(report.dropped.values())
    assert (report.events, report.users, report.items) == (len(rows), rows["user_id"].nunique(), rows["item_id"].nunique())
    assert (report.parts_made, report.parts_kept) == (5, 0)
    assert 0 < report.coverage <= 1
    assert report.bucket_distance["after"] < report.bucket_distance["before"]
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    with Ledger.open(settings) as ledger:
        states = [step.to_state for step in ledger.changes.find(spec.run_id, subject="run")][:3]
        assert states == [RunState.PLANNED, RunState.GENERATING, RunState.GENERATED]
        assert ledger.runs.get(spec.run_id).lease_owner is None


def test_half_of_the_events_stay_and_their_buckets_come_nearer(config, made):
    _, report, rows, staged = made
    assert len(rows) >= 0.5 * (len(rows) + report.dropped["alignment"])
    settings = project(config, "local")
    real = Lake.open(settings).read(Table.TARGET_EVENTS).to_pandas()["item_id"].value_counts()
    # The mean popularity of what is proposed moves towards that of what is really consumed.
    want = (real * real).sum() / real.sum()
    before, after = (frame["item_id"].map(real).mean() for frame in (staged, rows))
    assert abs(after - want) < abs(before - want)


def test_a_small_run_is_translated_without_workers(config, made, monkeypatch):
    spec, report, rows, _ = made
    settings = project(config, "local", workers=2)
    fresh(settings, spec)
    monkeypatch.setattr(generation, "open_cluster", None)
    again = generate(settings, spec)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)
    assert (again.contexts, again.events, again.dropped) == (report.contexts, report.events, report.dropped)
    assert (again.parts_made, again.parts_kept) == (5, 0)


def test_several_triton_servers_are_asked_by_workers(config):
    settings = project(config, "local", workers=2)
    asked = {"tasks": 5, "contexts": 100, "items": 1000}
    assert not generation._has_workers(settings, **asked)
    assert generation._has_workers(settings, **asked | {"contexts": 1_000_000})
    two = settings.serving.model_copy(update={"url": "one:8001, two:8001"})
    assert generation._has_workers(settings.model_copy(update={"serving": two}), **asked)


def test_a_part_that_cannot_be_written_is_an_error_that_names_the_place_and_the_run_goes_on(config, made, monkeypatch):
    spec, _, rows, _ = made
    settings = project(config, "local")
    fresh(settings, spec)
    part = part_path(run_folder(settings.home, spec.run_id) / "parts", 3)
    write_part = task.open_part_writer

    def full(path, schema):
        if path == part:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_part(path, schema)

    with monkeypatch.context() as patched:
        patched.setattr(task, "open_part_writer", full)
        with pytest.raises(LakeError, match="No space left on device") as error:
            generate(settings, spec)
    assert error.value.where == str(part)
    again = generate(settings, spec)
    assert (again.parts_made, again.parts_kept) == (2, 3)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


@long
def test_three_processes_and_large_batches_give_the_same_events_though_one_is_lost(config, made, monkeypatch):
    monkeypatch.setattr(executor, "LOCAL_WORKERS_MIN_WORK_S", 0)
    spec, report, rows, _ = made
    settings = project(config, "local", workers=3, batch_size=1024, partitions=16)
    assert plan_run(settings, version=1) == spec
    fresh(settings, spec)
    parts = run_folder(settings.home, spec.run_id) / "parts"
    killed = threading.Event()

    def kill_one() -> None:
        while not any(parts.glob("part-*.parquet")):
            time.sleep(0.02)
        family = psutil.Process().children(recursive=True)
        names = {child: " ".join(child.cmdline()) for child in family}
        # Forked ones are children of the process that they are forked from, which is not the one to kill.
        workers = [child for child, name in names.items() if "dask worker" in name or child.ppid() != os.getpid()]
        workers[-1].kill()
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    again = generate(settings, spec)
    thread.join(10)
    assert killed.is_set()
    assert again.parts_made == 16
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)
    assert (again.events, again.dropped) == (report.events, report.dropped)


def test_candidates_have_the_feature_view_s_schema_and_their_source(config, here, made):
    spec = made.spec
    settings = project(config, here)
    generate(settings, spec)
    view = Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS)
    for file in (run_folder(settings.home, spec.run_id) / "candidates").glob("*.parquet"):
        found = pq.read_schema(file)
        assert pa.schema([column for column in found if column.name not in SOURCE_COLUMNS]).equals(view, check_metadata=False)
        assert set(SOURCE_COLUMNS) <= set(found.names)


def test_a_finished_generation_is_left_as_it_is(config, here, made):
    spec, _, rows, _ = made
    settings = project(config, here)
    first = generate(settings, spec)
    files = sorted((run_folder(settings.home, spec.run_id) / "candidates").glob("*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]
    again = generate(settings, spec)
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (again.parts_made, again.parts_kept, again.events) == (0, first.parts_made + first.parts_kept, first.events)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


@long
def test_missing_and_damaged_parts_are_made_again_and_others_kept(config, here, made):
    spec, _, rows, _ = made
    settings = project(config, here)
    fresh(settings, spec)
    generate(settings, spec)
    folder = run_folder(settings.home, spec.run_id)
    parts = [part_path(folder / "parts", number) for number in range(5)]
    before = [part.stat().st_mtime_ns for part in parts]
    parts[0].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    part_path(folder / "candidates", 1).unlink()
    # What a killed driver leaves of the contexts that it lays out: one file with its manifest, and one without.
    write_shards(settings, spec, 5)
    for path in (folder / "shards").rglob("_part-0000[1-4].json"):
        path.unlink()
    report = generate(settings, spec)
    assert not (folder / "shards").exists()
    after = [part.stat().st_mtime_ns for part in parts]
    assert (report.parts_made, report.parts_kept) == (2, 3)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False, True, True]
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


@long
def test_parts_of_another_cut_do_not_stay(config, here, made):
    spec, _, rows, _ = made
    fresh(project(config, here), spec)
    generate(project(config, here, partitions=7), spec)
    settings = project(config, here, partitions=3)
    part_path(run_folder(settings.home, spec.run_id) / "candidates", 0).unlink()
    report = generate(settings, spec)
    assert (report.parts_made, report.parts_kept) == (3, 0)
    for folder in ("parts", "candidates"):
        assert len(list((run_folder(settings.home, spec.run_id) / folder).glob("*.parquet"))) == 3
    with Ledger.open(settings) as ledger:
        assert len(ledger.runs.partitions(spec.run_id)) == 3
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


@long
def test_without_alignment_everything_staged_is_a_candidate(config, here):
    settings = project(config, here, align=False)
    spec = plan_run(settings, version=1)
    report = generate(settings, spec)
    assert (report.left_out, report.measured) == (None, 0)
    staged = pd.read_parquet(run_folder(settings.home, spec.run_id) / "parts").sort_values("event_id", ignore_index=True)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), staged)
    assert report.dropped["alignment"] == 0
    files = sorted((run_folder(settings.home, spec.run_id) / "candidates").glob("part-*.parquet"))
    assert len(files) == 5
    keys = ["user_id", "event_timestamp", "item_id"]
    for rows in map(pd.read_parquet, files):
        pd.testing.assert_frame_equal(rows, rows.sort_values(keys, ignore_index=True))


@long
def test_what_shortlists_leave_out_is_measured_and_kept(config, here):
    settings = project(config, here, align=False, shortlist=10)
    spec = plan_run(settings, version=1)
    report = generate(settings, spec)
    assert 0 < report.left_out < 1
    assert 100 < report.measured <= 320
    again = generate(settings, spec)
    assert (again.left_out, again.measured, again.parts_kept) == (report.left_out, report.measured, 5)


def test_a_causal_run_over_the_next_day(config, here):
    from scalr_prod.features import apply_feature_repo
    from scalr_prod.histories import build_histories

    end = plan_run(project(config, here), version=1).end
    folder = config.parent.with_name("causal")
    shutil.copytree(config.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo")
    settings = project(folder / config.name, here, mode="causal", start=end, end=end + pd.Timedelta(days=1))
    lake = Lake.open(settings)
    rows = lake.read(Table.SOURCE_EVENTS).slice(0, 50).to_pandas()
    rows["event_timestamp"] = rows["created_timestamp"] = end + pd.Timedelta(hours=1)
    schema = lake.schema(Table.SOURCE_EVENTS)
    lake.append(Table.SOURCE_EVENTS, pa.Table.from_pandas(rows, schema=schema, preserve_index=False), key="next day")
    build_histories(settings)
    apply_feature_repo(settings)
    spec = plan_run(settings, version=1)
    assert spec.translator_trained_until <= spec.start
    report = generate(settings, spec)
    assert report.contexts == len(rows.drop_duplicates(["user_id", "item_id"]))
    assert 0 < report.events <= report.drawn


DRIVER = """
import sys
from scalr_prod.generation import generate, plan_run
from scalr_prod.generation.policy import Policy, logs_digest, policy_path, settings_digest
from scalr_prod.config.settings import load_settings
if __name__ == "__main__":
    settings = load_settings(
        sys.argv[1],
        generation={"partitions": 16, "align": True},
        compute={"workers": 1},
        serving={"scorer": "local", "threads": 1},
    )
    generate(settings, plan_run(settings, version=1))
"""


@pytest.mark.nightly
def test_a_killed_driver_s_run_goes_on_from_where_it_stopped(config, here, made, tmp_path):
    spec, _, rows, _ = made
    settings = project(config, here, partitions=16)
    fresh(settings, spec)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(config)], start_new_session=True)
    parts = run_folder(settings.home, spec.run_id) / "parts"
    deadline = time.monotonic() + 300
    while len(list(parts.glob("_part-*.json"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    with Ledger.open(settings) as ledger:
        owner = ledger.runs.get(spec.run_id).lease_owner
        assert owner is not None
        ledger.leases.release(spec.run_id, owner)  # else: it runs out by itself
    report = generate(settings, spec)
    assert report.parts_kept >= 2
    assert report.parts_made >= 1
    assert report.parts_made + report.parts_kept == 16
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


def test_two_drivers_do_not_work_on_one_run(config, here, made):
    spec = made.spec
    settings = project(config, here)
    with (
        Ledger.open(settings) as ledger,
        ledger.leases.hold(spec.run_id, owner="another host"),
        pytest.raises(LedgerError, match="another host"),
    ):
        generate(settings, spec)


def test_a_scheduler_that_does_not_answer(config, made):
    spec = made.spec
    settings = project(config, "tcp://127.0.0.1:9", connect=1)
    fresh(settings, spec)
    started = time.monotonic()
    with pytest.raises(SchedulerUnreachable, match=r"does not answer within 1 s") as caught:
        generate(settings, spec)
    assert time.monotonic() - started < 15
    assert "tcp://127.0.0.1:9" in caught.value.where
    assert "dask scheduler" in caught.value.next_step
    assert not list((run_folder(settings.home, spec.run_id) / "parts").iterdir())


def test_a_scheduler_without_workers(config, made):
    from distributed import LocalCluster

    spec = made.spec
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as cluster:
        settings = project(config, cluster.scheduler_address, connect=1)
        fresh(settings, spec)
        with pytest.raises(SchedulerUnreachable, match="has no worker"):
            generate(settings, spec)


def test_a_task_s_own_error_reaches_the_user_unchanged(config, here, made):
    spec = made.spec
    settings = project(config, here, batch_size=77)  # other settings: what workers hold open already is not used
    fresh(settings, spec)
    weights = settings.home / "models" / "translator" / "1" / "translator.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(TranslatorError, match="checksum"):
            generate(settings, spec)
    finally:
        weights.write_bytes(whole)
    with Ledger.open(settings) as ledger:
        assert ledger.runs.get(spec.run_id).state is RunState.GENERATING


@long
def test_a_run_follows_the_policy_where_the_settings_leave_a_choice(config, here):
    """An evaluation decided on three events at T = .5; the settings name the filter themselves."""
    from scalr_prod.project import Project

    settings = load_settings(
        config,
        generation={"partitions": 2, "min_lift": 0.5},
        compute={"workers": 1, "dask": here},
        serving={"scorer": "local", "threads": 2},
    )
    policy = Policy(
        model="als", best_baseline="popular_lately", helps=True, volume=3, temperature=0.5, min_lift=0.0, align=False,
        segment_weights=(0.3, 0.3, 0.0), sparse_below=5, settings=settings_digest(settings), logs=logs_digest(settings), report="",
    )  # fmt: skip
    policy.write(policy_path(settings))
    try:
        report = Project(settings).generate(1)
    finally:
        policy_path(settings).unlink()
    with Ledger.open(settings) as ledger:
        used = ledger.runs.get(report.run_id).spec.settings["generation"]
    assert (used["events_per_source_event"], used["temperature"], used["min_lift"], used["align"]) == (3, 0.5, 0.5, False)
    assert report.drawn == 3 * report.contexts
