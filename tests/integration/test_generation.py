"""Whole generations on Dask's own processes: the same events however the work is shared out, resumed, or interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from scalr_prod.contracts import Table
from scalr_prod.errors import GenerationError, LedgerError, SchedulerUnreachable, TranslatorError
from scalr_prod.generation import generate, plan_run
from scalr_prod.generation.parts import part_path
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.settings import load_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(trained_home, tmp_path_factory) -> Path:
    from scalr_prod.feast_store import apply_feature_repo

    folder = tmp_path_factory.mktemp("generation") / "project"
    shutil.copytree(trained_home.parent, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo", ignore_errors=True)
    path = folder / trained_home.name
    apply_feature_repo(load_settings(path))
    return path


def project(config: Path, *, workers: int = 1, dask: str = "local", connect: float = 10, **generation):
    return load_settings(
        config,
        generation={"partitions": 4, **generation},
        compute={"workers": workers, "dask": dask, "connect_timeout_s": connect},
        serving={"scorer": "local", "threads": 2},
    )


def candidates(settings, run_id: str) -> pd.DataFrame:
    rows = pd.read_parquet(run_folder(settings, run_id) / "candidates")
    return rows.sort_values("event_id", ignore_index=True)


def fresh(settings, spec) -> None:
    shutil.rmtree(run_folder(settings, spec.run_id), ignore_errors=True)


@pytest.fixture(scope="module")
def made(config):
    """One generation with one worker; gives (spec, report, candidates)."""
    settings = project(config, batch_size=64, partitions=5)
    spec = plan_run(settings, version=1)
    report = generate(settings, spec)
    return spec, report, candidates(settings, spec.run_id)


def test_the_report_adds_up_and_the_run_is_written_down(config, made):
    settings = project(config)
    spec, report, rows = made
    assert report.run_id == spec.run_id
    assert report.drawn == 2 * report.contexts == report.events + sum(report.dropped.values())
    assert (report.events, report.users, report.items) == (len(rows), rows["user_id"].nunique(), rows["item_id"].nunique())
    assert 0 < report.coverage <= 1
    assert report.bucket_distance["after"] < report.bucket_distance["before"]
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    folder = run_folder(settings, spec.run_id)
    assert json.loads((folder / "run.json").read_text()) == spec.to_json()
    with Ledger.open(settings) as ledger:
        states = [step.to_state for step in ledger.transitions(spec.run_id)][:3]
        assert states == [RunState.PLANNED, RunState.GENERATING, RunState.GENERATED]
        assert ledger.run(spec.run_id).lease_owner is None


def test_half_of_the_events_stay_and_their_buckets_come_nearer(config, made):
    spec, report, rows = made
    assert len(rows) >= 0.5 * (len(rows) + report.dropped["alignment"])
    real = Lake.open(project(config)).read(Table.TARGET_EVENTS).to_pandas()["item_id"].value_counts()
    # The mean popularity of what is proposed moves towards that of what is really consumed.
    settings = project(config)
    staged = pd.read_parquet(run_folder(settings, spec.run_id) / "parts")
    want = (real * real).sum() / real.sum()
    before, after = (frame["item_id"].map(real).mean() for frame in (staged, rows))
    assert abs(after - want) < abs(before - want)


def test_three_workers_and_large_batches_give_the_same_events(config, made):
    spec, report, rows = made
    settings = project(config, workers=3, batch_size=1024, partitions=7)
    assert plan_run(settings, version=1) == spec
    fresh(settings, spec)
    again = generate(settings, spec)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)
    assert (again.events, again.dropped) == (report.events, report.dropped)
    schema = pq.read_schema(part_path(run_folder(settings, spec.run_id) / "candidates", 0))
    assert schema.equals(Lake.open(settings).schema(Table.SYNTHETIC_TARGET_EVENTS)) or schema.names == rows.columns.to_list()


def test_a_finished_generation_is_left_as_it_is(config, made):
    spec, _, rows = made
    settings = project(config)
    first = generate(settings, spec)
    files = sorted((run_folder(settings, spec.run_id) / "candidates").glob("*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]
    again = generate(settings, spec)
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (again.parts_made, again.events) == (0, first.events)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


def test_missing_and_damaged_parts_are_made_again_and_others_kept(config, made):
    spec, _, rows = made
    settings = project(config)
    generate(settings, spec)
    folder = run_folder(settings, spec.run_id)
    parts = [part_path(folder / "parts", number) for number in range(4)]
    if not parts[3].exists() or (folder / "parts").glob("part-00004*"):
        fresh(settings, spec)
        generate(settings, spec)
    before = [part.stat().st_mtime_ns for part in parts]
    parts[0].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    part_path(folder / "candidates", 1).unlink()
    report = generate(settings, spec)
    after = [part.stat().st_mtime_ns for part in parts]
    assert (report.parts_made, report.parts_kept) == (2, 2)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, False, True]
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


def test_without_alignment_everything_staged_is_a_candidate(config):
    settings = project(config, workers=2, align=False)
    spec = plan_run(settings, version=1)
    report = generate(settings, spec)
    staged = pd.read_parquet(run_folder(settings, spec.run_id) / "parts").sort_values("event_id", ignore_index=True)
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), staged)
    assert report.dropped["alignment"] == 0


def test_a_causal_run_over_a_late_window(config):
    settings = project(config)
    end = plan_run(settings, version=1).end
    settings = project(config, mode="causal", start=end, end=end + pd.Timedelta(days=2))
    lake = Lake.open(settings)
    rows = lake.read(Table.SOURCE_EVENTS).slice(0, 50).to_pandas()
    rows["event_timestamp"] = rows["created_timestamp"] = end + pd.Timedelta(hours=1)
    folder = settings.base.with_name("causal")
    shutil.copytree(settings.base, folder)
    shutil.rmtree(folder / ".scalr" / "feature_repo")
    settings = project(folder / config.name, mode="causal", start=end, end=end + pd.Timedelta(days=2))
    import pyarrow as pa

    from scalr_prod.feast_store import apply_feature_repo
    from scalr_prod.histories import build_histories

    lake = Lake.open(settings)
    schema = lake.schema(Table.SOURCE_EVENTS)
    lake.append(Table.SOURCE_EVENTS, pa.Table.from_pandas(rows, schema=schema, preserve_index=False), key="next day")
    build_histories(settings)
    apply_feature_repo(settings)
    spec = plan_run(settings, version=1)
    assert spec.translator_trained_until <= spec.start
    report = generate(settings, spec)
    assert report.contexts == len(rows.drop_duplicates(["user_id", "item_id"]))
    assert 0 < report.events <= report.drawn


def test_a_lost_worker_costs_no_event(config, made):
    spec, _, rows = made
    settings = project(config, workers=2, partitions=16)
    fresh(settings, spec)
    parts = run_folder(settings, spec.run_id) / "parts"
    killed = threading.Event()

    def kill_one() -> None:
        while not any(parts.glob("part-*.parquet")):
            time.sleep(0.02)
        workers = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
        workers[-1].kill()
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    report = generate(settings, spec)
    assert killed.is_set()
    assert report.parts_made == 16
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


DRIVER = """
import sys
from scalr_prod.generation import generate, plan_run
from scalr_prod.settings import load_settings
if __name__ == "__main__":
    settings = load_settings(
        sys.argv[1],
        generation={"partitions": 16},
        compute={"workers": 1},
        serving={"scorer": "local", "threads": 1},
    )
    generate(settings, plan_run(settings, version=1))
