"""A training set over a real lake and a real Feast store, row by row against pandas that shares no code with the package."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import DAYS, START, make_two_domains, write_toml
from torch.utils.data import DataLoader

from scalr_prod.contracts import Table, schema_of
from scalr_prod.errors import QualityGateFailed, TrainingSetBusy, TrainingSetError
from scalr_prod.feast_store import apply_feature_repo, open_feature_store
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger
from scalr_prod.policy import Policy, logs_digest, policy_path, settings_digest
from scalr_prod.settings import load_settings
from scalr_prod.switch import disable, enable
from scalr_prod.training_set import TrainingSet, build_training_set

pytestmark = pytest.mark.slow

LENGTH = 6
TRAILING = 30
#: The made runs: a first one over the first 120 days, known then, and one over the rest.
RUNS = {"run_00000000000000aa": (0, 120), "run_00000000000000bb": (120, DAYS)}


#: One set that several tests read; the builder makes it once.
SHARED = {"name": "shared", "negatives_per_event": 1}


def at(day: float) -> datetime:
    return (START + pd.Timedelta(days=day)).to_pydatetime()


BOTH_ID_TYPES = pytest.mark.parametrize("project", ["string", "int64"], indirect=True)


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """By the type of their ids, made when first asked for."""
    return functools.cache(lambda ids: make(tmp_path_factory.mktemp("project"), ids))


@pytest.fixture
def project(request, projects):
    return projects(getattr(request, "param", "string"))


def make(folder, ids: str):
    """Both logs with days for times (many ties) and rows that become known late; synthetic events of two runs, made up here."""
    domains = make_two_domains(folder, users=80, ids=ids)
    rng = np.random.default_rng(11)
    for path in (domains.source, domains.target):
        log = pd.read_parquet(path)
        log["timestamp"] = log["timestamp"].dt.floor("D")
        late = np.where(rng.random(len(log)) < 0.3, rng.integers(0, 60, len(log)), 0)
        log["created"] = log["timestamp"] + pd.to_timedelta(late, unit="D")
        log["weight"] = rng.integers(1, 5, len(log)).astype("float32")
        log.to_parquet(path)
    extra = f"[histories]\nlength = {LENGTH}\ntrailing_days = {TRAILING}\n" + "".join(
        f'[domains.{domain}.columns]\ncreated = "created"\nweight = "weight"\n' for domain in ("source", "target")
    )
    config = write_toml(domains, extra)
    settings = load_settings(config)
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    for run_id, (first, last) in RUNS.items():
        publish(settings, run_id, at(first), at(last), rng)
    return config


def publish(settings, run_id: str, start: datetime, end: datetime, rng) -> None:
    """Synthetic events as a run would publish them: known from the window's end on."""
    source = Lake.open(settings).read(Table.SOURCE_EVENTS).to_pandas()
    target = Lake.open(settings).read(Table.TARGET_EVENTS).to_pandas()
    known = source[(source["created_timestamp"] <= end) & source["event_timestamp"].between(start, end, inclusive="left")]
    chosen = known.drop_duplicates(["user_id", "event_timestamp"]).sample(frac=0.4, random_state=int(rng.integers(100)))
    count = len(chosen)
    rows = pd.DataFrame(
        {
            "event_id": [hashlib.md5(f"{run_id}{n}".encode(), usedforsecurity=False).hexdigest() for n in range(count)],
            "user_id": chosen["user_id"].to_numpy(),
            "item_id": rng.choice(target["item_id"].unique(), count),
            "event_timestamp": chosen["event_timestamp"].to_numpy(),
            "probability": rng.random(count).astype("float32"),
            "weight": rng.random(count).astype("float32"),
            "source_domain": "gadgets",
            "source_item_id": chosen["item_id"].to_numpy(),
            "source_event_timestamp": chosen["event_timestamp"].to_numpy(),
            "translator_version": 1,
            "run_id": run_id,
            "created_timestamp": end,
        }
    )
    real = target[["user_id", "item_id", "event_timestamp"]].assign(real=True)
    rows = rows.merge(real.drop_duplicates(), how="left", on=["user_id", "item_id", "event_timestamp"])
    rows = rows[rows.pop("real").isna()]
    kinds = {"user": "int64" if source["user_id"].dtype == "int64" else "string"}
    schema = schema_of(Table.SYNTHETIC_TARGET_EVENTS, user=kinds["user"], item=kinds["user"])
    Lake.open(settings).append(
        Table.SYNTHETIC_TARGET_EVENTS, pa.Table.from_pandas(rows, schema=schema, preserve_index=False), key=run_id
    )


