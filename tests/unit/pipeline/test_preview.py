"""`scalr run --dry-run` before there is anything to look at."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.ingest import changed_inputs
from scalr_prod.pipeline import dry_run, with_light_prerequisites

runner = CliRunner()


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def told(project, *arguments) -> dict:
    done = runner.invoke(app, [*arguments, "--dry-run", "--json", "--config", str(project)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_before_anything_was_made_nothing_is(project, settings):
    before = files_of(project.parent)
    found = told(project, "run")
    assert set(found["stages"].values()) == {"run"}
    assert found["window"] == "not known before the logs are read: scalr ingest, scalr histories"
    assert found["seconds_in_all"] is None
    assert found["measured"] == "no earlier run of this project: no duration can be estimated"
    assert files_of(project.parent) == before
    assert not settings.home.exists()


def test_what_is_there_is_told_from_what_is_missing(project, settings):
    with Project(settings) as opened:
        opened.ingest()
        opened.histories()
    before = files_of(settings.home)
    found = told(project, "run")
    assert {name for name, would in found["stages"].items() if would == "check"} == {"ingest", "histories"}
    assert found["contexts"] > found["users"] == 300
    assert found["not_measured"] == ["translator", "generate", "validate", "publish", "late", "dataset"]
    assert told(project, "generate")["stages"] == {"generate": "run"}
    assert files_of(settings.home) == before


def test_where_synthetic_events_weigh_nothing_a_run_would_generate_none(settings_with):
    project = settings_with("[training_set]\nsynthetic_weight = 0\n")
    with Project.open(project) as opened:
        opened.ingest()
        opened.histories()
    found = told(project, "run")
    assert "λ is 0 for all users (set by [training_set] synthetic_weight)" in found["not_generated"]
    assert found["window"] == found["not_generated"]
    assert found["stages"] == {
        **dict.fromkeys(("ingest", "histories"), "check"),
        "translator": "run",
        **dict.fromkeys(("generate", "validate", "publish", "late"), "skip"),
        "dataset": "run",
    }
    with Project.open(project) as opened:
        left_out = {state.stage: state.not_generated for state in opened.status() if state.not_generated}
    assert left_out == dict.fromkeys(("plan", "generate", "validate", "publish", "late"), found["not_generated"])
    assert told(project, "run")["stages"] == found["stages"], "a ledger is there now"
    assert told(project, "generate")["stages"] == {"generate": "run"}


def test_a_log_that_has_grown_is_seen_before_anything_is_read(project, settings):
    with Project(settings) as opened:
        opened.ingest()
        opened.histories()
        assert "reasons" not in opened.dry_run("ingest").to_json()
        log = settings.resolve(settings.domains.source.events)
        rows = pq.read_table(log)
        pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), log)
        found = opened.dry_run().to_json()
        assert found["stages"]["ingest"] == found["stages"]["histories"] == "run"
        assert found["reasons"]["ingest"] == f"source: {log.name} changed"
        assert found["reasons"]["histories"] == "after ingest"
        opened.ingest()
        assert opened.dry_run("ingest").to_json()["stages"] == {"ingest": "check"}


def test_a_delta_log_that_has_grown_is_seen_before_anything_is_read(settings, tmp_path):
    rows = pq.read_table(settings.resolve(settings.domains.source.events))
    write_deltalake(tmp_path / "log", rows)
    source = settings.domains.source.model_copy(update={"events": str(tmp_path / "log")})
    settings = settings.model_copy(update={"domains": settings.domains.model_copy(update={"source": source})})
    with Project(settings) as opened:
        opened.ingest()
        assert changed_inputs(settings) == {}
        write_deltalake(tmp_path / "log", rows.slice(0, 1), mode="append")
        assert opened.dry_run("ingest").to_json()["reasons"] == {"ingest": "source: 00000000000000000001.json changed"}


def test_other_settings_of_a_log_are_seen(settings_with):
    with Project.open(settings_with("")) as opened:
        opened.ingest()
    domains = opened.settings.domains
    target = domains.target.model_copy(update={"max_user_day": 3})
    other = opened.settings.model_copy(update={"domains": domains.model_copy(update={"target": target})})
    assert dry_run(other, with_light_prerequisites("ingest")).reasons == {
        "ingest": "target: [domains.target] or [users] changed"
    }


def test_a_query_or_a_home_of_before_tells_nothing(settings):
    with Project(settings) as opened:
        opened.ingest()
    (settings.home / "ingested.json").unlink()
    assert changed_inputs(settings) is None
    assert dry_run(settings, with_light_prerequisites("ingest")).to_json()["stages"] == {"ingest": "check"}
