"""The gate over a training set: every rule is broken once and named."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.examples import sweep
from support.small_project import Handmade, hour

from scalr_prod.compute import SharedFiles, ShuffleFolder, open_executor
from scalr_prod.core.timestamps import to_micros
from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality import ValidatedPart, range_audit, row_rules_digest, training_set, validate_training_set
from scalr_prod.workspace import open_duckdb, staging_folder

STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_timestamp", STAMP),
        ("label", pa.int8()),
        ("weight", pa.float32()),
        ("is_synthetic", pa.bool_()),
        ("run_id", pa.string()),
        ("source_domain", pa.string()),
        ("source_user_history__item_ids", pa.list_(pa.string())),
        ("source_user_history__event_timestamps", pa.list_(STAMP)),
        ("source_user_history__event_count", pa.int64()),
        ("target_user_history__event_timestamps", pa.list_(STAMP)),
        ("target_item_stats__first_seen", STAMP),
        ("target_item_stats__event_count", pa.int64()),
    ]
)
CUTOFF = hour(100)


def good_rows() -> list[dict]:
    """Real positives, negatives and synthetic rows, with and without histories."""
    rows = []
    for number in range(30):
        when = hour(10 + number)
        kind = ("real", "negative", "synthetic")[number % 3]
        rows.append(
            {
                "user_id": f"u{number}",
                "item_id": f"t{number}",
                "event_timestamp": when,
                "label": int(kind != "negative"),
                "weight": 0.5,
                "is_synthetic": kind == "synthetic",
                "run_id": "run_0123456789abcdef" if kind == "synthetic" else None,
                "source_domain": "source" if kind == "synthetic" else None,
                "source_user_history__item_ids": ["s1", "s2"] if number % 2 else None,
                "source_user_history__event_timestamps": [hour(1), when - timedelta(microseconds=1)] if number % 2 else None,
                "source_user_history__event_count": 2 if number % 2 else None,
                "target_user_history__event_timestamps": [],
                "target_item_stats__first_seen": hour(0) if number % 2 else None,
                "target_item_stats__event_count": 1 if number % 2 else None,
            }
        )
    # A real event that a log holds twice is no fault of the training set.
    return [*rows, dict(rows[0])]


def manifest(held: list[dict], /, **changes: object) -> dict:
    return {
        "name": "training_set",
        "cutoff": CUTOFF.isoformat(),
        "start": hour(0).isoformat(),
        "columns": {field.name: str(field.type).replace("item: ", "element: ") for field in SCHEMA},  # as Parquet names it
        "features": [name for name in SCHEMA.names if "__" in name],
        "rows": len(held),
        "synthetic": sum(bool(row["is_synthetic"]) for row in held),
        **changes,
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Handmade(tmp_path_factory.mktemp("project")).settings


@pytest.fixture
def write(tmp_path):
    def write(rows: list[dict], schema: pa.Schema = SCHEMA) -> Path:
        table = pa.Table.from_pylist(rows, schema=schema)
        for part in range(2):
            pq.write_table(
                table.slice(part * len(rows) // 2, (part + 1) * len(rows) // 2 - part * len(rows) // 2),
                tmp_path / f"{part}.parquet",
            )
        return tmp_path

    return write


def validate(settings, folder: Path, made: dict, validated: dict[str, ValidatedPart] | None = None):
    """Run the gate on the files of a folder, in this process; some files are parts that a gate has passed before."""
    files = sorted(path for path in folder.glob("*.parquet") if path.name not in (validated or {}))
    shared = SharedFiles(ShuffleFolder(str(folder)), [path.name for path in files])
    with (
        staging_folder(settings, "gate") as staging,
        open_duckdb(settings, staging) as connection,
        open_executor(settings, connection, tasks=1, work_s=0, stage="dataset build") as executor,
    ):
        return validate_training_set(settings, files, shared, made, executor, validated=[*(validated or {}).values()])


def test_a_good_training_set_passes(settings, write):
    rows = good_rows()
    report = validate(settings, write(rows), manifest(rows))
    assert report.passed
    assert (report.rows, report.accepted) == (31, 31)
    assert len(report.rules) > 15
    assert Path(report.docs).exists()


def changed(row: int, **values: object):
    """Change one row: real, negative and synthetic ones take turns, and each second one has histories."""
    return lambda rows: rows[row].update(values)


#: What breaks a rule, by the rule. Each set of them is judged at once: no other row of it breaks the same rule.
VIOLATIONS = [
    {
        "user_id_is_present": changed(6, user_id=None),
        "item_id_is_present": changed(12, item_id=None),
        "label_is_0_or_1": changed(18, label=2),
        "weight_is_finite": changed(24, weight=float("nan")),
        "label_is_before_the_cutoff": changed(0, event_timestamp=CUTOFF),
        "provenance_is_on_synthetic_rows_only": changed(3, run_id="run_0123456789abcdef"),
        "synthetic_rows_are_positive": changed(2, label=0),
        "synthetic_rows_are_unique": lambda rows: rows.append(dict(rows[8])),
        "source_user_history_is_before_the_label": changed(15, source_user_history__event_timestamps=[hour(25), hour(1)]),
        "target_user_history_is_before_the_label": changed(21, target_user_history__event_timestamps=[hour(1), hour(99)]),
        "item_stats_are_before_the_label": changed(27, target_item_stats__first_seen=hour(37)),
    },
    {
        "event_timestamp_is_present": changed(18, event_timestamp=None),
        "weight_is_finite": changed(24, weight=float("inf")),
        "provenance_is_on_synthetic_rows_only": changed(2, run_id=None),
        "label_is_not_contradicted": lambda rows: rows[1].update(
            {key: rows[0][key] for key in ("user_id", "item_id", "event_timestamp")}
        ),
    },
    {
        "label_is_in_the_window": changed(0, event_timestamp=hour(-1)),
        "weight_is_finite": changed(24, weight=-0.1),
        "provenance_is_on_synthetic_rows_only": changed(6, is_synthetic=None),
    },
    {
        "source_domain_is_on_no_real_row": changed(0, source_domain="source"),
        "weight_is_finite": changed(24, weight=None),
    },
]


@pytest.mark.parametrize("violations", sweep(VIOLATIONS, keep=2))
def test_each_broken_rule_is_named(settings, write, violations):
    rows = good_rows()
    for violate in violations.values():
        violate(rows)
    with pytest.raises(QualityGateFailed) as caught:
        validate(settings, write(rows), manifest(rows))
    for rule in violations:
        assert f"{rule} (" in caught.value.found
    assert caught.value.where.endswith("data_docs/index.html")
    assert caught.value.exit_code == 3


def test_rows_that_share_a_key_are_found_wherever_they_lie(settings, tmp_path, monkeypatch):
    """Keys that are taken often, in files that each hold all times, judged a few rows at a time: as many as pandas finds."""
    monkeypatch.setattr(range_audit, "_TASK_ROWS", 40)
    judged, judge = [], range_audit.judge_range
    monkeypatch.setattr(training_set, "judge_range", lambda *arguments: judged.append(judge(*arguments)) or judged[-1])
    rng, model = np.random.default_rng(0), good_rows()
    rows = []
    for _ in range(600):
        kind = rng.integers(0, 3)
        missing = rng.random() < 0.1
        user, item, when = (f"u{rng.integers(0, 3)}", f"t{rng.integers(0, 3)}", hour(10 + int(rng.integers(0, 40))))
        key = {"user_id": user, "item_id": item, "event_timestamp": when}
        if missing:
            key[str(rng.choice(list(key)))] = None
        rows.append(model[kind] | key | {"label": int(rng.random() < 0.7)})
    rows.sort(key=lambda row: row["event_timestamp"] or hour(0))
    for part in range(4):
        pq.write_table(pa.Table.from_pylist(rows[part::4], schema=SCHEMA), tmp_path / f"{part}.parquet", row_group_size=10)

    frame = pd.DataFrame(rows)
    keys = ["user_id", "item_id", "event_timestamp"]
    copies = int(frame[frame["is_synthetic"]].duplicated(keys).sum())
    contradicted = int(
        (frame.groupby(keys)["label"].transform("nunique") > 1).sum()
    )  # a key that is not known is nobody else's
    assert copies > 20
    assert contradicted > 20
    with pytest.raises(QualityGateFailed) as caught:
        validate(settings, tmp_path, manifest(rows))
    found = {name: int(count) for name, count in re.findall(r"(\w+) \([^)]*\): (\d+) of", caught.value.found)}
    assert found["synthetic_rows_are_unique"] == copies
    assert found["label_is_not_contradicted"] == contradicted
    assert len(judged) > 8
    assert max(part.rows for part in judged) < 120
    assert sum(part.rows for part in judged) == 600


@pytest.mark.parametrize(
    "changes",
    sweep(
        [
            {
                "row_count_matches_manifest": {"rows": 30},
                "synthetic_row_count_matches_manifest": {"synthetic": 9},
                "no_provenance_in_features": {"features": ["source_user_history__event_count", "is_synthetic"]},
            },
            {"columns_match_schema": {"columns": {"user_id": "string"}}},
            {"no_provenance_in_features": {"features": ["synthetic_target_events__probability"]}},
            {"features_exist": {"features": ["target_item_stats__value"]}},
        ],
        keep=2,
    ),
)
def test_a_manifest_that_does_not_fit_is_named(settings, write, changes):
    rows = good_rows()
    changed_manifest = manifest(rows, **{name: value for change in changes.values() for name, value in change.items()})
    with pytest.raises(QualityGateFailed) as caught:
        validate(settings, write(rows), changed_manifest)
    assert all(f"{rule} (" in caught.value.found for rule in changes)


def test_an_empty_training_set_is_refused(settings, write):
    with pytest.raises(QualityGateFailed, match="no row"):
        validate(settings, write([]), manifest([]))


def part_of(rows: list[dict]) -> ValidatedPart:
    times = sorted(to_micros(row["event_timestamp"]) for row in rows)
    return ValidatedPart(len(rows), sum(row["is_synthetic"] for row in rows), times[0], times[-1])


@pytest.mark.long
def test_of_parts_that_were_judged_before_only_what_is_asked_of_the_whole_set_is_asked(settings, write):
    rows = good_rows()
    folder, before = write(rows[:20]), [rows[20] | {"weight": -1.0}, *rows[21:30]]
    pq.write_table(pa.Table.from_pylist(before, schema=SCHEMA), folder / "before.parquet")
    whole, kept = manifest(rows[:30]), {"before.parquet": part_of(before)}
    with pytest.raises(QualityGateFailed, match="weight_is_finite"):
        validate(settings, folder, whole)
    report = validate(settings, folder, whole, kept)
    assert (report.rows, report.accepted) == (30, 30)
    assert {rule.checked for rule in report.rules if rule.scope == "row"} == {20}
    everything = kept | {"0.parquet": part_of(rows[:10]), "1.parquet": part_of(rows[10:20])}
    assert validate(settings, folder, whole, everything).rows == 30
    counts = {"rows": 20, "synthetic": 3}
    for rules, broken in (
        (
            ("row_count_matches_manifest", "synthetic_row_count_matches_manifest"),
            whole | counts | {"cutoff": hour(35).isoformat()},
        ),
        ((), whole | {"start": hour(12).isoformat()}),
    ):
        with pytest.raises(QualityGateFailed) as caught:
            validate(settings, folder, broken, everything)
        assert all(rule in caught.value.found for rule in (*rules, "labels_are_in_the_window"))
    for overlapping, shared in (([rows[0], *rows[21:30]], 20), (rows[19:29], 1)):
        with pytest.raises(QualityGateFailed, match="parts_share_no_time") as caught:
            validate(settings, folder, whole, {"before.parquet": part_of(overlapping)})
        assert f"found {shared}" in caught.value.found


@pytest.mark.parametrize("sizes", [(500_000,), (10,), (3,)])
def test_every_row_is_in_one_range_and_a_range_lists_all_files_that_have_its_rows(tmp_path, monkeypatch, sizes):
    """Files that overlap, rows without a time, and many rows of one time."""
    monkeypatch.setattr(range_audit, "_TASK_ROWS", sizes[0])
    rng = np.random.default_rng(sizes[0])
    files, times = [], []
    for number in range(4):
        stamps = sorted(rng.integers(20 * number, 20 * number + 40, 30).tolist()) + [50] * 10 * (number == 2)
        stamps += [None] if number == 3 else []
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"event_timestamp": pa.array(stamps, STAMP)}), files[-1], row_group_size=4)
        times += [(stamp, files[-1].name) for stamp in stamps]
    shared = SharedFiles(ShuffleFolder(str(tmp_path)), [path.name for path in files])
    ranges = range_audit.plan_ranges(files, shared, [ValidatedPart(1, 0, 500, 600), ValidatedPart(1, 0, 0, 3)])
    assert len(ranges) > len(times) / sizes[0] / 3
    for stamp, name in times:
        within = [
            part
            for part in ranges
            if (stamp is None and part.since is None)
            or (
                stamp is not None and (part.since is None or part.since <= stamp) and (part.until is None or stamp < part.until)
            )
        ]
        assert len(within) == 1
        assert name in within[0].paths
    assert {span for part in ranges for span in part.spans} == {(0, 3)}


def test_the_windows_ends_are_no_part_of_what_a_file_was_judged_by():
    digest = row_rules_digest(manifest(good_rows()))
    assert row_rules_digest(manifest([], cutoff=hour(70).isoformat(), start=None)) == digest
    fewer = {name: kind for name, kind in manifest([])["columns"].items() if name != "target_item_stats__first_seen"}
    assert row_rules_digest(manifest([], columns=fewer)) != digest


@pytest.mark.parametrize("figure", sweep([float("nan"), None, -1.0], keep=1))
def test_a_figure_that_is_no_number_in_its_bounds_breaks_the_rule(tmp_path, figure):
    from scalr_prod.quality import gx_engine
    from scalr_prod.quality.gx_inspections import validate_figures
    from scalr_prod.quality.rule_protocol import FigureRule

    with gx_engine.open_data_context(Handmade(tmp_path).settings.home) as (context, docs):
        inspector = gx_engine.GxSession(context, docs, tmp_path, memory_mb=100)
        rule = FigureRule("is_not_negative", "the figure is not negative", "figure", low=0.0)
        (outcome,) = validate_figures(inspector, "a_suite", "a_run", {"figure": figure, "other": 1}, [rule])
    assert not outcome.success


def test_the_index_of_the_data_docs_lists_the_latest_results_and_each_has_its_page(tmp_path, monkeypatch):
    from scalr_prod.quality import gx_engine

    monkeypatch.setattr(gx_engine, "_LISTED", 2)
    home = Handmade(tmp_path).settings.home
    checks = [gx_engine.ExpectationSpec.all_true("is_good", "it is good")]
    for name in ("the_first", "the_second", "the_third"):
        with gx_engine.open_data_context(home) as (context, docs):
            (scratch := tmp_path / name).mkdir()
            inspector = gx_engine.GxSession(context, docs, scratch, memory_mb=100)
            inspector.validate("a_suite", name, pa.table({"is_good": [True]}), checks)
            inspector.build_docs()
    pages = [path.relative_to(home / "data_docs").parts[2] for path in (home / "data_docs" / "validations").rglob("*.html")]
    assert sorted(pages) == ["the_first", "the_second", "the_third"]
    index = Path(docs).read_text()
    assert [name in index for name in ("the_first", "the_second", "the_third")] == [False, True, True]