"""


def test_a_killed_driver_s_run_goes_on_from_where_it_stopped(config, made, tmp_path):
    spec, _, rows = made
    settings = project(config, workers=2, partitions=16)
    fresh(settings, spec)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(config)], start_new_session=True)
    parts = run_folder(settings, spec.run_id) / "parts"
    deadline = time.monotonic() + 300
    while len(list(parts.glob("_part-*.json"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    with Ledger.open(settings) as ledger:
        owner = ledger.run(spec.run_id).lease_owner
        assert owner is not None
        ledger.release_lease(spec.run_id, owner)  # else: it runs out by itself
    report = generate(settings, spec)
    assert report.parts_kept >= 2
    assert report.parts_made >= 1
    assert report.parts_made + report.parts_kept == 16
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


def test_two_drivers_do_not_work_on_one_run(config, made):
    spec, _, _ = made
    settings = project(config)
    with (
        Ledger.open(settings) as ledger,
        ledger.lease(spec.run_id, owner="another host"),
        pytest.raises(LedgerError, match="another host"),
    ):
        generate(settings, spec)


def test_any_scheduler_s_address_works(config, made):
    from distributed import LocalCluster

    spec, _, rows = made
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        settings = project(config, dask=cluster.scheduler_address, partitions=6)
        fresh(settings, spec)
        assert generate(settings, spec).parts_made == 6
    pd.testing.assert_frame_equal(candidates(settings, spec.run_id), rows, rtol=0, atol=1e-5)


def test_a_scheduler_that_does_not_answer(config, made):
    spec, _, _ = made
    settings = project(config, dask="tcp://127.0.0.1:9", connect=1)
    fresh(settings, spec)
    started = time.monotonic()
    with pytest.raises(SchedulerUnreachable, match=r"does not answer within 1 s") as caught:
        generate(settings, spec)
    assert time.monotonic() - started < 15
    assert "tcp://127.0.0.1:9" in caught.value.where
    assert "dask scheduler" in caught.value.next_step
    assert not list((run_folder(settings, spec.run_id) / "parts").iterdir())


def test_a_scheduler_without_workers(config, made):
    from distributed import LocalCluster

    spec, _, _ = made
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster:
        settings = project(config, dask=cluster.scheduler_address, connect=1)
        fresh(settings, spec)
        with pytest.raises(SchedulerUnreachable, match="has no worker"):
            generate(settings, spec)


def test_a_task_s_own_error_reaches_the_user_unchanged(config, made):
    spec, _, _ = made
    settings = project(config)
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
        assert ledger.run(spec.run_id).state is RunState.GENERATING


def test_histories_that_moved_on_are_not_mixed_in(config, made):
    spec, _, _ = made
    settings = project(config)
    fresh(settings, spec)
    older = {**spec.table_versions, "source_user_history": spec.table_versions["source_user_history"] - 1}
    moved = type(spec).make(
        **{name: getattr(spec, name) for name in spec.__dataclass_fields__ if name not in {"run_id", "table_versions"}},
        table_versions=older,
    )
    with Ledger.open(settings) as ledger:
        ledger.begin_run(moved)
    with pytest.raises(GenerationError, match="histories were rebuilt") as caught:
        generate(settings, moved)
    assert "scalr generate" in caught.value.next_step
