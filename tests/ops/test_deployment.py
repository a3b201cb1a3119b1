"""The whole loop with no part embedded (PostgreSQL, Redis, an S3-compatible store, Dask workers apart), and a restore from a backup.

Each publishes what the embedded default publishes. By `make ops`: servers are started, and the pipeline runs four times.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from support.redis_server import running_redis
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.schemas import Table

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]

SECRET = "planted-secret-key"  # noqa: S105 - an S3 that asks nobody
BUCKET = "the-lake"
TRAINED = datetime(2024, 6, 1, tzinfo=UTC)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process, what):
    """Until it answers, however slow the machine is; the tests' own limit ends it."""
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"{what} ended with {process.returncode}")


@pytest.fixture(scope="module")
def database(postgres):
    return {name: postgres.database(name).render_as_string(hide_password=False) for name in ("ledger", "feast")}


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="module")
def store():
    """Address of an S3-compatible store with one empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "somebody", "aws_secret_access_key": SECRET}
    boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


@contextmanager
def dask_cluster(folder, environment, *, workers):
    """A scheduler and its workers, each a process of its own, with this environment."""
    port, processes = free_port(), []
    folder.mkdir()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": folder}
    try:
        scheduler = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        processes.append(subprocess.Popen([sys.executable, "-m", "dask", *scheduler], **quiet))
        wait_for(port, processes[0], "the Dask scheduler")
        worker = ["worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        processes += [subprocess.Popen([sys.executable, "-m", "dask", *worker], **quiet) for _ in range(workers)]
        yield f"tcp://127.0.0.1:{port}"
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def without_keys():
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def with_keys():
    return {**without_keys(), "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET}


def scalr(config, *arguments, environment):
    command = [str(Path(sys.executable).with_name("scalr")), "-q", *arguments, "--config", str(config), "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)


def published(project):
    rows = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas().sort_values("event_id", ignore_index=True)
    return rows.drop(columns="run_id")


@pytest.fixture(scope="module")
def embedded(make_project, tmp_path_factory):
    """The settings of a project that has run with everything embedded."""
    config = lean(make_project(tmp_path_factory.mktemp("embedded") / "logs", LOCAL, users=80).base / "scalr.toml")
    with Project.open(config) as project:
        project.run()
        assert len(published(project)) > 500
    return config


def deployed(embedded, folder, database, redis, store, dask):
    """The same logs and settings, with every part a server's."""
    shutil.copytree(embedded.parent, folder, ignore=shutil.ignore_patterns(".scalr"))
    config = folder / "scalr.toml"
    places = f"""
[project]
lake = "s3://{BUCKET}/{folder.name}"
name = "{folder.name}"
[project.storage_options]
AWS_ENDPOINT_URL = "{store}"
AWS_REGION = "us-east-1"
AWS_ALLOW_HTTP = "true"
[ledger]
url = "{database["ledger"]}"
[feast]
registry = "{database["feast"]}"
online_store = "redis"
redis = "{redis}"
"""
    config.write_text(places + config.read_text().replace("[compute]\nworkers = 1", f'[compute]\ndask = "{dask}"'))
    return config


def test_the_whole_loop_on_servers_publishes_what_the_embedded_default_does(
    embedded, database, redis, store, tmp_path, monkeypatch
):
    with dask_cluster(tmp_path / "dask", with_keys(), workers=2) as dask:
        config = deployed(embedded, tmp_path / "remote", database, redis, store, dask)
        done = scalr(config, "run", environment=with_keys())
    assert done.returncode == 0, done.stderr[-3000:]
    assert SECRET not in done.stdout + done.stderr
    for name, value in with_keys().items():
        monkeypatch.setenv(name, value)
    with Project.open(embedded) as here, Project.open(config) as there:
        pd.testing.assert_frame_equal(published(there), published(here))
        assert [run.state for run in there.runs()] == ["published"]
        user = published(there)["user_id"].iloc[0]
        online = [
            one.feature_store.get_online_features(["synthetic_target_events:item_id"], [{"user_id": user}]).to_dict()
            for one in (here, there)
        ]
        assert online[0] == online[1]
        rows = [one.training_set().to_pandas() for one in (here, there)]
    pd.testing.assert_frame_equal(*(one.drop(columns=["run_id"], errors="ignore") for one in rows))


def test_a_worker_without_credentials_is_named(embedded, database, redis, store, tmp_path):
    nowhere = {**without_keys(), "AWS_EC2_METADATA_DISABLED": "true", "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}
    with dask_cluster(tmp_path / "dask", nowhere, workers=1) as dask:
        config = deployed(embedded, tmp_path / "blind", database, redis, store, dask)
        done = scalr(config, "run", environment=with_keys())
    assert done.returncode == 1
    said = json.loads(done.stdout)
    text = f"{said['found']} {said['where']} {said['next_step']}"
    assert socket.gethostname() in text
    assert "credentials" in text
    assert said["stage"] == "ingest", "the first stage whose tasks reach the lake"
    assert SECRET not in done.stdout + done.stderr


def test_a_restore_from_a_backup_publishes_the_same_view_and_goes_on_alike(embedded, tmp_path):
    """What docs/guides/runbook.md says to keep: scalr.toml, lake, ledger and models."""
    week = {"mode": "causal", "start": TRAINED, "end": TRAINED + timedelta(days=7), "as_of": TRAINED + timedelta(days=7)}
    home = tmp_path / "original"
    shutil.copytree(embedded.parent, home)
    with Project.open(home / "scalr.toml", generation=week) as project:
        project.train(TRAINED)
    kept = tmp_path / "backup"
    kept.mkdir()
    for name in ("lake", "models"):
        shutil.copytree(home / ".scalr" / name, kept / name)
    for path in (home / ".scalr").glob("ledger*"):
        shutil.copy2(path, kept / path.name)
    for path in (home / ".scalr").glob(".*"):
        if path.is_file():
            shutil.copy2(path, kept / path.name)

    def next_week(place):
        with Project.open(place / "scalr.toml", generation=week) as project:
            before = published(project)
            run_id = project.generate().run_id
            project.validate(run_id)
            project.publish(run_id)
            return before, published(project), project.feature_store.list_feature_views()

    before, after, views = next_week(home)
    shutil.rmtree(home / ".scalr")
    shutil.copytree(kept, home / ".scalr")
    with Project.open(home / "scalr.toml") as project:
        project.histories()
    restored, again, restored_views = next_week(home)
    pd.testing.assert_frame_equal(restored, before)
    pd.testing.assert_frame_equal(again, after)
    assert not after.equals(before), "the next week was published"
    assert sorted(view.name for view in restored_views) == sorted(view.name for view in views)
