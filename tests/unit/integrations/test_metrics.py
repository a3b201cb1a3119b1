"""What Prometheus is told of a project: all of it from what is kept, and whatever goes wrong with that fails no stage."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.ledger_runs import T0, make_spec, to_state, validated

from scalr_prod.config.settings import load_settings
from scalr_prod.core.atomic_io import write_json
from scalr_prod.errors import PublicationError, QualityGateFailed, RunNotFound, ScalrError, SettingsError, TableNotFound
from scalr_prod.generation.generation import GenerationReport
from scalr_prod.integrations.metrics import METRICS, export_metrics
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.ledger.orm_tables import TransitionRow
from scalr_prod.pipeline import PipelineContext, Stage, execute_stages
from scalr_prod.project import Project
from scalr_prod.quality.gate_report import GateReport, RuleOutcome
from scalr_prod.serving.client.latency import BUCKET_BOUNDS_S, LatencyHistogram, merge_histograms

ROOT = Path(__file__).resolve().parents[3]


def taken(*seconds: float) -> dict:
    latencies = LatencyHistogram()
    for one in seconds:
        latencies.observe(one)
    return latencies.drain()


def generation(run_id: str, **more) -> dict:
    dropped = {"below_lift": 20, "duplicate": 10}
    report = GenerationReport(
        run_id, 50, 100, dropped, 70, 9, 8, coverage=0.25, seconds=2.0, events_per_s=35.0, parts_made=2, **more
    )
    return {"partitions": 2, "report": report.to_json()}


def gate(run_id: str) -> dict:
    figures = {"coverage": 0.5, "drift_probability": 0.125, "drift_reference": "run_before"}
    rules = [RuleOutcome("item_known", "", "row", success=False, checked=70, failed=3)]
    return {
        "inputs": {},
        "report": GateReport(
            run_id, passed=True, policy="quarantine", rows=70, accepted=66, quarantined=3, rules=rules, figures=figures
        ).to_json(),
    }


@pytest.fixture
def measured(project):
    """Settings of a project with a textfile and a full ledger: one run published, one rejected, a translator, a training set."""
    settings = load_settings(project, metrics={"textfile": "scalr.prom"})
    with Ledger.open(settings) as ledger:
        run_id = validated(ledger)
        for number, seconds in enumerate(((0.002, 0.04), (0.04, 700.0))):
            ledger.runs.record_partitions(run_id, [(number, {"rows": 35, "sha256": str(number), "scoring": taken(*seconds)})])
        intent = ledger.publications.record_intent(run_id, base_version=0, rows=66, replaced={})
        ledger.publications.confirm(run_id, attempt=intent.attempt, delta_version=1, rows=66, cause="test")
        other = ledger.runs.begin(make_spec(seed=1)).run_id
        to_state(ledger, other, RunState.REJECTED)
        known = {"path": "/m", "sha256": "ab", "fingerprint": "f"}
        ledger.models.record(1, trained_until=T0, metrics={}, **known)
        for version in (1, 2):
            ledger.datasets.record(
                "training_set", version, path="/d", fingerprint=str(version), rows=version * 10, cutoff=T0, manifest={}
            )
    write_json(run_folder(settings.home, run_id) / "generation.json", generation(run_id))
    write_json(run_folder(settings.home, run_id) / "gate.json", gate(run_id))
    return settings


def read(settings) -> dict[tuple, float]:
    text = settings.resolve(settings.metrics.textfile).read_text()
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "project")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_says_what_is_kept(measured):
    execute_stages(PipelineContext(measured), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    found = read(measured)
    window_end = (T0 + timedelta(days=1)).timestamp()
    expected = {
        ("scalr_events_published_total",): 66,
        ("scalr_gate_verdicts_total", "passed"): 1,
        ("scalr_gate_verdicts_total", "rejected"): 1,
        ("scalr_runs", "published"): 1,
        ("scalr_runs", "rejected"): 1,
        ("scalr_runs", "planned"): 0,
        ("scalr_generation_events_per_second",): 35,
        ("scalr_generation_contexts",): 50,
        ("scalr_generation_dropped", "below_lift"): 20,
        ("scalr_generation_coverage",): 0.25,
        ("scalr_generation_left_out",): 0,
        ("scalr_gate_rows", "accepted"): 66,
        ("scalr_gate_rows", "quarantined"): 3,
        ("scalr_gate_rows", "refused"): 1,
        ("scalr_gate_rule_failed_rows", "item_known"): 3,
        ("scalr_drift_psi", "probability"): 0.125,
        ("scalr_window_end_timestamp_seconds",): window_end,
        ("scalr_training_set_rows", "training_set"): 20,
        ("scalr_training_set_cutoff_timestamp_seconds", "training_set"): T0.timestamp(),
        ("scalr_translator_trained_until_timestamp_seconds",): T0.timestamp(),
        ("scalr_scoring_latency_seconds_count",): 4,
        ("scalr_scoring_latency_seconds_bucket", "0.0025"): 1,
        ("scalr_scoring_latency_seconds_bucket", "0.05"): 3,
        ("scalr_scoring_latency_seconds_bucket", "60.0"): 3,
        ("scalr_scoring_latency_seconds_bucket", "+Inf"): 4,
        ("scalr_stage_failed", "ingest"): 0,
        ("scalr_stage_runs_total", "done", "ingest"): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["scalr_publication_timestamp_seconds",] == pytest.approx(time.time(), abs=300)
    lag = found["scalr_publication_timestamp_seconds",] - window_end
    assert found["scalr_publication_lag_seconds",] == pytest.approx(lag, abs=0.01)
    assert found["scalr_training_set_timestamp_seconds", "training_set"] == pytest.approx(time.time(), abs=300)
    assert found["scalr_scoring_latency_seconds_sum",] == pytest.approx(700.082)


def test_what_shortlists_left_out_is_told(measured):
    with Ledger.open(measured) as ledger:
        run_id = next(run.run_id for run in ledger.runs.find() if run.state is RunState.PUBLISHED)
    write_json(run_folder(measured.home, run_id) / "generation.json", generation(run_id, left_out=0.125, measured=96))
    execute_stages(PipelineContext(measured), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    assert read(measured)["scalr_generation_left_out",] == 0.125


def test_each_metric_there_is_is_given_with_its_project(measured):
    execute_stages(PipelineContext(measured), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    families = list(text_string_to_metric_families(measured.resolve("scalr.prom").read_text()))
    kinds = {name: metric.kind for name, metric in METRICS.items() if name != "scalr_stage_heartbeat_timestamp_seconds"}
    assert {family.name: family.type for family in families} == kinds
    for family in families:
        assert all(sample.labels["project"] == "gadgets_to_dishes" for sample in family.samples)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ScalrError("broke"), "failed"), (QualityGateFailed("no"), "rejected"), (KeyboardInterrupt(), "interrupted")],
)
def test_how_a_stage_ended_is_told_and_its_error_is_its_own(measured, error, outcome):
    def fails(_):
        raise error

    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            execute_stages(PipelineContext(measured), [Stage("validate", (), "", "", fails, lambda _: True)])
        assert caught.value is error
    found = read(measured)
    assert found["scalr_stage_failed", "validate"] == 1
    assert found["scalr_stage_runs_total", outcome, "validate"] == 2
    execute_stages(PipelineContext(measured), [Stage("validate", (), "", "", lambda _: None, lambda _: True)])
    assert read(measured)["scalr_stage_failed", "validate"] == 0


def test_a_light_stage_is_told_of_where_it_fails_and_of_the_first_success_after_it(measured):
    def fails(_):
        raise ScalrError("broke")

    def light(work=lambda _: None):
        return [Stage("feast", (), "", "", work, lambda _: True, light=True)]

    execute_stages(PipelineContext(measured), light())
    assert not measured.resolve("scalr.prom").exists()
    with pytest.raises(ScalrError, match="broke"):
        execute_stages(PipelineContext(measured), light(fails))
    assert read(measured)["scalr_stage_failed", "feast"] == 1
    for _ in range(2):  # the second success is no news
        execute_stages(PipelineContext(measured), light())
        found = read(measured)
        assert found["scalr_stage_failed", "feast"] == 0
        assert found["scalr_stage_runs_total", "done", "feast"] == 1


def test_the_history_is_counted_where_it_lies(measured):
    """Of thousands of runs, it is tens of thousands of rows: none is read to count them."""
    loaded = []
    sa.event.listen(TransitionRow, "load", note := lambda row, _: loaded.append(row))
    try:
        assert export_metrics(measured)
        assert not loaded
        with Ledger.open(measured) as ledger:
            changes = ledger.changes.find(subject="run")
        assert len(loaded) == len(changes)
    finally:
        sa.event.remove(TransitionRow, "load", note)


def test_a_project_with_nothing_yet_has_metrics_too(project):
    settings = load_settings(project, metrics={"textfile": "scalr.prom"})
    assert export_metrics(settings)
    assert read(settings)["scalr_runs", "published"] == 0


def test_ends_noted_side_by_side_are_all_counted(measured):
    from scalr_prod.pipeline.stage_outcomes import read_stage_outcomes, record_stage_outcome

    threads = [threading.Thread(target=record_stage_outcome, args=(measured, "ingest", "done", 1.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_stage_outcomes(measured)["ingest"]["counts"] == {"done": 8}


class Gateway(BaseHTTPRequestHandler):
    """Takes a push as a push gateway does, and keeps it."""

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.pushed.append((self.path, self.headers.get("Authorization"), body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Keep stderr clean."""


