"""The sign of life that a model's process gives from within a batch, and what is read of a server that was started before."""

from __future__ import annotations

import json

import pytest

from scalr_prod.serving.client.keepalive import HEARTBEAT_FOLDER_VARIABLE, Heartbeat, read_heartbeat_count
from scalr_prod.serving.local_server.server_state import heartbeat_folder, read_heartbeats, read_record


def test_the_count_grows_with_each_group_and_begins_anew_with_each_process(tmp_path):
    assert read_heartbeat_count(tmp_path, "translator", 1) == -1
    one, other = Heartbeat("translator", 1, "0", tmp_path), Heartbeat("translator", 12, "0", tmp_path)
    seen = []
    for _ in range(300):
        one.beat()
        seen.append(read_heartbeat_count(tmp_path, "translator", 1))
    other.beat()
    assert seen == list(range(1, 301))
    assert read_heartbeat_count(tmp_path, "translator", 12) == 1
    Heartbeat("translator", 1, "0", tmp_path).beat()
    assert read_heartbeat_count(tmp_path, "translator", 1) == 1


def test_each_process_of_a_version_counts_for_itself(tmp_path):
    one, other = (Heartbeat("translator", 1, instance, tmp_path) for instance in ("0", "1"))
    seen = []
    for beat in (one, one, other, one, other):
        beat.beat()
        seen.append(read_heartbeat_count(tmp_path, "translator", 1))
    assert seen == [1, 2, 3, 4, 5]


def test_without_a_folder_nothing_is_written_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.delenv(HEARTBEAT_FOLDER_VARIABLE, raising=False)
    Heartbeat("translator", 1, "0").beat()
    Heartbeat("translator", 1, "0", tmp_path / "missing").beat()
    assert not list(tmp_path.iterdir())


def test_the_folder_comes_from_the_environment(settings, monkeypatch):
    assert read_heartbeats(settings, 3) == -1
    monkeypatch.setenv(HEARTBEAT_FOLDER_VARIABLE, str(heartbeat_folder(settings)))
    Heartbeat(settings.served_model, 3, "0").beat()
    assert read_heartbeats(settings, 3) == 1


@pytest.mark.parametrize("change", [{"http_url": "127.0.0.1:8000"}, {}])
def test_a_server_that_a_former_package_started_is_known(settings, change):
    found = {
        "url": "unix:/run/scalr/grpc",
        "metrics_url": "",
        "socket_folder": "/run/scalr",
        "pid": 1,
        "created": 0.0,
        "name": "scalr-0",
        "repository": "",
        "log": "",
    }
    path = settings.home / "triton" / "server.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found | {"lasting": True} | change))
    record = read_record(settings)
    assert record is not None
    assert (record.url, record.lasting, record.host) == ("unix:/run/scalr/grpc", True, "")
