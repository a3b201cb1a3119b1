"""Two source domains from end to end: an item is its domain and its id, and every synthetic event says which domain it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_two_domains, write_toml
from support.multi_source_project import make_sources
from support.provenance import published_with_sources

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import QualityGateFailed
from scalr_prod.evaluation import EvaluationRequest, evaluate
from scalr_prod.features import ViewWindow, apply_feature_repo, join_point_in_time, open_feature_store, stream_window
from scalr_prod.generation import generate, plan_run
from scalr_prod.generation.context_query import read_contexts
from scalr_prod.histories import build_histories
from scalr_prod.ingest import ingest
from scalr_prod.lake import Lake
from scalr_prod.ledger import run_folder
from scalr_prod.publication.commit import publish
from scalr_prod.quality import validate_run
from scalr_prod.schemas import Table
from scalr_prod.training_set import TrainingSet, build_training_set
from scalr_prod.translator import load_version, train

pytestmark = pytest.mark.usefixtures("at_hand")
#: Runs the whole pipeline on two source domains; the tests before have their logs, histories and counts.
long = pytest.mark.long

LAX = "[quality]\nmin_information = 0.0\nmax_bucket_distance = 1.0\n"
KEYS = ["user_id", "source_item_id", "source_event_timestamp"]


def raw(settings) -> pd.DataFrame:
    """Both logs as they lie on disk, with the domain and the lake's id of each item."""
    logs = [pd.read_parquet(settings.base / f"{name}.parquet").assign(domain=name) for name in ("books", "music")]
    rows = pd.concat(logs, ignore_index=True)
    return rows.assign(key=rows["domain"] + ":" + rows["item_id"].astype(str))


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    settings = load_settings(make_sources(tmp_path_factory.mktemp("several"), LAX))
    report = ingest(settings)
    build_histories(settings)
    apply_feature_repo(settings)
    return settings, report


@pytest.fixture(scope="module")
def run(ingested, tmp_path_factory):
    """A published run and its training set; and a copy of the home from before the gate."""
    settings, _ = ingested
    version = train(settings).version
    spec = plan_run(settings, version=version)
    report = generate(settings, spec)
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(settings.base, copy)
    gate = validate_run(settings, spec.run_id)
    publish(settings, spec.run_id)
    with_sources = settings.training_set.model_copy(update={"source_history": True})
    dataset = TrainingSet.open(build_training_set(settings.model_copy(update={"training_set": with_sources})).path)
    return SimpleNamespace(
        settings=settings, spec=spec, report=report, gate=gate, dataset=dataset, ungated=load_settings(copy / "scalr.toml")
    )


def test_the_same_id_in_two_domains_is_two_items(ingested):
    settings, _ = ingested
    lake, logs = Lake.open(settings), raw(settings)
    both = set(logs.loc[logs["domain"] == "books", "item_id"]) & set(logs.loc[logs["domain"] == "music", "item_id"])
    assert len(both) > 50, "the test needs ids that both domains know"
    events = lake.read(Table.SOURCE_EVENTS).to_pandas()
    assert sorted(events["item_id"]) == sorted(logs["key"])
    catalogue = lake.read(Table.SOURCE_ITEMS).to_pandas().set_index("item_id")
    assert set(catalogue.index) == set(logs["key"])
    described = catalogue["title"].notna()
    assert described.equals(catalogue.index.to_series().str.startswith("books:").rename("title"))  # music has no item file
    known = pd.read_parquet(settings.base / "books_items.parquet").set_index("item_id")["title"]
    assert catalogue.loc["books:1", "title"] == known[1]


def test_histories_interleave_the_domains_by_time(ingested):
    settings, _ = ingested
    logs = raw(settings).sort_values("timestamp")
    users = [user for user, rows in logs.groupby("user_id") if rows["domain"].nunique() == 2][:20]
    end = logs["timestamp"].max()
    spine = pa.table({"user_id": users, "event_timestamp": pa.array([end] * len(users), pa.timestamp("us", "UTC"))})
    features = ["source_user_history:item_ids", "source_user_history:event_count"]
    found = join_point_in_time(open_feature_store(settings), spine, features).to_pandas()
    for row in found.itertuples():
        mine = logs[logs["user_id"] == row.user_id]
        assert list(row.source_user_history__item_ids) == mine["key"].tolist()[-settings.histories.length :]
        assert row.source_user_history__event_count == len(mine)


def test_reports_count_by_domain_and_a_second_ingest_adds_nothing(ingested):
    settings, report = ingested
    logs = raw(settings)
    told = report.to_json()
    assert set(told) == {"sources", "target", "common_users"}
    for name, rows in logs.groupby("domain"):
        mine = told["sources"][name]
        assert (mine["name"], mine["item_id"]) == (name, "int64")
        assert mine["rows"] == mine["rows_added"] == len(rows)
        assert (mine["users"], mine["items"], mine["catalogue"]) == (
            rows["user_id"].nunique(),
            *[rows["item_id"].nunique()] * 2,
        )
    target = pd.read_parquet(settings.base / "t.parquet")
    assert told["common_users"] == len(set(logs["user_id"]) & set(target["user_id"]))
    again = ingest(settings).to_json()
    assert [again["sources"][name]["rows_added"] for name in ("books", "music")] == [0, 0]