@pytest.fixture
def gateway():
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    server.pushed, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_metrics_are_pushed(measured, gateway):
    url = f"http://me:secret@127.0.0.1:{gateway.server_port}/prefix"
    settings = measured.with_sections(metrics={"push": url})
    assert export_metrics(settings)
    ((path, authorization, body),) = gateway.pushed
    assert path == "/prefix/metrics/job/scalr/project/gadgets_to_dishes"
    assert authorization == "Basic bWU6c2VjcmV0"
    assert 'scalr_events_published_total{project="gadgets_to_dishes"} 66.0' in body


@pytest.mark.parametrize(("user", "sent"), [("m%40e:p%40s%5Bs", "m@e:p@s[s"), ("token", "token:"), ("me:", "me:")])
def test_a_user_and_a_password_are_sent_unquoted(measured, gateway, user, sent):
    settings = measured.with_sections(metrics={"push": f"http://{user}@127.0.0.1:{gateway.server_port}"})
    assert export_metrics(settings)
    ((_, authorization, _),) = gateway.pushed
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == sent


@pytest.mark.parametrize("url", ["http://user:p[w@127.0.0.1:9", "http://user:1/w@host", "http://user:p@w@host", "http://:9"])
def test_a_gateway_that_cannot_be_read_is_refused_and_not_repeated(project, url):
    with pytest.raises(SettingsError, match=r"\[metrics\] push") as caught:
        load_settings(project, metrics={"push": url})
    assert url.partition("://")[2] not in str(caught.value)
    assert "p[w" not in str(caught.value)


