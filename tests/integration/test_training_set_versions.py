"""Versions of a training set over a real lake: what makes a new one, what is kept of the former, and what is refused whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from conftest import DAYS
from support.training_set_project import BOTH_ID_TYPES, SHARED, at, build

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityGateFailed, TrainingSetBusy, TrainingSetError
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.publication.toggle import disable_publication, enable_publication
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set

pytestmark = pytest.mark.slow
#: Builds a set a second time: in many small files, without synthetic rows or by other weights, through the lines of the others.
long = pytest.mark.long


@pytest.fixture
def project(request, projects):
    return projects(getattr(request, "param", "string"))


def test_the_same_inputs_give_the_same_bytes_and_no_new_version(project):
    _, _, other = build(project, **SHARED)
    _, first, opened = build(project, **SHARED | {"name": "again"})
    assert first.created
    assert [f["sha256"] for f in other.manifest["files"].values()] == [f["sha256"] for f in opened.manifest["files"].values()]
    _, second, _ = build(project, **SHARED | {"name": "again"})
    assert (second.created, second.version, second.path, second.fingerprint) == (False, 1, first.path, first.fingerprint)
    _, third, _ = build(project, **SHARED | {"name": "again"}, seed=1)
    assert (third.created, third.version) == (True, 2)
    settings, fourth, _ = build(project, **SHARED | {"name": "again"})
    assert (fourth.created, fourth.version) == (False, 1)
    with Ledger.open(settings) as ledger:
        assert [record.version for record in ledger.datasets.find("again")] == [1, 2]

    # Nor is a damaged version handed out again.
    opened.files[0].write_bytes(opened.files[0].read_bytes()[:-1])
    with pytest.raises(TrainingSetError, match="SHA-256 differs"):
        TrainingSet.open(first.path, check=True)
    _, fifth, _ = build(project, **SHARED | {"name": "again"})
    assert (fifth.created, fifth.version) == (True, 3)


@long
@BOTH_ID_TYPES
def test_many_small_files_joined_by_user_and_item_hold_the_rows_of_one_join(project, monkeypatch):
    _, _, few = build(project, **SHARED)
    monkeypatch.setattr("scalr_prod.training_set.features.max_partition_rows", lambda _: 200)
    _, report, many = build(project, name="many_parts", negatives_per_event=1)
    sizes = [file["rows"] for name, file in many.manifest["files"].items() if name.startswith("rows/")]
    assert max(sizes) <= 200
    assert sum(sizes) == report.rows
    assert len(sizes) > len(few.files) > 5
    assert many.to_arrow().equals(few.to_arrow())
    assert few.to_arrow()["target_user_history__item_ids"].null_count > 50, "users without a history are there"
    staging = Path(report.path).parents[2] / "staging"
    assert list(staging.glob("*")) == [], "what is kept meanwhile has gone"


@long
def test_the_next_day_keeps_the_files_of_the_days_before_and_judges_only_the_others(project, monkeypatch):
    from scalr_prod.quality import training_set as gate

    seen = []

    def watched(*arguments):
        seen.append(sum(judged.rows for judged in arguments[-1]))
        return judge(*arguments)

    judge = gate.validate_row_counts
    monkeypatch.setattr(gate, "validate_row_counts", watched)
    # The ratio of real to synthetic weight takes no step between these two days.
    monkeypatch.setattr("scalr_prod.training_set.build.measure_real_to_synthetic", lambda *_: 2.0)
    _, first, former = build(project, name="days", cutoff=at(DAYS - 1))
    _, second, latter = build(project, name="days", cutoff=at(DAYS + 90))
    shared = [name for name in former.manifest["files"] if (latter.path / name).exists() and name.startswith("rows/")]
    kept = [name for name in shared if (latter.path / name).samefile(former.path / name)]
    rows = sum(former.manifest["files"][name]["rows"] for name in kept)
    assert seen == [first.rows, second.rows - rows]
    assert 0 < rows < first.rows, "late events became known"
    assert latter.to_arrow().equals(build(project, name="at_once", cutoff=at(DAYS + 90))[2].to_arrow())


@long
def test_no_synthetic_row_while_publication_is_off_and_the_same_rows_after(project):
    options = {"name": "switched"}
    settings, before, first = build(project, **options)
    disable_publication(settings)
    try:
        _, off, without = build(project, **options)
    finally:
        enable_publication(settings)
    _, after, again = build(project, **options)
    assert (before.synthetic > 0, off.synthetic, off.real) == (True, 0, before.real)
    assert not without.to_pandas()["is_synthetic"].any()
    assert after.version > off.version > before.version
    pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)


def test_a_row_that_the_gate_refuses_leaves_nothing_behind(project):
    """The same synthetic event twice, as no publication would leave it."""
    settings = load_settings(project, training_set={"name": "refused_by_the_gate"})
    store = Lake.open(settings)
    version = store.version(Table.SYNTHETIC_TARGET_EVENTS)
    before = store.read(Table.SYNTHETIC_TARGET_EVENTS)
    store.append(Table.SYNTHETIC_TARGET_EVENTS, before.slice(0, 3), key="twice")
    try:
        with pytest.raises(QualityGateFailed, match="unique"):
            build_training_set(settings)
    finally:
        store.replace(Table.SYNTHETIC_TARGET_EVENTS, store.read(Table.SYNTHETIC_TARGET_EVENTS, version=version), key="once")
    assert not list((settings.home / "datasets" / "refused_by_the_gate").glob("v*"))
    assert not list((settings.home / "staging").iterdir())
    with Ledger.open(settings) as ledger:
        assert ledger.datasets.find("refused_by_the_gate") == []


def test_a_lake_that_moves_during_the_build_is_noticed(project, monkeypatch):
    settings = load_settings(project, training_set={"name": "moved"})
    store = Lake.open(settings)
    from scalr_prod.training_set import features

    def write_meanwhile(*arguments, **options):
        empty = store.read(Table.SYNTHETIC_TARGET_EVENTS).slice(0, 0)
        store.append(Table.SYNTHETIC_TARGET_EVENTS, empty, key=f"meanwhile {datetime.now(UTC)} {timedelta()}")
        return real(*arguments, **options)

    real = features.write_partitions
    monkeypatch.setattr(features, "write_partitions", write_meanwhile)
    with pytest.raises(TrainingSetBusy, match=r"changed while .*synthetic_target_events"):
        build_training_set(settings)


@long
@pytest.mark.parametrize("weights", [None, (0.5, 0.0, 0.25)])
def test_rows_that_are_put_in_order_piece_by_piece_are_those_of_one_order_and_each_view_is_read_once(
    project, monkeypatch, weights
):
    from scalr_prod.training_set import spine_build, spine_tasks

    read, put, windows, write = [], [], spine_tasks.stream_window, spine_build.write_range
    monkeypatch.setattr(spine_tasks, "stream_window", lambda _, window: read.append(window.view) or windows(_, window))
    options = SHARED if weights is None else {"name": "of_segments", "negatives_per_event": 1, "segment_weights": weights}
    whole = build(project, **options)[2].to_arrow()
    monkeypatch.setattr("scalr_prod.core.partitioned.PARTITION_ROWS", 50)
    monkeypatch.setattr(spine_build, "_DRAWS_PER_ROW", 1)
    monkeypatch.setattr(spine_tasks, "_CHUNK_ROWS", 30)
    monkeypatch.setattr(spine_build, "write_range", lambda *given: put.append(given[2]) or write(*given))
    read.clear()
    pieces = build(project, **options | {"name": f"pieces_of_{options['name']}"})[2].to_arrow()
    assert pieces.equals(whole)
    assert read == [Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS]
    assert len(put) >= len(whole) // 50
