"""The gate over a run: quarantine, what is asked of a run as a whole, verdicts that are kept and repeated."""

from __future__ import annotations

import errno
import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from filelock import FileLock
from support.small_project import GATE_TARGET, IDS, QUARANTINE, Handmade, events, source_rows

from scalr_prod.errors import GenerationError, LakeError, LedgerError, QualityError, QualityGateFailed, RunNotFound
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.ledger.orm_tables import ModelVersionRow, ProjectRow
from scalr_prod.publication import publish
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table, generated_event_schema, table_schema

#: An audit takes one to two seconds; these ask more of the same rules and of the same records as the others here.
long = pytest.mark.long


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=GATE_TARGET, items=[*(f"t{i}" for i in range(10)), "late", "unseen"])


def heavier(frame: pd.DataFrame, *rows: int) -> pd.DataFrame:
    """Some rows with an impossible weight."""
    return frame.assign(weight=frame["weight"].where(~frame.index.isin(rows), np.float32(2)))


@long
def test_a_quarantine_is_repeated_without_work_by_the_same_rules(project):
    project.configure(QUARANTINE)
    spec = project.run()
    project.write(spec, heavier(project.candidates(spec), 3, 5))
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    assert (report.rows, report.accepted, report.quarantined) == (200, 198, 2)
    assert project.state(spec.run_id) is RunState.VALIDATED
    version = project.lake.version(Table.SYNTHETIC_QUARANTINE)
    again = validate_run(project.settings, spec.run_id)
    assert again.repeated
    assert again.to_json() | {"repeated": False} == json.loads(json.dumps(report.to_json()))
    assert project.lake.version(Table.SYNTHETIC_QUARANTINE) == version
    path = run_folder(project.settings.home, spec.run_id) / "gate.json"
    stored = json.loads(path.read_text())
    del stored["inputs"]["rules"]
    path.write_text(json.dumps(stored))
    assert not validate_run(project.settings, spec.run_id).repeated, "a verdict by other rules"


@long
@pytest.mark.slow
def test_another_audit_of_a_run_replaces_its_quarantine_and_no_other_runs(project):
    project.configure(QUARANTINE)
    first, second = project.run(seed=1), project.run(seed=2)
    for spec in (first, second):
        project.write(spec, heavier(project.candidates(spec), 3, 5))
        validate_run(project.settings, spec.run_id)
    project.write(first, project.candidates(first).assign(probability=[np.float32(2), *[np.float32(0.1)] * 199]))
    validate_run(project.settings, first.run_id)
    quarantine = project.lake.read(Table.SYNTHETIC_QUARANTINE).to_pandas()
    assert quarantine.groupby("run_id")["reason"].agg(list).to_dict() == {
        first.run_id: ["probability_is_in_range"],
        second.run_id: ["weight_is_in_range"] * 2,
    }
    project.write(first, project.candidates(first))
    validate_run(project.settings, first.run_id)
    assert set(project.lake.read(Table.SYNTHETIC_QUARANTINE)["run_id"].to_pylist()) == {second.run_id}


@long
def test_of_rows_that_share_a_key_the_likelier_one_stays(project):
    project.configure(QUARANTINE)
    spec = project.run()
    frame = project.candidates(spec)
    less, more = ({**frame.loc[row], "event_id": digit * 32} for row, digit in ((0, "0"), (7, "f")))
    less["probability"], more["probability"] = np.float32(0.1), np.float32(0.3)
    project.write(spec, pd.DataFrame([less, *frame.to_dict("records"), more]), parts=3)
    validate_run(project.settings, spec.run_id)
    quarantine = project.lake.read(Table.SYNTHETIC_QUARANTINE)
    assert set(quarantine["event_id"].to_pylist()) == {"0" * 32, frame.loc[7, "event_id"]}
    assert set(quarantine["reason"].to_pylist()) == {"user_item_time_is_unique"}


def fails_on(project: Handmade, run_id: str) -> dict[str, object]:
    with pytest.raises(QualityGateFailed) as caught:
        validate_run(project.settings, run_id)
    report = json.loads((run_folder(project.settings.home, run_id) / "gate.json").read_text())["report"]
    failed = {rule["rule"]: rule["observed"] for rule in report["rules"] if rule["success"] is False}
    for name in failed:
        assert f"{name} (" in caught.value.found
    return failed


