"""`[training_set] features`: a foreign Feast repository, with Feast's own file store, made here."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from support.examples import sweep
from support.feast_project import STAMP, T0, hours

from scalr_prod.apps.doctor import _check_features
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import FeatureStoreError
from scalr_prod.pipeline import PipelineContext, execute_stages, with_light_prerequisites
from scalr_prod.training_set import TrainingSet, build_training_set

#: Builds two training sets each; what arrives from a repository of one's own is in the first tests.
long = pytest.mark.long

MICROSECOND = timedelta(microseconds=1)
#: User b has target events at 2 h and 3 h: (time, known from, plan).
PLANS = [
    ("a", T0, T0, "old"),
    ("b", hours(1)[0], hours(1)[0], "before"),
    ("b", hours(2)[0], hours(2)[0], "at the second event"),
    ("b", hours(3)[0] - MICROSECOND, hours(4)[0], "known too late"),
    ("b", hours(3)[0], hours(3)[0], "at the third event"),
    ("b", hours(9)[0], hours(9)[0], "future"),
]
YAML = """
project: theirs
provider: local
registry: data/registry.db
offline_store: {type: file}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""


def write_plans(repo: Path, rows: list) -> None:
    names = ["customer", "at", "loaded", "plan"]
    table = pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)})
    for name in ("at", "loaded"):
        table = table.set_column(names.index(name), name, table[name].cast(STAMP))
    pq.write_table(table, repo / "plans.parquet")


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A repository with a view of users in Parquet, whose key has a name of its own, and one of items in Delta."""
    repo = tmp_path / "their_repo"
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(YAML)
    write_plans(repo, PLANS)
    write_deltalake(
        str(repo / "facts"),
        pa.table({"item_id": pa.array([1, 2], pa.int64()), "length": [90, 120], "at": pa.array([T0, T0], STAMP)}),
    )
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    film = Entity(name="film", join_keys=["item_id"], value_type=ValueType.INT64)
    place = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
    plans = FileSource(name="plans", path="plans.parquet", timestamp_field="at", created_timestamp_column="loaded")
    facts = FileSource(name="facts", path="facts", timestamp_field="at", file_format=DeltaFormat())
    profile = FeatureView(name="profile", entities=[customer], schema=[Field(name="plan", dtype=String)], source=plans)
    about = FeatureView(name="about", entities=[film], schema=[Field(name="length", dtype=Int64)], source=facts)
    pq.write_table(pa.table({"place": ["x"], "at": pa.array([T0], STAMP), "rain": [1]}), repo / "rain.parquet")
    pq.write_table(pa.table({"customer": ["a"], "at": pa.array([T0], STAMP), "probability": [0.5]}), repo / "odds.parquet")
    risky = FeatureView(
        name="risky",
        entities=[customer],
        schema=[Field(name="probability", dtype=Float64)],
        source=FileSource(name="odds", path="odds.parquet", timestamp_field="at"),
    )
    rain = FileSource(name="rain", path="rain.parquet", timestamp_field="at")
    weather = FeatureView(name="weather", entities=[place], schema=[Field(name="rain", dtype=Int64)], source=rain)
    service = FeatureService(name="their_service", features=[profile.with_name("user"), about])
    FeatureStore(repo_path=str(repo)).apply([customer, film, place, profile, about, weather, risky, service])
    return repo


def with_features(own, *features: str, **more):
    options = {"features": list(features), "features_repo": "their_repo", "feature_keys": {"customer": "user"}} | more
    return load_settings(own.base / "scalr.toml", training_set=options)


def built(settings) -> tuple[dict, TrainingSet]:
    rows = TrainingSet.open(build_training_set(settings).path, check=True)
    frame = rows.to_pandas()
    return {(row.user_id, row.event_timestamp): row for row in frame.itertuples()}, rows


def test_no_value_arrives_that_had_not_happened_or_was_not_known_before_the_row(own, theirs):
    rows, training_set = built(with_features(own, "their_service"))
    second, third = (rows["b", pd.Timestamp(at)] for at in hours(2, 3))
    assert second.user__plan == "before"
    assert third.user__plan == "at the second event"
    assert rows["a", pd.Timestamp(hours(1)[0])].user__plan == "old"
    assert (second.about__length, rows["a", pd.Timestamp(hours(1)[0])].about__length) == (120, 90)
    assert pd.isna(third.about__length)  # item 3 has none
    assert {"user__plan", "about__length"} <= set(training_set.features)
    assert "target_user_history__item_ids" in training_set.features
    assert "source_user_history__item_ids" not in training_set.features


def test_views_and_single_features_are_named_too(own, theirs):
    rows, _ = built(with_features(own, "about", "profile:plan"))
    assert rows["b", pd.Timestamp(hours(3)[0])].profile__plan == "at the second event"
    assert rows["b", pd.Timestamp(hours(2)[0])].about__length == 120


@long
def test_rows_of_several_joins_have_the_values_that_they_have_in_one(own, theirs, monkeypatch):
    _, one = built(with_features(own, "their_service", name="one"))
    monkeypatch.setattr("scalr_prod.training_set.features.max_partition_rows", lambda _: 2)
    _, several = built(with_features(own, "their_service", name="several"))
    assert len(several.files) > len(one.files)
    assert several.to_arrow().equals(one.to_arrow())
    assert several.manifest["columns"] == one.manifest["columns"]


@long
def test_a_new_version_is_made_where_their_tables_have_changed_and_only_then(own, theirs):
    settings = with_features(own, "their_service")
    first = build_training_set(settings)
    assert not build_training_set(settings).created
    write_plans(theirs, [*PLANS, ("b", hours(1.5)[0], hours(1.5)[0], "late correction")])
    again = build_training_set(settings)
    assert (first.version, again.version, again.created) == (1, 2, True)
    found = TrainingSet.open(again.path).to_pandas()
    assert "late correction" in set(found["user__plan"])
    write_deltalake(
        str(theirs / "facts"),
        pa.table({"item_id": pa.array([3], pa.int64()), "length": [7], "at": pa.array([T0], STAMP)}),
        mode="append",
    )
    assert TrainingSet.open(build_training_set(settings).path).to_pandas()["about__length"].max() == 120
    assert 7 in set(TrainingSet.open(again.path.replace("v2", "v3")).to_pandas()["about__length"])


@long
def test_a_new_version_is_made_where_a_definition_has_changed(own, theirs):
    settings = with_features(own, "profile")
    first = TrainingSet.open(build_training_set(settings).path).to_pandas()
    store = FeatureStore(repo_path=str(theirs))
    profile = store.get_feature_view("profile")
    profile.ttl = timedelta(minutes=30)
    store.apply([profile])
    report = build_training_set(settings)
    assert (report.version, report.created) == (2, True)
    assert TrainingSet.open(report.path).to_pandas()["profile__plan"].isna().sum() > first["profile__plan"].isna().sum()


@long
def test_without_features_of_ones_own_a_version_is_what_it_was(own, theirs):
    plain = build_training_set(load_settings(own.base / "scalr.toml"))
    elsewhere = with_features(own, features=[])
    assert build_training_set(elsewhere).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("features", "more", "said"),
    sweep(
        [
            (
                ["nobodys"],
                {},
                "no feature service or view 'nobodys'; there are the services their_service and the views about, profile, risky, weather",
            ),
            (["nobodys:plan"], {}, "there is no feature view 'nobodys'"),
            (["profile:colour"], {}, "the view profile has no feature 'colour'; it has: plan"),
            (["about", "about:length"], {}, "about__length is named twice"),
            (["weather"], {}, "the view weather is joined on 'place', which is neither the user nor the item"),
            (
                ["risky"],
                {},
                "the feature risky:probability has the name of a column that distinguishes synthetic rows from real ones",
            ),
            (["profile"], {"feature_keys": {}}, "the view profile is joined on 'customer'"),
            (["profile"], {"features_repo": "elsewhere"}, "there is no feature repository"),
        ],
        keep=3,
    ),
)
def test_what_is_missing_is_an_error_before_any_work(own, theirs, features, more, said):
    settings = with_features(own, *features, **more)
    with pytest.raises(FeatureStoreError) as caught:
        execute_stages(PipelineContext(settings), with_light_prerequisites("features"))
    assert said in caught.value.found
    assert caught.value.next_step
    assert caught.value.stage == "features"
    with pytest.raises(FeatureStoreError, match=re.escape(caught.value.found)):
        _check_features(settings)  # `scalr doctor` finds it as well
    with pytest.raises(FeatureStoreError):
        build_training_set(settings)
    assert not list((settings.home / "datasets").glob("*/v*"))


def test_a_source_that_is_not_there_and_keys_of_another_type_are_errors_before_any_work(own, theirs):
    (theirs / "plans.parquet").unlink()
    with pytest.raises(FeatureStoreError, match="source is missing"):
        execute_stages(PipelineContext(with_features(own, "profile")), with_light_prerequisites("features"))
    write_plans(theirs, PLANS)
    settings = with_features(own, "about", feature_keys={"item_id": "user"})
    with pytest.raises(FeatureStoreError, match="item_id"):
        build_training_set(settings)
    assert not list((settings.home / "datasets").glob("*/v*"))


@long
def test_features_of_views_that_were_applied_to_the_projects_own_repository(own, theirs):
    from scalr_prod.features import open_feature_store

    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    plans = FileSource(
        name="plans", path=str(theirs / "plans.parquet"), timestamp_field="at", created_timestamp_column="loaded"
    )
    open_feature_store(own).apply(
        [customer, FeatureView(name="profile", entities=[customer], schema=[Field(name="plan", dtype=String)], source=plans)]
    )
    rows, _ = built(with_features(own, "profile", features_repo=None))
    assert rows["b", pd.Timestamp(hours(3)[0])].profile__plan == "at the second event"
    with pytest.raises(FeatureStoreError, match="has the name of a built-in view"):
        build_training_set(with_features(own, "target_item_stats", features_repo=None))


def test_a_services_features_are_parted_by_what_they_are_looked_up_by_where_references_say_the_same(own):
    from scalr_prod.features import open_feature_store, references_by_key

    store = open_feature_store(own)
    histories = [
        f"{domain}_user_history:{feature}"
        for domain in ("source", "target")
        for feature in ("item_ids", "event_timestamps", "event_count")
    ]
    stats = [f"target_item_stats:{feature}" for feature in ("first_seen", "event_count", "trailing_event_count")]
    assert references_by_key(store, "downstream_training_v1") == {"user_id": histories, "item_id": stats}
    views = {name: store.get_feature_view(name) for name in ("source_user_history", "target_item_stats")}
    services = {
        "renamed": [views["source_user_history"], views["target_item_stats"].with_name("stats")],
        "of_items": [views["target_item_stats"]],
    }
    for name, features in services.items():
        store.apply([FeatureService(name=name, features=features)])
        assert references_by_key(store, name) == {"user_id": name}