def build(config, **options):
    settings = load_settings(config, training_set=options)
    report = build_training_set(settings)
    return settings, report, TrainingSet.open(report.path, check=True)


def lake(settings, table: Table) -> pd.DataFrame:
    return Lake.open(settings).read(table).to_pandas()


def text_hash(value: object) -> int:
    return int.from_bytes(hashlib.md5(str(value).encode(), usedforsecurity=False).digest()[8:], "little")


def expected_history(events: pd.DataFrame, label: pd.Timestamp) -> tuple[list, list, int] | None:
    """The last L events that happened and were known strictly before the label; ties by the hash of the item."""
    seen = events[(events["event_timestamp"] < label) & (events["created_timestamp"] < label)]
    if seen.empty:
        return None
    seen = seen.assign(tie=[text_hash(item) for item in seen["item_id"]]).sort_values(["event_timestamp", "tie"])
    return seen["item_id"].tolist()[-LENGTH:], seen["event_timestamp"].tolist()[-LENGTH:], len(seen)


@BOTH_ID_TYPES
def test_every_feature_of_every_row_is_what_was_known_strictly_before_the_label(project):
    settings, report, opened = build(project, **SHARED)
    rows = opened.to_pandas()
    assert len(rows) == report.rows > 900
    for domain, table in (("source", Table.SOURCE_EVENTS), ("target", Table.TARGET_EVENTS)):
        by_user = dict(tuple(lake(settings, table).groupby("user_id")))
        found_any = 0
        for row in rows.itertuples():
            events = by_user.get(row.user_id)
            expected = None if events is None else expected_history(events, row.event_timestamp)
            items = getattr(row, f"{domain}_user_history__item_ids")
            if expected is None:
                assert items is None
                continue
            found_any += 1
            assert list(items) == expected[0]
            stamps = pd.to_datetime(pd.Series(getattr(row, f"{domain}_user_history__event_timestamps")), utc=True)
            assert stamps.tolist() == expected[1]
            assert getattr(row, f"{domain}_user_history__event_count") == expected[2]
        assert found_any > 300
    by_item = dict(tuple(lake(settings, Table.TARGET_EVENTS).groupby("item_id")))
    for row in rows.itertuples():
        events = by_item[row.item_id]
        seen = events[(events["event_timestamp"] < row.event_timestamp) & (events["created_timestamp"] < row.event_timestamp)]
        if seen.empty:
            assert pd.isna(row.target_item_stats__first_seen)
            assert pd.isna(row.target_item_stats__event_count)
            continue
        last = seen["event_timestamp"].max()
        assert row.target_item_stats__first_seen == seen["event_timestamp"].min()
        assert row.target_item_stats__event_count == len(seen)
        trailing = (seen["event_timestamp"] > last - pd.Timedelta(days=TRAILING)).sum()
        assert row.target_item_stats__trailing_event_count == trailing