def test_too_many_bad_rows_fail_a_quarantine(project):
    project.configure(QUARANTINE)
    spec = project.run()
    project.write(spec, heavier(project.candidates(spec), *range(50)))
    failed = fails_on(project, spec.run_id)
    assert failed["quarantined_share"] == 0.25
    assert project.state(spec.run_id) is RunState.REJECTED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "trained_until", "passes"),
    [
        pytest.param("backfill", 100, True, marks=long),
        pytest.param("backfill", 100.001, False, marks=long),
        pytest.param("causal", 50, True, marks=long),
        ("causal", 50.001, False),
    ],
)
def test_the_translator_may_know_as_much_as_its_mode_says(project, mode, trained_until, passes):
    spec = project.run(mode=mode, trained_until=trained_until)
    if passes:
        assert validate_run(project.settings, spec.run_id).passed
    else:
        assert list(fails_on(project, spec.run_id)) == ["translator_trained_until_limit"]


def change_record(project, spec, change):
    """Change the ledger's record of the run's translator; None: delete it."""
    with Ledger.open(project.settings) as ledger, ledger.database.write_session() as session:
        row = session.get(ModelVersionRow, (session.scalar(sa.select(ProjectRow.id)), "translator", spec.translator_version))
        if change is None:
            session.delete(row)
        for name, value in (change or {}).items():
            setattr(row, name, value)


def test_what_is_wrong_with_a_run_as_a_whole_is_told_with_what_was_found(project):
    """Another translator than the recorded one, more events than asked for, and too few contexts with an event."""
    project.configure("[quality]\nmin_source_coverage = 0.5")
    spec = project.run(events_per_source_event=1)
    project.write(spec, project.candidates(spec).iloc[:80])
    change_record(project, spec, {"sha256": "1" * 64})
    assert fails_on(project, spec.run_id) == {
        "translator_is_the_recorded_one": 1,
        "volume_per_source_event": 2,
        "source_coverage": 0.4,
    }


@long
@pytest.mark.parametrize("change", [{"trained_until": datetime(2024, 1, 1, tzinfo=UTC)}, None])
def test_a_run_whose_translator_is_not_the_recorded_one_fails(project, change):
    spec = project.run()
    change_record(project, spec, change)
    assert fails_on(project, spec.run_id) == {"translator_is_the_recorded_one": 2 if change is None else 1}


@long
def test_coverage_counts_only_what_was_known_by_as_of(tmp_path):
    late = [("u1", f"extra{n}", 60, 5000) for n in range(300)]
    project = Handmade(
        tmp_path, source=[*source_rows(), *late], target=GATE_TARGET, extra="[quality]\nmin_source_coverage = 0.9"
    )
    report = validate_run(project.settings, project.run().run_id)
    assert report.figures["source_events"] == 100


@long
def test_coverage_is_of_the_contexts_asked_where_each_user_is_asked_once(tmp_path):
    """Above a hundred events a user, one context each: well below 1 % of the source events, and all of what was asked."""
    source = [(f"u{k}", f"s{j}", 50 + j / 4, 0) for k in range(100) for j in range(101)]
    project = Handmade(tmp_path, source=source, target=GATE_TARGET)
    spec = project.run(contexts="users")
    last = project.candidates(spec, [row for row in source if row[1] == "s100"])
    frame = last.assign(event_timestamp=spec.end - timedelta(microseconds=1))
    project.write(spec, frame)
    report = validate_run(project.settings, spec.run_id)
    assert (report.figures["source_events"], report.figures["contexts"], report.figures["translated_contexts"]) == (
        10_100,
        100,
        100,
    )
    assert report.figures["source_coverage"] == 1.0
    (rule,) = [rule for rule in report.rules if rule.rule == "source_coverage"]
    assert "window's users led to a synthetic event" in rule.description

    project.configure("[quality]\nmin_source_coverage = 0.6")
    project.write(spec, frame[frame["user_id"].isin([f"u{k}" for k in range(50)])])
    assert fails_on(project, spec.run_id) == {"source_coverage": 0.5}


@long
def test_a_source_event_that_became_known_later_is_no_source_event(tmp_path):
    source = [(*row[:3], 5000) if row[0] == "u3" else row for row in source_rows()]
    project = Handmade(tmp_path, source=source, target=GATE_TARGET)
    spec = project.run()
    with pytest.raises(QualityGateFailed, match=r"source_event_is_real_and_known \(.*10 of 200 break it"):
        validate_run(project.settings, spec.run_id)


