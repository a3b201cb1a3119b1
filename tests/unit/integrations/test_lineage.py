"""What a stage wrote is told as OpenLineage has it: which version of which table, from what, and how the stage ended."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.core.commit_events import emit_commit
from scalr_prod.errors import ScalrError, SettingsError
from scalr_prod.integrations import lineage
from scalr_prod.integrations.lineage import _dataset_name
from scalr_prod.lake import Lake
from scalr_prod.pipeline import PipelineContext, Stage, execute_stages
from scalr_prod.project import Project
from scalr_prod.schemas import Table


def events(settings) -> list[dict]:
    return [json.loads(line) for line in settings.resolve("lineage.jsonl").read_text().splitlines()]


@pytest.fixture
def settings(project):
    return load_settings(project, lineage={"file": "lineage.jsonl"})


def nothing(name: str = "ingest", work=lambda _: None, **more) -> Stage:
    return Stage(name, (), "", "", work, lambda _: True, **more)


def test_every_table_that_a_stage_wrote_is_told_with_its_version(settings, two_domains):
    with Project(settings) as opened:
        opened.ingest()
        opened.histories()
        opened.ingest()  # nothing is new
    lake = Lake.open(settings)
    told = events(settings)
    assert [(one["job"]["name"].split(".")[1], one["eventType"]) for one in told] == [
        ("ingest", "START"),
        ("ingest", "COMPLETE"),
        ("histories", "START"),
        ("histories", "COMPLETE"),
        ("ingest", "START"),
        ("ingest", "COMPLETE"),
    ]
    assert {one["job"]["name"].split(".")[0] for one in told} == {"gadgets_to_dishes"}
    assert {one["job"]["namespace"] for one in told} == {"scalr"}
    ids = [one["run"]["runId"] for one in told]
    assert ids[::2] == ids[1::2]
    assert len(set(ids)) == 3
    assert all(datetime.fromisoformat(one["eventTime"]).tzinfo for one in told)
    assert told[1]["outputs"]
    for one in told:
        for output in one["outputs"]:
            folder = output["name"].rsplit("/", 1)
            assert output["namespace"] == "file"
            assert folder[0] == settings.lake_url
            assert output["facets"]["version"]["datasetVersion"] == str(lake.version(Table(folder[1])))
    written = [{output["name"].rsplit("/", 1)[1] for output in one["outputs"]} for one in told]
    assert written[1] == {"source_events", "target_events", "source_items", "target_items"}
    assert written[3] == {"source_user_history", "target_user_history", "target_item_stats"}
    assert not written[5]
    assert {one["name"] for one in told[1]["inputs"]} == {str(two_domains.source), str(two_domains.target)}
    assert {one["name"].rsplit("/", 1)[1] for one in told[3]["inputs"]} == {"source_events", "target_events"}


def test_a_failure_is_told_with_what_was_written_before_it(settings):
    def fails(_):
        emit_commit("s3://bucket/lake/source_events", 4)
        raise ScalrError("broke", next_step="mend it")

    with pytest.raises(ScalrError, match="broke"):
        execute_stages(PipelineContext(settings), [nothing(work=fails)])
    last = events(settings)[-1]
    assert last["eventType"] == "FAIL"
    assert "broke" in last["run"]["facets"]["errorMessage"]["message"]
    assert [(one["namespace"], one["name"]) for one in last["outputs"]] == [("s3://bucket", "lake/source_events")]


def test_a_signal_is_told_as_one(settings):
    def stopped(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_stages(PipelineContext(settings), [nothing(work=stopped)])
    assert events(settings)[-1]["eventType"] == "ABORT"


def test_a_stage_within_a_stage_tells_of_its_own_tables_alone(settings):
    def outer(job):
        execute_stages(job, [nothing("publish", lambda _: emit_commit("/lake/inner", 1))])
        emit_commit("/lake/outer", 2)

    execute_stages(PipelineContext(settings), [nothing("late", outer)])
    ended = {one["job"]["name"].split(".")[1]: one for one in events(settings) if one["eventType"] == "COMPLETE"}
    assert {name: [output["name"] for output in one["outputs"]] for name, one in ended.items()} == {
        "publish": ["/lake/inner"],
        "late": ["/lake/outer"],
    }


class Server(BaseHTTPRequestHandler):
    """Takes events as a lineage server does, and keeps them."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, self.headers.get("Authorization"), json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Keep stderr clean."""