@BOTH_ID_TYPES
def test_the_spine_is_every_real_and_every_synthetic_event_that_was_known_by_the_cutoff(project):
    cutoff, start = at(150), at(20)
    settings, report, opened = build(project, name="spine", cutoff=cutoff, start=start, synthetic_weight=0.25)
    rows = opened.to_pandas()
    keys = ["user_id", "item_id", "event_timestamp"]

    def known(table: Table) -> pd.DataFrame:
        events = lake(settings, table)
        return events[
            (events["event_timestamp"] >= start)
            & (events["event_timestamp"] < cutoff)
            & (events["created_timestamp"] <= cutoff)
        ]

    real, synthetic = known(Table.TARGET_EVENTS), known(Table.SYNTHETIC_TARGET_EVENTS)
    late = lake(settings, Table.TARGET_EVENTS)
    assert ((late["event_timestamp"] < cutoff) & (late["created_timestamp"] > cutoff)).sum() > 5, "the case occurs"
    assert set(synthetic["run_id"]) == {"run_00000000000000aa"}, "the second run was not known yet"
    for found, want, factor in ((rows[~rows["is_synthetic"]], real, 1), (rows[rows["is_synthetic"]], synthetic, 0.25)):
        left, right = (frame.sort_values([*keys, "weight"]).reset_index(drop=True) for frame in (found, want))
        pd.testing.assert_frame_equal(left[keys], right[keys])
        np.testing.assert_allclose(left["weight"], right["weight"] * factor, rtol=1e-6)
        assert (left["label"] == 1).all()
    assert (report.real, report.synthetic, report.negatives) == (len(real), len(synthetic), 0)
    unknown = lake(settings, Table.SYNTHETIC_TARGET_EVENTS)
    unknown = unknown[(unknown["event_timestamp"] < cutoff) & (unknown["created_timestamp"] > cutoff)]
    assert report.synthetic_unknown == len(unknown) > 0
    assert rows.loc[rows["is_synthetic"], "run_id"].eq("run_00000000000000aa").all()
    assert rows.loc[~rows["is_synthetic"], "run_id"].isna().all()
    assert rows.loc[rows["is_synthetic"], "source_domain"].eq("gadgets").all()
    assert rows.loc[~rows["is_synthetic"], "source_domain"].isna().all()


def test_each_segments_synthetic_rows_have_its_weight_and_those_of_weight_zero_are_left_out(project):
    cutoff = at(150)
    settings, report, opened = build(
        project, name="segments", cutoff=cutoff, segment_weights=(0.5, 0.0, 0.25), synthetic_weight=2
    )
    rows = opened.to_pandas()
    events = lake(settings, Table.TARGET_EVENTS)
    known = events[(events["event_timestamp"] < cutoff) & (events["created_timestamp"] <= cutoff)]
    real = known["user_id"].value_counts()
    made = lake(settings, Table.SYNTHETIC_TARGET_EVENTS)
    made = made[made["created_timestamp"] <= cutoff]
    count = made["user_id"].map(real).fillna(0)
    want = made.assign(weight=made["weight"] * np.select([count == 0, count < 5], [1.0, 0.0], 0.5))
    assert min((count == 0).sum(), ((count > 0) & (count < 5)).sum(), (count >= 5).sum()) > 5, "every segment occurs"
    keys = ["user_id", "item_id", "event_timestamp", "weight"]
    left, right = (
        frame[keys].sort_values(keys, ignore_index=True) for frame in (rows[rows["is_synthetic"]], want[want["weight"] > 0])
    )
    pd.testing.assert_frame_equal(left, right, rtol=1e-6, check_dtype=False)
    assert report.synthetic == len(left)
    assert report.real == len(known)


def test_a_policy_that_says_no_leaves_no_synthetic_row(project, caplog):
    settings = load_settings(project, training_set={"name": "refused_by_the_policy"})
    policy = Policy(
        model="als", best_baseline="real", helps=False, volume=5, temperature=1.0, min_lift=0.0, align=False,
        weights=(0.0, 0.0, 0.0), sparse_below=5, settings=settings_digest(settings), logs=logs_digest(settings), report="",
    )  # fmt: skip
    policy.write(policy_path(settings))
    try:
        report = build_training_set(settings)
    finally:
        policy_path(settings).unlink()
    assert report.synthetic == 0
    assert report.real == len(lake(settings, Table.TARGET_EVENTS)) == report.rows
    assert report.policy["applied"]["training_set.segment_weights"] == [0.0, 0.0, 0.0]
    assert not TrainingSet.open(report.path).to_pandas()["is_synthetic"].any()