def test_one_domain_that_grew_adds_its_own_new_rows(tmp_path):
    settings = load_settings(make_sources(tmp_path, users=40))
    ingest(settings)
    before = len(Lake.open(settings).read(Table.SOURCE_EVENTS))
    music = pd.read_parquet(tmp_path / "music.parquet")
    pd.concat([music, music.tail(3)]).to_parquet(tmp_path / "music.parquet")  # a log is a multiset
    report = ingest(settings, domain="sources.music").to_json()
    assert set(report) == {"sources", "common_users"}
    assert set(report["sources"]) == {"music"}
    assert report["sources"]["music"]["rows_added"] == 3
    assert report["sources"]["music"]["rows"] == len(music) + 3
    assert len(Lake.open(settings).read(Table.SOURCE_EVENTS)) == before + 3
    assert report["common_users"] > 0


def test_ids_of_two_types_are_given_back_as_text(tmp_path):
    config = make_sources(tmp_path, users=40)
    books = pd.read_parquet(tmp_path / "books.parquet")
    books.assign(item_id="b-" + books["item_id"].astype(str)).to_parquet(tmp_path / "books.parquet")
    config.write_text(config.read_text().replace('items = "books_items.parquet"\n', ""))
    settings = load_settings(config)
    ingest(settings)
    lake = Lake.open(settings)
    assert str(lake.schema(Table.SYNTHETIC_EVENT_PROVENANCE).field("source_item_id").type) == "string"
    assert {key.partition(":")[0] for key in lake.read(Table.SOURCE_EVENTS)["item_id"].to_pylist()} == {"books", "music"}


@long
@pytest.mark.slow
def test_the_translator_knows_domain_and_id(run):
    ids = load_version(run.settings, run.spec.translator_version).vocabulary().source_ids.to_pylist()
    assert set(ids) == set(raw(run.settings)["key"])


@long
@pytest.mark.slow
def test_every_synthetic_event_names_the_source_event_that_it_was_made_from(run):
    rows = published_with_sources(Lake.open(run.settings))
    assert set(rows["source_domain"]) == {"books", "music"}
    assert rows["source_item_id"].dtype == "int64", "an id comes back as its own log has it"
    logs = raw(run.settings)
    real = set(logs[["user_id", "item_id", "timestamp", "domain"]].itertuples(index=False, name=None))
    assert set(rows[[*KEYS, "source_domain"]].itertuples(index=False, name=None)) <= real
    assert rows["event_id"].is_unique
    for row in rows.head(20).itertuples():
        user, key = str(row.user_id), f"{row.source_domain}:{row.source_item_id}"
        text = (
            f"{run.spec.translator_sha256}:{run.spec.seed}:{row.source_event_timestamp.value // 1000}:"
            f"{len(user)}:{user}:{len(key)}:{key}:{row.item_id}"
        )
        assert row.event_id == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@long
@pytest.mark.slow
def test_generation_and_gate_count_by_domain(run):
    rows = Lake.open(run.settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    contexts = raw(run.settings).drop_duplicates(["user_id", "key", "timestamp"])["domain"].value_counts()
    made = rows["source_domain"].value_counts()
    wanted = {name: {"contexts": contexts[name], "events": made[name]} for name in ("books", "music")}
    assert run.report.sources == wanted
    assert run.gate.figures["by_source"] == {
        name: {"source_events": contexts[name], "candidates": made[name], "accepted": made[name]} for name in ("books", "music")
    }


@long
@pytest.mark.slow
def test_a_false_domain_is_refused(run):
    settings = run.ungated
    for path in sorted((run_folder(settings.home, run.spec.run_id) / "candidates").glob("*.parquet")):
        table = pq.read_table(path)
        other = ["music" if name == "books" else "books" for name in table["source_domain"].to_pylist()]
        at = table.schema.get_field_index("source_domain")
        pq.write_table(table.set_column(at, table.schema.field(at), [other]), path)
    with pytest.raises(QualityGateFailed, match="source_event_is_real_and_known"):
        validate_run(settings, run.spec.run_id)


@long
@pytest.mark.slow
def test_feature_view_and_training_set_hold_the_domain_as_provenance(run):
    settings = run.settings
    published = Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).to_pandas()
    columns = ["user_id", "item_id", "source_domain"]
    view = stream_window(
        settings, ViewWindow("synthetic_target_events", end=run.spec.end, known_by=run.spec.as_of, columns=columns)
    ).read_all()
    assert sorted(view.to_pandas().itertuples(index=False, name=None)) == sorted(
        published[columns].itertuples(index=False, name=None)
    )
    rows = run.dataset.to_pandas()
    assert rows.loc[rows["is_synthetic"], "source_domain"].value_counts().to_dict() == (
        published["source_domain"].value_counts().to_dict()
    )
    assert rows.loc[~rows["is_synthetic"], "source_domain"].isna().all()
    assert "source_domain" not in run.dataset.features
    seen = {item for items in rows["source_user_history__item_ids"].dropna() for item in items}
    assert seen <= set(raw(settings)["key"])