def test_a_distribution_far_from_the_real_one_fails(tmp_path):
    """Ten items bear 1, 2, … 10 real events; the run proposes the rarest only."""
    target = [("first", f"t{item}", -1000 + number, 0) for item in range(10) for number in range(item + 1)]
    source = [(f"u{k}", f"s{j}", k % 20 + 10 * j, 0) for k in range(80) for j in range(10)]
    project = Handmade(tmp_path, "[quality]\nmax_user_item_copies = 0\n", source=source, target=target)
    spec = project.run()
    frame = project.candidates(spec, source)
    rare = frame.assign(item_id="t0").drop_duplicates(["user_id", "event_timestamp"])
    project.write(spec, rare)
    failed = fails_on(project, spec.run_id)
    assert list(failed) == ["popularity_is_like_the_real_one"]
    # The middles of the items' 55 events, in tenths: t0 0.1, t1 0.4, t2 0.8 share the first bucket, 6 of the 55 events.
    assert failed["popularity_is_like_the_real_one"] == pytest.approx(1 - 6 / 55)


@long
def test_a_quiet_run_is_judged_with_the_published_events_before_it(tmp_path):
    """Eight users alone are too few for a rule on popularity. Whether the events before are published decides, and the error says so."""
    target = [("first", f"t{item}", -1000 + number, 0) for item in range(10) for number in range(item + 1)]
    source = [(f"u{k}", f"s{j}", k % 20 + 10 * j, 0) for k in range(80) for j in range(10)]
    project = Handmade(tmp_path, source=source, target=target)

    def rarest(spec):
        return project.candidates(spec, source).assign(item_id="t0").drop_duplicates(["user_id", "event_timestamp"])

    quiet = project.run(start=50, end=51)
    project.write(quiet, rarest(quiet))
    report = validate_run(project.settings, quiet.run_id)
    assert {rule.rule for rule in report.rules if rule.success is None} >= {"popularity_is_like_the_real_one"}
    earlier = project.run(start=0, end=50, seed=1)
    rows = pa.Table.from_pandas(
        rarest(earlier), schema=table_schema(Table.SYNTHETIC_TARGET_EVENTS, **IDS), preserve_index=False
    )
    project.lake.append(Table.SYNTHETIC_TARGET_EVENTS, rows, key="earlier")
    with pytest.raises(QualityGateFailed) as caught:
        validate_run(project.settings, quiet.run_id)
    assert "popularity_is_like_the_real_one" in caught.value.found
    assert "judged together with events published from 2024-01-0" in caught.value.found
    assert "scalr runs rollback" in caught.value.next_step
    project.lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "true", key="rolled back")
    assert validate_run(project.settings, quiet.run_id).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collapsed", "broken"),
    [
        pytest.param(0.0, set(), marks=long),
        pytest.param(0.3, {"item_shares_are_like_the_real_ones"}, marks=long),
        (1.0, {"item_shares_are_like_the_real_ones", "effective_items"}),
    ],
)
def test_a_run_that_collapses_to_an_item_fails(tmp_path, collapsed, broken):
    """420 users, 300 items of one real event each; a share of the run's events is on one item."""
    source = [(f"u{k}", f"s{k % 50}", 50, 0) for k in range(420)]
    target = [("first", f"t{item}", -1000, 0) for item in range(300)]
    project = Handmade(tmp_path, "[quality]\nmax_bucket_distance = 1.0\n", source=source, target=target)
    spec = project.run()
    frame = project.candidates(spec, source).iloc[::2]
    number = np.arange(len(frame))
    frame["item_id"] = [f"t{0 if n < collapsed * len(frame) else n % 300}" for n in number]
    project.write(spec, frame)
    if broken:
        assert set(fails_on(project, spec.run_id)) == broken
    else:
        assert validate_run(project.settings, spec.run_id).figures["max_item_excess"] == pytest.approx(2 / 420 - 1 / 300)


@pytest.mark.parametrize(
    ("limit", "excludes", "fails"),
    [
        (None, True, True),
        pytest.param(None, False, False, marks=long),  # users repeat items
        pytest.param(2, False, True, marks=long),
        pytest.param(3, True, False, marks=long),
        pytest.param(0, True, False, marks=long),
    ],
)
def test_copies_of_a_user_and_item_fail_above_the_limit(project, limit, excludes, fails):
    """By default one a run, where a run never repeats an item for a user."""
    spec = project.run(exclude_consumed=excludes)
    frame = project.candidates(spec)
    of_user = frame.index[frame["user_id"] == "u0"][::2]
    project.write(
        spec,
        frame.assign(item_id=frame["item_id"].where(~frame.index.isin(of_user[:3]), "t3")).drop_duplicates(
            ["user_id", "item_id", "event_timestamp"]
        ),
    )
    if limit is not None:
        project.configure(f"[quality]\nmax_user_item_copies = {limit}")
    if fails:
        assert fails_on(project, spec.run_id) == {"copies_of_a_user_and_item": 3}
    else:
        assert validate_run(project.settings, spec.run_id).figures["max_user_item_copies"] == 3