def test_by_default_everything_published_is_known(project):
    settings, report, _ = build(project, name="defaults")
    assert report.synthetic == len(lake(settings, Table.SYNTHETIC_TARGET_EVENTS))
    assert report.real == len(lake(settings, Table.TARGET_EVENTS))
    events = [lake(settings, table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)]
    assert report.cutoff > max(log[column].max() for log in events for column in ("event_timestamp", "created_timestamp"))
    assert report.start is None


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_negatives_had_been_seen_and_were_never_consumed_by_then(project, sampling):
    settings, report, opened = build(
        project, name=f"negatives_{sampling}", negatives_per_event=3, negative_sampling=sampling, cutoff=at(180)
    )
    rows = opened.to_pandas()
    negatives = rows[rows["label"] == 0]
    assert len(negatives) == report.negatives
    assert report.negatives + report.missing_negatives == 3 * report.real
    assert report.negatives > 2.5 * report.real
    events = lake(settings, Table.TARGET_EVENTS)
    events = events[(events["created_timestamp"] <= at(180)) & (events["event_timestamp"] < at(180))]
    first = events.groupby("item_id")["event_timestamp"].min()
    assert (negatives["item_id"].map(first) < negatives["event_timestamp"]).all()
    earliest = events.groupby(["user_id", "item_id"])["event_timestamp"].min().rename("consumed").reset_index()
    met = negatives.merge(earliest, how="left", on=["user_id", "item_id"])
    assert not (met["consumed"] <= met["event_timestamp"]).any()
    assert not negatives.duplicated(["user_id", "item_id", "event_timestamp"]).any()
    positives = rows[~rows["is_synthetic"] & (rows["label"] == 1)].groupby(["user_id", "event_timestamp"]).size()
    drawn = negatives.groupby(["user_id", "event_timestamp"]).size()
    assert (drawn <= 3 * positives.reindex(drawn.index)).all(), "a negative stands at a real event of its user"
    assert (negatives["weight"] == 1).all()
    assert not negatives["is_synthetic"].any()


def test_a_set_for_classification_has_both_labels_or_is_refused(project):
    settings, report, _ = build(project, name="classified", task="classification")
    assert report.negatives > report.real  # four for each, where as many items are left
    _, same, _ = build(project, name="classified", negatives_per_event=4)
    assert (same.version, same.created) == (report.version, False)
    first = lake(settings, Table.TARGET_EVENTS)["created_timestamp"].min()  # nothing was seen before the first events
    early = {"name": "one_label", "cutoff": (first + pd.Timedelta(seconds=1)).to_pydatetime()}
    with pytest.raises(TrainingSetError, match="would hold one label") as refused:
        build(project, task="classification", **early)
    assert 'task = "ranking"' in refused.value.next_step
    assert not list((settings.home / "datasets" / "one_label").glob("v*"))
    _, ranking, _ = build(project, negatives_per_event=4, **early)
    assert (ranking.negatives, ranking.created) == (0, True)
    with pytest.raises(TrainingSetError, match="would hold one label"):  # a version that is there already does not serve either
        build(project, task="classification", **early)


def test_real_rows_and_negatives_do_not_depend_on_what_was_published(project):
    """The same set without synthetic rows (their cutoff has not come) has the same other rows, but for what they contradict."""
    with_them = build(project, name="with", negatives_per_event=2, cutoff=at(DAYS + 90))[2].to_pandas()
    settings = load_settings(project)
    keys = ["user_id", "item_id", "event_timestamp", "label"]
    synthetic = lake(settings, Table.SYNTHETIC_TARGET_EVENTS)
    plain = with_them[~with_them["is_synthetic"]]
    # The events are all known by both cutoffs; only the synthetic rows' own time of being known lies between them.
    version = Lake.open(settings).version(Table.SYNTHETIC_TARGET_EVENTS)
    Lake.open(settings).delete(Table.SYNTHETIC_TARGET_EVENTS, "true", key="taken out")
    try:
        without = build(project, name="without", negatives_per_event=2, cutoff=at(DAYS + 90))[2].to_pandas()
    finally:
        Lake.open(settings).append(
            Table.SYNTHETIC_TARGET_EVENTS,
            Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS, version=version),
            key="put back",
        )
    assert not without["is_synthetic"].any()
    met = without.merge(synthetic[keys[:3]].assign(met=True), how="left", on=keys[:3])
    kept = without[~((met["met"].notna()) & (met["label"] == 0)).to_numpy()]
    pd.testing.assert_frame_equal(plain.reset_index(drop=True), kept.reset_index(drop=True))


