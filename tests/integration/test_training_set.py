"""A training set over a real lake and a real Feast store, row by row against pandas that shares no code with the package."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from conftest import DAYS, make_two_domains, write_toml
from support.training_set_project import BOTH_ID_TYPES, LENGTH, SHARED, TRAILING, at, build, lake

from scalr_prod.config import SegmentWeights
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import TrainingSetError
from scalr_prod.features import apply_feature_repo
from scalr_prod.generation.policy import Policy, logs_digest, policy_path, settings_digest
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.quality import check_dataset
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set, confidence_multipliers, real_to_synthetic

pytestmark = pytest.mark.slow
#: Builds sets once more, with another choice for the settings of the others.
long = pytest.mark.long
#: One set of which a test looks at the synthetic rows, and another at the negatives.
SEGMENTS = {
    "name": "segments",
    "cutoff": at(150),
    "segment_weights": (0.5, 0.0, 0.25),
    "synthetic_weight": 2,
    "negatives_per_event": 3,
    "negative_sampling": "popularity",
}


@pytest.fixture
def project(request, projects):
    return projects(getattr(request, "param", "string"))


def text_hash(value: object) -> int:
    return int.from_bytes(hashlib.md5(str(value).encode(), usedforsecurity=False).digest()[8:], "little")


def in_order(events: pd.DataFrame) -> pd.DataFrame:
    """Events as histories have them: by time, ties by the hash of the item."""
    return events.assign(tie=events["item_id"].map(text_hash)).sort_values(["event_timestamp", "tie"])


def expected_history(events: pd.DataFrame, label: pd.Timestamp) -> tuple[list, list, int] | None:
    """The last L events, of those in order, that happened and were known strictly before the label."""
    seen = events[(events["event_timestamp"] < label) & (events["created_timestamp"] < label)]
    if seen.empty:
        return None
    return seen["item_id"].tolist()[-LENGTH:], seen["event_timestamp"].tolist()[-LENGTH:], len(seen)


@BOTH_ID_TYPES
def test_every_feature_of_every_row_is_what_was_known_strictly_before_the_label(project):
    settings, report, opened = build(project, **SHARED)
    rows = opened.to_pandas()
    assert len(rows) == report.rows > 900
    for domain, table in (("source", Table.SOURCE_EVENTS), ("target", Table.TARGET_EVENTS)):
        by_user = dict(tuple(in_order(lake(settings, table)).groupby("user_id")))
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


def test_a_popularity_discount_gives_rare_items_more_of_the_same_weight(project):
    options = {"cutoff": at(150), "start": at(20), "synthetic_weight": 0.02}
    plain = build(project, name="plain", **options)[2].to_pandas()
    settings, _, discounted = build(project, name="discounted", popularity_discount=0.5, **options)
    rows, keys = discounted.to_pandas(), ["user_id", "item_id", "event_timestamp", "is_synthetic"]
    assert rows[keys].equals(plain[keys])
    real, total = rows.loc[~rows["is_synthetic"], "weight"], rows.loc[rows["is_synthetic"], "weight"].sum()
    assert real.equals(plain.loc[~plain["is_synthetic"], "weight"])
    assert total == pytest.approx(0.02 * real.sum(), rel=0.12)
    assert discounted.manifest["settings"]["popularity_discount"] == 0.5
    made = lake(settings, Table.SYNTHETIC_TARGET_EVENTS).assign(is_synthetic=True)
    joined = rows.merge(made[made["created_timestamp"] <= at(150)], on=keys, suffixes=("", "_made"))
    prior = joined["probability"] * (1 - joined["weight_made"]) / joined["weight_made"]
    assert len(joined) == rows["is_synthetic"].sum()
    assert joined["weight"].max() <= 1
    factor = (joined["weight"] / joined["weight_made"] * prior**0.5)[joined["weight"] < 1]
    np.testing.assert_allclose(factor, factor.iloc[0], rtol=1e-3)


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
    ratio = real_to_synthetic(real["weight"].sum(), synthetic["weight"].sum())
    assert ratio != 1
    late = lake(settings, Table.TARGET_EVENTS)
    assert ((late["event_timestamp"] < cutoff) & (late["created_timestamp"] > cutoff)).sum() > 5, "the case occurs"
    assert set(synthetic["run_id"]) == {"run_00000000000000aa"}, "the second run was not known yet"
    for found, want, factor in (
        (rows[~rows["is_synthetic"]], real, 1),
        (rows[rows["is_synthetic"]], synthetic, min(1, 0.25 * ratio)),
    ):
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
    cutoff = SEGMENTS["cutoff"]
    settings, report, opened = build(project, **SEGMENTS)
    rows = opened.to_pandas()
    events = lake(settings, Table.TARGET_EVENTS)
    known = events[(events["event_timestamp"] < cutoff) & (events["created_timestamp"] <= cutoff)]
    real = known["user_id"].value_counts()
    made = lake(settings, Table.SYNTHETIC_TARGET_EVENTS)
    made = made[made["created_timestamp"] <= cutoff]
    count = made["user_id"].map(real).fillna(0)
    ratio = real_to_synthetic(known["weight"].sum(), made.loc[made["event_timestamp"] < cutoff, "weight"].sum())
    cold, sparse, dense = confidence_multipliers(SegmentWeights(1.0, 0.0, 0.5), ratio)
    want = made.assign(weight=made["weight"] * np.select([count == 0, count < 5], [cold, sparse], dense))
    assert min((count == 0).sum(), ((count > 0) & (count < 5)).sum(), (count >= 5).sum()) > 5, "every segment occurs"
    keys = ["user_id", "item_id", "event_timestamp", "weight"]
    left, right = (
        frame[keys].sort_values(keys, ignore_index=True) for frame in (rows[rows["is_synthetic"]], want[want["weight"] > 0])
    )
    pd.testing.assert_frame_equal(left, right, rtol=1e-6, check_dtype=False)
    assert report.synthetic == len(left)
    assert report.real == len(known)


def policy_of(settings, weights):
    """What an evaluation that chose these weights leaves."""
    return Policy(
        model="als", best_baseline="real", helps=any(weights), volume=5, temperature=1.0, min_lift=0.0, align=False,
        segment_weights=weights, sparse_below=5, settings=settings_digest(settings), logs=logs_digest(settings), report="",
    )  # fmt: skip


@long
@pytest.mark.parametrize("measured", [True, False])
def test_a_weight_that_an_evaluation_chose_is_no_reason_to_refuse_a_set(project, monkeypatch, measured):
    """However large it is: it was measured to help. One that somebody wrote down is held to the rule."""
    monkeypatch.setattr("scalr_prod.training_set.row_weights.confidence_multipliers", lambda weights, _: weights)
    settings = load_settings(project, training_set={"name": f"heavy_{measured}"})
    if measured:
        policy_of(settings, (900.0, 900.0, 900.0)).write(policy_path(settings))
    else:
        settings = load_settings(project, training_set={"name": f"heavy_{measured}", "segment_weights": [900.0, 900.0, 900.0]})
    try:
        verdict = check_dataset(build_training_set(settings).path, settings=settings)
    finally:
        policy_path(settings).unlink(missing_ok=True)
    (rule,) = (one for one in verdict.rules if one.rule == "share_of_synthetic_weight")
    assert rule.outcome == ("warning" if measured else "failed")
    assert verdict.passed is measured


@long
def test_a_policy_that_says_no_leaves_no_synthetic_row(project, caplog):
    settings = load_settings(project, training_set={"name": "refused_by_the_policy"})
    policy_of(settings, (0.0, 0.0, 0.0)).write(policy_path(settings))
    try:
        report = build_training_set(settings)
    finally:
        policy_path(settings).unlink()
    assert report.synthetic == 0
    assert report.real == len(lake(settings, Table.TARGET_EVENTS)) == report.rows
    assert report.policy["applied"]["training_set.segment_weights"] == [0.0, 0.0, 0.0]
    assert not TrainingSet.open(report.path).to_pandas()["is_synthetic"].any()


def test_more_synthetic_events_than_are_of_use_are_told_of(project, caplog, monkeypatch):
    build(project, **SHARED)
    assert "events_per_source_event" not in caplog.text
    monkeypatch.setattr("scalr_prod.training_set.build._MAX_SYNTHETIC_RATIO", 0)
    _, report, _ = build(project, **SHARED)
    assert f"{report.synthetic} synthetic events for {report.real} real ones" in caplog.text
    assert "lower [generation] events_per_source_event (now 2)" in caplog.text


@long
def test_by_default_everything_published_is_known_and_counts_little_until_it_is_measured(project, caplog):
    caplog.set_level("INFO", logger="scalr_prod")
    settings, report, opened = build(project, name="defaults")
    made, rows = lake(settings, Table.SYNTHETIC_TARGET_EVENTS), opened.to_pandas()
    assert report.synthetic == len(made)
    assert rows.loc[rows["is_synthetic"], "weight"].sum() == pytest.approx(
        0.1 * rows.loc[~rows["is_synthetic"], "weight"].sum(), rel=0.1
    ), "a tenth of what the real rows weigh, but for the rounding"
    assert "λ = 0.1 (default; run `scalr evaluate`" in caplog.text
    assert report.real == len(lake(settings, Table.TARGET_EVENTS))
    events = [lake(settings, table) for table in (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)]
    assert report.cutoff > max(log[column].max() for log in events for column in ("event_timestamp", "created_timestamp"))
    assert report.start is None


@pytest.mark.parametrize("sampling", [pytest.param("uniform", marks=long), "popularity"])
def test_negatives_had_been_seen_and_were_never_consumed_by_then(project, sampling):
    settings, report, opened = build(project, **SEGMENTS | {"negative_sampling": sampling})
    cutoff = SEGMENTS["cutoff"]
    rows = opened.to_pandas()
    negatives = rows[rows["label"] == 0]
    assert len(negatives) == report.negatives
    assert report.negatives + report.missing_negatives == 3 * report.real
    assert report.negatives > 2.5 * report.real
    events = lake(settings, Table.TARGET_EVENTS)
    events = events[(events["created_timestamp"] <= cutoff) & (events["event_timestamp"] < cutoff)]
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


@long
def test_a_set_for_classification_has_both_labels_or_is_refused(project):
    settings, report, _ = build(project, name="classified", task="classification")
    assert report.negatives > report.real  # four for each, where as many items are left
    _, same, _ = build(project, name="classified", negatives_per_event=4)
    assert (same.version, same.created) == (report.version, False)
    first = lake(settings, Table.TARGET_EVENTS)["created_timestamp"].min()  # nothing was seen before the first events
    early = {"name": "one_label", "cutoff": (first + pd.Timedelta(seconds=1)).to_pydatetime()}
    with pytest.raises(TrainingSetError, match="would have one label") as refused:
        build(project, task="classification", **early)
    assert 'task = "ranking"' in refused.value.next_step
    assert not list((settings.home / "datasets" / "one_label").glob("v*"))
    _, ranking, _ = build(project, negatives_per_event=4, **early)
    assert (ranking.negatives, ranking.created) == (0, True)
    with pytest.raises(TrainingSetError, match="would have one label"):  # a version that is there already does not serve either
        build(project, task="classification", **early)


@long
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


def test_a_window_without_real_events_is_refused_with_what_there_is(project):
    with pytest.raises(TrainingSetError, match="no real target event") as caught:
        build(project, name="empty", cutoff=at(-1))
    assert "later [training_set] cutoff" in str(caught.value)
    with pytest.raises(TrainingSetError, match="the events known then are from") as caught:
        build(project, name="empty", start=at(DAYS + 100), cutoff=at(DAYS + 101))
    assert "earlier [training_set] start" in str(caught.value)


def test_a_start_after_the_cutoff_is_refused(project):
    with pytest.raises(TrainingSetError, match="window is empty"):
        build(project, name="empty", start=at(50), cutoff=at(50))


@long
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