@long
def test_data_docs_that_cannot_be_written_are_one_clear_error(project, monkeypatch, caplog):
    from great_expectations.data_context.store.html_site_store import HtmlSiteStore

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spec = project.run()
    project.write(spec, project.candidates(spec))
    monkeypatch.setattr(HtmlSiteStore, "set", full)
    with pytest.raises(LakeError, match="No space left"):
        validate_run(project.settings, spec.run_id)
    assert "Traceback" not in caplog.text
    monkeypatch.undo()
    assert validate_run(project.settings, spec.run_id).passed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_the_distance_is_the_one_that_the_alignment_reports(tmp_path, seed):
    """Two computations that share no code: DuckDB here, numpy in the generation."""
    from scalr_prod.generation.popularity_matching import bucket_shares, popularity_buckets

    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 40, 10)
    target = [("first", f"t{item}", -1000 + number, 0) for item in range(10) for number in range(counts[item])]
    project = Handmade(tmp_path, target=target, extra="[quality]\nmax_bucket_distance = 1.0")
    spec = project.run(align_buckets=int(rng.integers(2, 12)))
    report = validate_run(project.settings, spec.run_id)
    buckets = spec.settings["generation"]["align_buckets"]
    bucket = popularity_buckets(counts, buckets)
    proposed = project.candidates(spec)["item_id"].str[1:].astype(int).value_counts().reindex(range(10), fill_value=0)
    made = np.bincount(bucket, weights=proposed.to_numpy(), minlength=buckets) / proposed.sum()
    distance = np.abs(made - bucket_shares(counts, bucket, buckets)).sum() / 2
    assert report.figures["bucket_distance"] == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("rows", [1, pytest.param(0, marks=long)])
def test_a_quiet_day_is_published_and_its_shares_and_distributions_are_not_judged(tmp_path, caplog, rows):
    """One source event: an event of it is at distance .9 from ten even buckets, and having none is no sign of a fault either."""
    source = [*source_rows()[:100], ("u0", "quiet", 950, 950)]
    target = [("first", f"t{item}", -1000 + number, 0) for item in range(10) for number in range(10)]
    project = Handmade(tmp_path, source=source, target=[*target, ("first", "t0", -999, 0)])
    spec = project.run(start=900, end=1000, mode="causal", trained_until=100)
    project.write(spec, project.candidates(spec, source).iloc[:rows])
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    assert report.accepted == rows
    not_judged = {rule.rule: rule.reason for rule in report.rules if rule.success is None}
    assert not_judged["popularity_is_like_the_real_one"] == f"effective_users is {rows}: judged from 44 on"
    assert {"run_has_events", "source_coverage"} <= set(not_judged)
    stored = json.loads((run_folder(project.settings.home, spec.run_id) / "gate.json").read_text())["report"]["rules"]
    assert {rule["rule"] for rule in stored if rule["success"] is None} == set(not_judged)
    assert ("none of its 1 contexts gave an accepted event" in caplog.text) == (not rows)
    publish(project.settings, spec.run_id)
    assert len(project.view()) == rows


@long
def test_the_lake_is_read_as_of_the_version_of_the_plan(project):
    spec = project.run()
    project.lake.append(Table.TARGET_EVENTS, events([("u3", f"t{i}", 10, 10) for i in range(10)]), key="more")
    assert validate_run(project.settings, spec.run_id).passed, "what was ingested after the plan is not this run's concern"
    again = project.run()
    assert again.run_id != spec.run_id
    with pytest.raises(QualityGateFailed, match="user_had_not_consumed_it"):
        validate_run(project.settings, again.run_id)


@long
def test_consumed_items_are_allowed_when_the_run_asked_for_them(project):
    spec = project.run(exclude_consumed=False)
    project.write(spec, project.candidates(spec).assign(item_id=lambda f: f["item_id"].where(f.index != 0, "eaten")))
    assert validate_run(project.settings, spec.run_id).passed