def test_the_same_inputs_give_the_same_bytes_and_no_new_version(project):
    _, first, opened = build(project, name="again", negatives_per_event=2)
    _, second, _ = build(project, name="again", negatives_per_event=2)
    assert (first.created, second.created) == (True, False)
    assert (second.version, second.path, second.fingerprint) == (1, first.path, first.fingerprint)
    _, _, other = build(project, name="again_elsewhere", negatives_per_event=2)
    assert [f["sha256"] for f in other.manifest["files"].values()] == [f["sha256"] for f in opened.manifest["files"].values()]
    _, third, _ = build(project, name="again", negatives_per_event=2, seed=1)
    assert (third.created, third.version) == (True, 2)
    settings, fourth, _ = build(project, name="again", negatives_per_event=2)
    assert (fourth.created, fourth.version) == (False, 1)
    with Ledger.open(settings) as ledger:
        assert [record.version for record in ledger.datasets("again")] == [1, 2]


def test_many_small_files_hold_the_rows_of_few_large_ones(project, monkeypatch):
    _, _, few = build(project, **SHARED)
    monkeypatch.setattr("scalr_prod.training_set.features.part_rows", lambda _: 100)
    _, report, many = build(project, name="many_parts", negatives_per_event=1)
    sizes = [file["rows"] for name, file in many.manifest["files"].items() if name.startswith("rows/")]
    assert max(sizes) <= 100
    assert sum(sizes) == report.rows
    assert len(sizes) > len(few.files) > 5
    assert many.to_arrow().equals(few.to_arrow())


def test_the_next_day_keeps_the_files_of_the_days_before_and_judges_only_the_others(project, monkeypatch):
    from scalr_prod.quality import training_set as gate

    seen = []

    def watched(connection, select, rules, **options):
        found = judge(connection, select, rules, **options)
        seen.append(found.counts()[0])
        return found

    judge = gate.judge
    monkeypatch.setattr(gate, "judge", watched)
    _, first, former = build(project, name="days", cutoff=at(DAYS - 1))
    _, second, latter = build(project, name="days", cutoff=at(DAYS + 90))
    shared = [name for name in former.manifest["files"] if (latter.path / name).exists() and name.startswith("rows/")]
    kept = [name for name in shared if (latter.path / name).samefile(former.path / name)]
    rows = sum(former.manifest["files"][name]["rows"] for name in kept)
    assert seen == [first.rows, second.rows - rows]
    assert 0 < rows < first.rows, "late events became known"
    assert latter.to_arrow().equals(build(project, name="at_once", cutoff=at(DAYS + 90))[2].to_arrow())


def test_a_damaged_version_is_not_handed_out_again(project):
    _, first, opened = build(project, name="damaged")
    opened.files[0].write_bytes(opened.files[0].read_bytes()[:-1])
    with pytest.raises(TrainingSetError, match="SHA-256 differs"):
        TrainingSet.open(first.path, check=True)
    _, second, _ = build(project, name="damaged")
    assert (second.created, second.version) == (True, 2)