def test_a_ledger_url_that_no_parser_reads_fails_no_stage(project, caplog):
    url = "postgresql://me:p[w%5Dhush@127.0.0.1:1/ledger"
    settings = load_settings(project, metrics={"textfile": "scalr.prom"}, ledger={"url": url})
    job = execute_stages(PipelineContext(settings), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    assert "ingest" in job.seconds
    assert "metrics were not exported to scalr.prom" in caplog.text
    assert "hush" not in caplog.text


def test_what_fails_is_a_warning_without_the_password_and_fails_no_stage(measured, gateway, caplog):
    gateway.status = 500
    url = f"http://me:secret@127.0.0.1:{gateway.server_port}"
    settings = measured.with_sections(metrics={"push": url, "textfile": "no/such/folder/scalr.prom"})
    job = execute_stages(PipelineContext(settings), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    assert "ingest" in job.seconds
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("no/such/folder" in line for line in warned)
    assert any("push gateway" in line and "500" in line for line in warned)
    assert "secret" not in caplog.text


def test_without_a_place_nothing_is_written(project):
    settings = load_settings(project)
    execute_stages(PipelineContext(settings), [Stage("ingest", (), "", "", lambda _: None, lambda _: True)])
    assert not (settings.home / "stages.json").exists()


@pytest.mark.parametrize("bad", [{"textfile": "scalr.txt"}, {"push": "gateway:9091"}])
def test_impossible_places_are_refused(project, bad):
    with pytest.raises(ScalrError, match=next(iter(bad))):
        load_settings(project, metrics=bad)


def test_a_rollback_is_told_and_one_that_is_refused_is_none(measured):
    with Project(measured) as opened:
        (rejected,), (published,) = (opened.ledger.runs.find(state=state) for state in (RunState.REJECTED, RunState.PUBLISHED))
        for run_id, error in (("run_0000000000000000", RunNotFound), (rejected.run_id, PublicationError)):
            with pytest.raises(error):
                opened.rollback(run_id)
            assert not measured.resolve("scalr.prom").exists()
        with pytest.raises(TableNotFound):  # the lake is gone
            opened.rollback(published.run_id)
    assert read(measured)["scalr_stage_failed", "rollback"] == 1


def test_latencies_of_other_bounds_are_left_out():
    former = replace_bounds(taken(0.04))
    assert merge_histograms([taken(0.04, 0.04), former])["counts"] == taken(0.04, 0.04)["counts"]
    assert merge_histograms([])["counts"] == [0] * (len(BUCKET_BOUNDS_S) + 1)


def replace_bounds(one: dict) -> dict:
    return one | {"bounds": [1.0], "counts": [1, 0]}


def known_names() -> set[str]:
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, metric in METRICS.items() for suffix in suffixes[metric.kind]}


def queries() -> list[tuple[str, str]]:
    dashboard = json.loads((ROOT / "deploy/grafana/scalr.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    (project,) = [one for one in dashboard["templating"]["list"] if one["name"] == "project"]
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    return [*found, ("variable", project["query"]), *((rule["alert"], rule["expr"]) for rule in rules)]


def used(expression: str) -> list[tuple[str, set[str]]]:
    """Metrics of a query, each with the labels that it is filtered by."""
    found = re.findall(r"\b(scalr_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)=~?\"", braces))) for name, braces in found]


