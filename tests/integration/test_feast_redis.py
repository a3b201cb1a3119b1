"""The online store of production: a real Redis, filled and emptied through Feast."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest
from feast_project import hours, make_project, synthetic

from scalr_prod.contracts import Table
from scalr_prod.errors import FeatureStoreError
from scalr_prod.feast_store import materialize, open_feature_store
from scalr_prod.lake import Lake
from scalr_prod.settings import load_settings

pytestmark = pytest.mark.slow


def redis_server() -> str:
    """The server's program; installed by apt where this is root, else the test is skipped."""
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    if found := shutil.which("redis-server"):
        return found
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("no redis-server, and no right to install one; install it (Debian: apt-get install redis-server)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
        subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=240, check=False)
    found = shutil.which("redis-server")
    return found or pytest.skip("redis-server could not be installed by apt-get")


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """Address of a Redis of our own, on a free port of the loopback interface, that keeps nothing."""
    program = redis_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, *options, "--dir", str(folder)], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def test_filled_read_and_emptied(redis, tmp_path):
    settings = make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    people = [{"user_id": "a"}, {"user_id": "b"}, {"user_id": "nobody"}]

    def served(*features: str) -> list:
        found = open_feature_store(settings).get_online_features(list(features), people).to_dict()
        return [found[feature.split(":")[1]] for feature in features]

    report = materialize(settings)
    assert report.online_store == "redis"
    lists = served("source_user_history:item_ids", "source_user_history:event_timestamps")
    assert lists == [[["s1", "s2"], ["s1"], None], [hours(1, 2), hours(3), None]]
    assert served("synthetic_target_events:event_id", "synthetic_target_events:probability") == [
        ["e0", "e1", None],
        [0.5, 0.5, None],
    ]

    lake = Lake.open(settings)
    schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
    rows = pa.table(synthetic(["b"], [5], hours(9), "n")).select(schema.names).cast(schema)
    lake.append(Table.SYNTHETIC_TARGET_EVENTS, rows, key="more")
    materialize(settings)
    assert served("synthetic_target_events:event_id") == [["e0", "n0", None]]

    # Feast's Redis store never writes an older row over a newer one: without emptying it, e1 could not come back.
    lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id in ('e0', 'n0')", key="roll back")
    assert materialize(settings).emptied == ("synthetic_target_events",)
    assert served("synthetic_target_events:event_id") == [[None, "e1", None]]
    assert served("source_user_history:item_ids") == [[["s1", "s2"], ["s1"], None]], "other views keep theirs"


def test_a_redis_that_does_not_answer(redis, tmp_path):
    settings = make_project(tmp_path, f'[feast]\nonline_store = "redis"\nredis = "{redis}"\n')
    gone = load_settings(Path(tmp_path) / "scalr.toml", feast={"redis": "127.0.0.1:1"})
    with pytest.raises(FeatureStoreError, match=r"127\.0\.0\.1:1"):
        materialize(gone)
    assert materialize(settings).views
