"""The gate over the rows of a run: every rule is broken once and named, in strict and in quarantine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.examples import sweep
from support.small_project import GATE_TARGET, IDS, Handmade, events, hour, source_rows

from scalr_prod.errors import QualityGateFailed
from scalr_prod.ledger import RunState, run_folder
from scalr_prod.quality import GateReport, validate_run
from scalr_prod.quality.rule_protocol import AuditedRun
from scalr_prod.quality.rules import RowRules
from scalr_prod.schemas import Table, generated_event_schema


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=GATE_TARGET, items=[*(f"t{i}" for i in range(10)), "late", "unseen"])


def setting(column: str, value: object, more: dict | None = None):
    """A row with other values."""
    return lambda row: {**row, column: value, **(more or {})}


def at(when: float):
    return {"source_event_timestamp": hour(when)}


#: Rule → how to break it, and which other rules are broken by that of necessity. Of user u0's rows, which hold no "eaten".
VIOLATIONS = {
    "event_id_is_present": (setting("event_id", None), {"event_id_is_a_hash"}),
    "user_id_is_present": (setting("user_id", None), {"source_event_is_real_and_known"}),
    "item_id_is_present": (setting("item_id", None), {"item_is_in_the_catalogue", "item_was_seen_before"}),
    "event_timestamp_is_present": (
        setting("event_timestamp", None),
        {"event_is_in_the_window", "event_is_at_the_source_event", "item_was_seen_before"},
    ),
    "probability_is_present": (setting("probability", None), {"probability_is_in_range"}),
    "weight_is_present": (setting("weight", None), {"weight_is_in_range"}),
    "source_domain_is_present": (setting("source_domain", None), {"source_domain_is_one_of_the_runs"}),
    "source_domain_is_one_of_the_runs": (setting("source_domain", "elsewhere"), set()),
    "source_item_id_is_present": (setting("source_item_id", None), {"source_event_is_real_and_known"}),
    "source_event_timestamp_is_present": (
        setting("source_event_timestamp", None),
        {"event_is_at_the_source_event", "source_event_is_real_and_known"},
    ),
    "translator_version_is_present": (setting("translator_version", None), {"translator_is_the_runs"}),
    "run_id_is_present": (setting("run_id", None), {"run_id_matches"}),
    "created_timestamp_is_present": (setting("created_timestamp", None), {"known_from_as_of_on"}),
    "event_id_is_a_hash": (setting("event_id", "xyz"), set()),
    "event_id_is_a_hash (upper case)": (setting("event_id", "A" * 32), set()),
    "event_id_is_unique": (setting("event_id", "first", {"probability": np.float32(0.1)}), set()),
    "user_item_time_is_unique": (setting("user_id", "first", {"probability": np.float32(0.1)}), set()),
    "probability_is_in_range": (setting("probability", np.float32(0)), set()),
    "probability_is_in_range (above)": (setting("probability", np.float32(1.5)), set()),
    "probability_is_in_range (infinite)": (setting("probability", np.float32("inf")), set()),
    "weight_is_in_range": (setting("weight", np.float32(-0.1)), set()),
    "weight_is_in_range (above)": (setting("weight", np.float32(1.1)), set()),
    "event_is_in_the_window": (setting("event_timestamp", hour(40), {**at(40), "source_item_id": "s4"}), set()),
    "event_is_in_the_window (end)": (setting("event_timestamp", hour(100), {**at(100), "user_id": "end"}), set()),
    "known_from_as_of_on": (setting("created_timestamp", hour(101)), set()),
    "event_is_at_the_source_event": (setting("event_timestamp", hour(60.5)), set()),
    "source_event_is_real_and_known": (setting("source_item_id", "s9"), set()),
    "source_event_is_real_and_known (time)": (setting("event_timestamp", hour(60.5), at(60.5)), set()),
    "item_is_in_the_catalogue": (setting("item_id", "nowhere"), {"item_was_seen_before"}),
    "item_is_in_the_catalogue (known later)": (setting("item_id", "hidden"), {"item_was_seen_before"}),
    "item_was_seen_before": (setting("item_id", "late"), set()),
    "item_was_seen_before (never)": (setting("item_id", "unseen"), set()),
    "user_had_not_consumed_it": (setting("item_id", "eaten"), set()),
    "translator_is_the_runs": (setting("translator_version", 2), set()),
    "run_id_matches": (setting("run_id", "run_0000000000000000"), set()),
}


def broken(frame: pd.DataFrame, name: str, row: dict) -> dict:
    """The row, made to break the rule; duplicates copy the key of the first row of the frame."""
    change, _ = VIOLATIONS[name]
    changed = change(row)
    if changed["event_id"] == "first":
        changed["event_id"] = frame.loc[0, "event_id"]
    if changed["user_id"] == "first":
        first = frame.loc[0]
        key = ("user_id", "item_id", "event_timestamp", "source_item_id", "source_event_timestamp")
        changed |= {column: first[column] for column in key}
    return changed


def rows_of(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def test_the_table_names_every_rule_of_a_row(project):
    quality = project.settings.quality
    run = AuditedRun(project.run(), quality, ("source",), exclude_consumed=True, events_per_source_event=2, translator=None)
    rules = {rule.name for rule in RowRules().rules(run)}
    assert {name.split(" ")[0] for name in VIOLATIONS} == rules


def test_a_run_that_keeps_every_rule_passes(project):
    spec = project.run()
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    assert (report.rows, report.accepted, report.quarantined) == (200, 200, 0)
    assert not report.failures
    assert {rule.scope for rule in report.rules} == {"schema", "row", "run"}
    assert report.figures["source_coverage"] == 1.0
    assert project.state(spec.run_id) is RunState.VALIDATED
    accepted = pq.read_table(run_folder(project.settings.home, spec.run_id) / "accepted")
    assert accepted.schema.equals(generated_event_schema(**IDS))
    expected = project.candidates(spec)["event_id"]
    assert sorted(accepted["event_id"].to_pylist()) == sorted(expected)
    docs = Path(report.docs)
    assert spec.run_id in docs.read_text()
    assert GateReport.from_json(json.loads(json.dumps(report.to_json()))).to_json() == json.loads(json.dumps(report.to_json()))
    assert {"rule", "says", "scope"} < report.to_json()["rules"][0].keys(), "keys of gate.json stay as they are"


def test_each_broken_rule_is_the_reason_of_its_row(tmp_path):
    """One row per violation, in one run; every other row passes."""
    source = [*source_rows(), ("end", "s6", 100, 100)]
    items = [*(f"t{i}" for i in range(10)), "late", "unseen"]
    project = Handmade(tmp_path, '[quality]\npolicy = "quarantine"\nmax_quarantine_share = 1.0', source, GATE_TARGET, items)
    spec = project.run(events_per_source_event=100)
    good = project.candidates(spec)
    base = rows_of(good[(good["user_id"] == "u0") & (good["source_item_id"] == "s6")])[0]
    bad, reasons = [], {}
    for number, (name, (_, followers)) in enumerate(VIOLATIONS.items()):
        # An item of its own for each, so that only the violation itself is a duplicate.
        row = broken(good, name, {**base, "event_id": f"{number:032x}", "item_id": f"own{number}"})
        bad.append(row)
        reasons[number] = {name.split(" ")[0]} | followers
    frame = pd.DataFrame(rows_of(good) + bad)
    frame["violation"] = [-1] * len(good) + list(range(len(bad)))
    # The items of their own were seen long before as well.
    own = [("first", f"own{number}", -1000, -1000) for number in range(len(bad))]
    project.lake.append(Table.TARGET_EVENTS, events(own), key="own")
    again = project.run(events_per_source_event=100)
    frame["run_id"] = frame["run_id"].replace(spec.run_id, again.run_id)
    project.write(again, frame.drop(columns="violation"))

    report = validate_run(project.settings, again.run_id)
    assert (report.accepted, report.quarantined) == (len(good), len(bad))
    quarantine = project.lake.read(Table.SYNTHETIC_QUARANTINE).to_pandas()
    assert set(quarantine["run_id"]) == {again.run_id}
    found = [set(reason.split(", ")) for reason in quarantine["reason"]]
    for number, wanted in reasons.items():
        assert wanted in found, (list(VIOLATIONS)[number], found)
        found.remove(wanted)
    assert not found
    assert {rule.rule for rule in report.failures} == set().union(*reasons.values())
    accepted = pq.read_table(run_folder(project.settings.home, again.run_id) / "accepted")["event_id"].to_pylist()
    assert sorted(accepted) == sorted(good["event_id"])


@pytest.mark.parametrize("name", sweep(["user_had_not_consumed_it", "item_was_seen_before", "weight_is_present"], keep=1))
def test_a_broken_rule_is_named_in_strict(project, name):
    spec = project.run()
    frame = project.candidates(spec)
    rows = rows_of(frame)
    rows[0] = broken(frame, name, rows[0])
    assert rows[0]["user_id"] == "u0"
    project.write(spec, pd.DataFrame(rows))
    with pytest.raises(QualityGateFailed) as caught:
        validate_run(project.settings, spec.run_id)
    error = caught.value
    assert error.exit_code == 3
    assert f"{name} (" in error.found
    assert "1 of 200 break it" in error.found
    assert error.where.endswith("data_docs/index.html")
    assert Path(error.where).exists()
    assert error.run_id == spec.run_id
    assert project.state(spec.run_id) is RunState.REJECTED
    folder = run_folder(project.settings.home, spec.run_id)
    report = GateReport.from_json(json.loads((folder / "gate.json").read_text())["report"])
    assert {found.rule for found in report.failures} == {name} | VIOLATIONS[name][1]
    assert not (folder / "accepted").exists()
    failed = next(found for found in report.failures if found.rule == name)
    assert failed.failed == 1
    assert failed.examples[0]["user_id"] == "u0"
    assert not project.lake.read(Table.SYNTHETIC_QUARANTINE).num_rows, "strict puts nothing aside"