#: Of a made log of 40 users as the version before several source domains read it: its contexts with their noise keys, what users
#: had consumed, source events, source histories and source catalogue.
BEFORE = {
    "string": ["9285c9fd8c2554cc", "ff9843bce20b5ca3", "bb7b56c4bbd1e541", "9d132deaf7e39dde", "b635916bec8bd94e"],
    "int64": ["de4bf336cbe7e629", "3ee163ca27a9c0b5", "c4e3b516aa59344f", "454a9ac9c68d8718", "a8fc5d5ffcc3e815"],
}


@pytest.mark.parametrize("form", ["source", "sources"])
@pytest.mark.parametrize("ids", BEFORE)
def test_one_source_domain_is_read_and_asked_about_as_before(tmp_path, ids, form):
    """All that the events of a run follow from, beside the translator; what their ids are made of: tests/integration/test_partition.py."""
    config = write_toml(make_two_domains(tmp_path, users=40, ids=ids))
    if form == "sources":
        config.write_text(config.read_text().replace('[domains.source]\nname = "gadgets"', "[domains.sources.gadgets]"))
    settings = load_settings(config)
    ingest(settings)
    build_histories(settings)
    lake, end = Lake.open(settings), datetime(2025, 1, 1, tzinfo=UTC)
    read = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS, Table.SOURCE_USER_HISTORY)
    spec = SimpleNamespace(
        mode="backfill",
        table_versions={table.value: lake.version(table) for table in read},
        settings={"generation": {"exclude_consumed": True}},
        seed=3,
        start=datetime(2024, 1, 1, tzinfo=UTC),
        end=end,
        as_of=end,
    )
    order = [("user_id", "ascending"), ("event_timestamp", "ascending")]
    contexts, consumed = read_contexts(duckdb.connect(), settings, spec, 0, 1)
    tables = [contexts.drop_columns("newcomer"), consumed]  # the digests are older than that column
    tables += [lake.read(table).sort_by(order) for table in (Table.SOURCE_EVENTS, Table.SOURCE_USER_HISTORY)]
    tables += [lake.read(Table.SOURCE_ITEMS).sort_by("item_id")]
    assert [_digest(table) for table in tables] == BEFORE[ids]


def _digest(table) -> str:
    text = json.dumps([table.schema.names, table.to_pylist()], default=lambda moment: moment.isoformat())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


EVALUATED = """
[domains.sources.books]
events = "books.parquet"
[domains.sources.music]
events = "music.parquet"
[domains.target]
name = "dishes"
events = "t.parquet"
[translator]
folds = 2
threads = 1
estimators = ["popularity", "linear"]
[generation]
contexts = "users"
partitions = 1
[compute]
workers = 1
[serving]
scorer = "local"
[quality]
max_bucket_distance = 1.0
[downstream]
models = ["als"]
seeds = 1
k = 5
volumes = [3]
temperatures = [0.1]
weights = [1.0]
threads = 1
"""


@pytest.mark.slow
@pytest.mark.long
def test_evaluate_has_an_arm_without_each_domain(tmp_path):
    settings = load_settings(make_sources(tmp_path, users=200, toml=EVALUATED))
    report = evaluate(settings, EvaluationRequest(cutoff=datetime(2024, 6, 1, tzinfo=UTC), cold_fraction=0.5))
    rows = {row["name"]: row for row in report.to_json()["arms"]}
    assert {"real", "real+scalr", "without_books", "without_music"} <= set(rows)
    for name in ("without_books", "without_music"):
        assert rows[name]["synthetic"]["events"] > 0
        assert {"lift_pct", "scalr_over_this"} <= set(rows[name])
    # A context a user: who is in the domain that is left out alone is asked about no more.
    assert rows["without_books"]["synthetic"]["events"] != rows["without_music"]["synthetic"]["events"]
    homes = {path.name.split("-")[1]: Lake(str(path / "lake")) for path in settings.home.rglob("evaluations/without-*")}
    assert set(homes) == {"books", "music"}
    for left_out, lake in homes.items():
        for table in (Table.SOURCE_EVENTS, Table.SOURCE_ITEMS):
            names = {key.partition(":")[0] for key in lake.read(table)["item_id"].to_pylist()}
            assert names == {"books", "music"} - {left_out}