def test_no_synthetic_row_while_publication_is_off_and_the_same_rows_after(project):
    options = {"name": "switched"}
    settings, before, first = build(project, **options)
    disable(settings)
    try:
        _, off, without = build(project, **options)
    finally:
        enable(settings)
    _, after, again = build(project, **options)
    assert (before.synthetic > 0, off.synthetic, off.real) == (True, 0, before.real)
    assert not without.to_pandas()["is_synthetic"].any()
    assert after.version > off.version > before.version
    pd.testing.assert_frame_equal(again.to_pandas(), first.to_pandas(), check_exact=True)


def test_rows_come_in_order_of_time_in_plain_parquet(project):
    _, report, opened = build(project, **SHARED)
    rows = opened.to_pandas()
    assert rows["event_timestamp"].is_monotonic_increasing
    frame = pd.read_parquet(opened.path / "rows")
    pd.testing.assert_frame_equal(frame, rows)
    scanned = pl.scan_parquet(opened.path / "rows").collect()
    assert scanned.equals(opened.to_polars())
    assert scanned.height == report.rows
    stamps = {name: kind for name, kind in opened.manifest["columns"].items() if "timestamp" in kind}
    assert len(stamps) == 4
    assert all("timestamp[us, tz=UTC]" in kind for kind in stamps.values()), "Spark reads microseconds, not nanoseconds"


def test_provenance_is_no_feature(project):
    _, _, opened = build(project, **SHARED)
    assert set(opened.features) == {
        *(f"{d}_user_history__{n}" for d in ("source", "target") for n in ("item_ids", "event_timestamps", "event_count")),
        *(f"target_item_stats__{n}" for n in ("first_seen", "event_count", "trailing_event_count")),
    }
    assert [*opened.manifest["columns"]][:8] == [
        "user_id", "item_id", "event_timestamp", "label", "weight", "is_synthetic", "run_id", "source_domain",
    ]  # fmt: skip


@BOTH_ID_TYPES
def test_a_data_loader_with_two_workers_trains_on_it(project):
    _, report, opened = build(project, **SHARED)
    rows = opened.to_pandas()
    for data, size in ((opened.torch(), 64), (opened.torch(stream=True, shuffle=True), 64)):
        seen = list(DataLoader(data, batch_size=size, num_workers=2))
        assert sum(len(batch["user"]) for batch in seen) == report.rows
        assert sum(float(batch["label"].sum()) for batch in seen) == rows["label"].sum()
        assert seen[0]["source_history"].shape == (64, LENGTH)
        assert max(int(batch["item"].max()) for batch in seen) < opened.vocabulary().size("target_items")
        assert min(int(batch["user"].min()) for batch in seen) > 0


def test_it_is_a_saved_dataset_of_feast(project):
    settings, report, opened = build(project, **SHARED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls saved datasets experimental
        saved = open_feature_store(settings).get_saved_dataset(f"shared_v{report.version}")
    frame = saved.to_df()
    assert len(frame) == report.rows
    assert set(opened.features) <= set(frame.columns)


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
        assert ledger.datasets("refused_by_the_gate") == []


def test_a_window_without_real_events_is_refused_with_what_there_is(project):
    with pytest.raises(TrainingSetError, match="no real target event") as caught:
        build(project, name="empty", cutoff=at(-1))
    assert "later [training_set] cutoff" in str(caught.value)
    with pytest.raises(TrainingSetError, match="known by then are events from") as caught:
        build(project, name="empty", start=at(DAYS + 100), cutoff=at(DAYS + 101))
    assert "earlier [training_set] start" in str(caught.value)


def test_a_start_after_the_cutoff_is_refused(project):
    with pytest.raises(TrainingSetError, match="window is empty"):
        build(project, name="empty", start=at(50), cutoff=at(50))


def test_nothing_published_gives_real_rows_and_says_so(tmp_path, caplog):
    settings = load_settings(write_toml(make_two_domains(tmp_path / "logs", users=60)))
    ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    report = build_training_set(settings)
    assert report.synthetic == 0
    assert report.real > 100
    assert "no synthetic event" in caplog.text
    assert json.loads(json.dumps(report.to_json()))["cutoff"] == report.cutoff.isoformat()


def test_a_lake_that_moves_during_the_build_is_noticed(project, monkeypatch):
    settings = load_settings(project, training_set={"name": "moved"})
    store = Lake.open(settings)
    from scalr_prod.training_set import features

    def write_meanwhile(*arguments, **options):
        empty = store.read(Table.SYNTHETIC_TARGET_EVENTS).slice(0, 0)
        store.append(Table.SYNTHETIC_TARGET_EVENTS, empty, key=f"meanwhile {datetime.now(UTC)} {timedelta()}")
        return real(*arguments, **options)

    real = features.write_parts
    monkeypatch.setattr(features, "write_parts", write_meanwhile)
    with pytest.raises(TrainingSetBusy, match=r"changed while .*synthetic_target_events"):
        build_training_set(settings)


def test_a_log_that_is_read_piece_by_piece_is_read_whole(project, monkeypatch):
    _, _, whole = build(project, **SHARED)
    monkeypatch.setattr("scalr_prod.training_set.spine._ROWS_AT_ONCE", 50)
    _, _, pieces = build(project, name="pieces", negatives_per_event=1)
    assert pieces.to_arrow().equals(whole.to_arrow())


def as_exported(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": rows["user_id"].astype(str),
            "item_id": rows["item_id"].astype(str),
            "timestamp": rows["event_timestamp"].map(pd.Timestamp.timestamp),
            "label": rows["label"].astype("float64"),
            "weight": rows["weight"].astype("float64"),
            "is_synthetic": rows["is_synthetic"].astype("int64"),
        }
    )