@pytest.mark.parametrize(("where", "expression"), queries())
def test_every_query_names_a_metric_and_labels_that_there_are(where, expression):
    assert used(expression), expression
    for name, labels in used(expression):
        assert name in known_names(), where
        base = re.sub(r"_(total|bucket|sum|count)$", "", name) if name not in METRICS else name
        assert labels <= {"project", *METRICS[base].labels}, where


def test_every_metric_is_on_the_dashboard_or_in_an_alert():
    names = {name for _, expression in queries() for name, _ in used(expression)}
    seen = {name for name in METRICS if any(one == name or one.startswith(f"{name}_") for one in names)}
    assert set(METRICS) - seen == {
        "scalr_publication_timestamp_seconds",
        "scalr_training_set_cutoff_timestamp_seconds",
    }


def test_the_document_lists_every_metric_and_every_alert():
    text = (ROOT / "docs/guides/observability.md").read_text()
    documented = dict(re.findall(r"^\| `(scalr_\w+)` \| (\w+) \|", text, flags=re.MULTILINE))
    assert documented == {
        name + ("_total" if metric.kind == "counter" else ""): metric.kind for name, metric in METRICS.items()
    }
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    assert re.findall(r"^\| `(Scalr\w+)` \|", text, flags=re.MULTILINE) == [rule["alert"] for rule in rules]