@pytest.mark.parametrize("files", [0, pytest.param(1, marks=long)])
def test_an_empty_run_is_rejected_with_a_clear_message(project, files):
    spec = project.run()
    folder = project.write(spec, project.candidates(spec).iloc[:0], parts=1)
    if not files:
        (folder / "part-00000.parquet").unlink()
    with pytest.raises(QualityGateFailed, match="no candidate event") as caught:
        validate_run(project.settings, spec.run_id)
    assert "min_lift" in caught.value.next_step
    assert project.state(spec.run_id) is RunState.REJECTED


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        "missing",
        pytest.param("order", marks=long),
        *(pytest.param(one, marks=pytest.mark.nightly) for one in ("extra", "type")),
    ],
)
def test_wrong_columns_are_refused_before_any_row_is_read(project, wrong):
    spec = project.run()
    schema = generated_event_schema(**IDS)
    if wrong == "missing":
        changed = schema.remove(schema.get_field_index("weight"))
    elif wrong == "extra":
        changed = schema.append(pa.field("is_synthetic", pa.bool_()))
    elif wrong == "type":
        changed = schema.set(schema.get_field_index("probability"), pa.field("probability", pa.float64()))
    else:
        changed = pa.schema([schema.field(name) for name in [*schema.names[1:], schema.names[0]]])
    frame = project.candidates(spec).assign(is_synthetic=True)
    project.write(spec, frame, schema=changed)
    with pytest.raises(QualityGateFailed, match="columns_match_schema"):
        validate_run(project.settings, spec.run_id)
    assert project.state(spec.run_id) is RunState.REJECTED


@long
@pytest.mark.slow
def test_the_same_inputs_are_not_audited_twice_and_other_settings_are(project):
    spec = project.run()
    project.write(spec, project.candidates(spec).iloc[:80])
    first = validate_run(project.settings, spec.run_id)
    assert not first.repeated
    assert validate_run(project.settings, spec.run_id).repeated
    project.configure("[quality]\nmin_source_coverage = 0.5")
    with pytest.raises(QualityGateFailed, match="source_coverage"):
        validate_run(project.settings, spec.run_id)
    with pytest.raises(QualityGateFailed, match="source_coverage"):
        validate_run(project.settings, spec.run_id)
    assert project.state(spec.run_id) is RunState.REJECTED
    project.configure("")
    assert not validate_run(project.settings, spec.run_id).repeated
    accepted = next((run_folder(project.settings.home, spec.run_id) / "accepted").glob("*.parquet"))
    accepted.write_bytes(b"torn")
    assert not validate_run(project.settings, spec.run_id).repeated, "a torn file is made again"
    assert pq.read_table(accepted).num_rows == 80
    with Ledger.open(project.settings) as ledger:
        states = [step.to_state for step in ledger.changes.find(spec.run_id, subject="run")]
    assert states == ["planned", "generating", "generated", "validated", "rejected", "validated"]


def test_an_audit_that_waits_too_long_for_another_says_so(project, monkeypatch):
    monkeypatch.setattr("scalr_prod.quality.gx_engine._LOCK_TIMEOUT_S", 0.2)
    spec = project.run()
    folder = project.settings.home / "gx"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(QualityError, match="another audit") as caught:
        validate_run(project.settings, spec.run_id)
    assert caught.value.where == str(folder / ".lock")
    assert caught.value.next_step
    assert project.state(spec.run_id) is RunState.GENERATED


def test_there_is_nothing_to_audit_before_the_run_is_generated(project):
    spec = project.run(generated=False)
    with pytest.raises(LedgerError, match="nothing to audit yet"):
        validate_run(project.settings, spec.run_id)
    with pytest.raises(RunNotFound):
        validate_run(project.settings, "run_0123456789abcdef")


@long
def test_a_published_run_without_its_verdict_is_not_sent_to_be_generated(project):
    spec = project.run()
    validate_run(project.settings, spec.run_id)
    with Ledger.open(project.settings) as ledger:
        ledger.runs.set_state(spec.run_id, RunState.PUBLISHED, cause="test")
    path = run_folder(project.settings.home, spec.run_id) / "gate.json"
    assert validate_run(project.settings, spec.run_id).repeated
    path.unlink()
    with pytest.raises(LedgerError, match="its verdict is missing") as caught:
        validate_run(project.settings, spec.run_id)
    assert caught.value.where == str(path)
    assert "generate" not in caught.value.next_step


def test_lost_candidates_are_another_error_than_none(project):
    spec = project.run()
    shutil.rmtree(run_folder(project.settings.home, spec.run_id) / "candidates")
    with pytest.raises(GenerationError, match="are missing"):
        validate_run(project.settings, spec.run_id)
    assert project.state(spec.run_id) is RunState.GENERATED


@long
def test_nothing_is_left_in_staging(project):
    validate_run(project.settings, project.run().run_id)
    assert not list((project.settings.home / "staging").glob("*"))