@BOTH_ID_TYPES
def test_exported_files_hold_every_row_in_order(project, tmp_path):
    _, report, opened = build(project, **SHARED)
    expected = as_exported(opened.to_pandas())
    types = expected.dtypes.to_dict()
    found = opened.export(tmp_path / "rows.csv").to_json()
    assert (found["rows"], found["synthetic"]) == (report.rows, report.synthetic)
    pd.testing.assert_frame_equal(pd.read_csv(found["path"], dtype=types), expected, rtol=1e-6)
    opened.export(tmp_path / "films", "recbole")
    rows = pd.read_csv(tmp_path / "films" / "films.inter", sep="\t", dtype=str)
    assert list(rows) == [f"{name}:{'token' if name.endswith('_id') else 'float'}" for name in expected]
    pd.testing.assert_frame_equal(rows.set_axis(expected.columns, axis=1).astype(types), expected, rtol=1e-6)
    with pytest.raises(TrainingSetError, match="something at the target already"):
        opened.export(tmp_path / "rows.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "rows.csv"]


def test_an_id_that_would_break_a_line_is_refused_and_nothing_is_left(tmp_path):
    rows = pa.table(
        {
            "user_id": ["a", "b"],
            "item_id": ["x", "two\nlines"],
            "event_timestamp": pa.array([1, 2], pa.timestamp("us", "UTC")),
            "label": pa.array([1, 1], pa.int8()),
            "weight": pa.array([1, 1], pa.float32()),
            "is_synthetic": [False, True],
        }
    )
    (tmp_path / "set" / "rows").mkdir(parents=True)
    pq.write_table(rows, tmp_path / "set" / "rows" / "0.parquet")
    opened = TrainingSet(tmp_path / "set", {"version": 1, "files": {"rows/0.parquet": ""}})
    with pytest.raises(TrainingSetError, match=r"two\\nlines") as caught:
        opened.export(tmp_path / "out", "recbole")
    assert "csv" in caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    opened.export(tmp_path / "out.csv")
    assert list(pd.read_csv(tmp_path / "out.csv")["item_id"]) == ["x", "two\nlines"]


def test_hugging_face_reads_the_files_as_they_are(project, tmp_path):
    import datasets

    _, report, opened = build(project, **SHARED)
    rows = datasets.Dataset.from_parquet([str(path) for path in opened.files], cache_dir=str(tmp_path))
    assert len(rows) == report.rows
    assert set(opened.features) < set(rows.column_names)