@pytest.fixture
def server():
    found = HTTPServer(("127.0.0.1", 0), Server)
    found.taken, found.status = [], 201
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_server_gets_the_events_with_its_key(project, server):
    url = f"http://127.0.0.1:{server.server_port}"
    settings = load_settings(project, lineage={"url": url, "api_key": "secret-key", "namespace": "shop"})
    execute_stages(PipelineContext(settings), [nothing()])
    assert [(path, key, body["eventType"]) for path, key, body in server.taken] == [
        ("/api/v1/lineage", "Bearer secret-key", "START"),
        ("/api/v1/lineage", "Bearer secret-key", "COMPLETE"),
    ]
    assert server.taken[0][2]["job"] == {"facets": {}, "name": "gadgets_to_dishes.ingest", "namespace": "shop"}


def test_what_fails_is_a_warning_without_the_key_and_fails_no_stage(project, server, caplog):
    server.status = 403
    url = f"http://127.0.0.1:{server.server_port}"
    settings = load_settings(project, lineage={"url": url, "api_key": "secret-key", "file": "no/such/folder/x.jsonl"})
    job = execute_stages(PipelineContext(settings), [nothing()])
    assert "ingest" in job.seconds
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("the server of lineage" in line and "403" in line for line in warned)
    assert any("the file of lineage" in line and "no/such/folder" in line for line in warned)
    assert "secret-key" not in caplog.text


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def test_a_server_that_does_not_answer_is_waited_for_once(project, silent, monkeypatch, caplog):
    monkeypatch.setattr(lineage, "_TIMEOUT_S", 0.5)
    settings = load_settings(project, lineage={"url": f"http://127.0.0.1:{silent.getsockname()[1]}", "file": "lineage.jsonl"})
    inner = nothing("publish", lambda job: execute_stages(job, [nothing("late")]) and None)
    execute_stages(PipelineContext(settings), [nothing(), inner])
    connections = []
    silent.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            connections.append(silent.accept()[0])
    for one in connections:
        one.close()
    assert len(connections) == 1
    assert len([record for record in caplog.records if "the server of lineage" in record.getMessage()]) == 1
    assert len(events(settings)) == 6
    execute_stages(PipelineContext(settings), [nothing()])  # another walk asks again
    assert len([record for record in caplog.records if "the server of lineage" in record.getMessage()]) == 2


def test_a_server_that_refuses_is_asked_once(project, server):
    server.status = 503
    settings = load_settings(project, lineage={"url": f"http://127.0.0.1:{server.server_port}"})
    execute_stages(PipelineContext(settings), [nothing(), nothing("histories")])
    assert len(server.taken) == 1


def test_a_url_that_cannot_be_read_is_refused_and_not_repeated(project):
    with pytest.raises(SettingsError, match=r"\[lineage\] url") as caught:
        load_settings(project, lineage={"url": "http://user:p[w@127.0.0.1:9"})
    assert "p[w" not in str(caught.value)


def test_light_stages_and_projects_without_a_place_tell_nothing(settings, project):
    execute_stages(PipelineContext(settings), [nothing("feast", light=True)])
    assert not settings.resolve("lineage.jsonl").exists()
    execute_stages(PipelineContext(load_settings(project)), [nothing()])
    assert not settings.resolve("lineage.jsonl").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/srv/lake/source_events", ("file", "/srv/lake/source_events")),
        ("s3://bucket/lake/source_events", ("s3://bucket", "lake/source_events")),
        ("https://me:secret@host/logs/a.csv", ("https://host", "logs/a.csv")),
        ("s3://key:se[cr/et@bucket/logs", ("s3://bucket", "logs")),
    ],
)
def test_data_sets_are_named_as_openlineage_names_them(uri, expected):
    assert _dataset_name(uri) == expected
