"""The doors of the feature store: what they keep, what they refuse, and what they say then."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
from sqlalchemy.exc import OperationalError
from support.feast_project import AS_OF, COUNT, COUNTS, STAMP, T0, VIEWS, hours, make_project, spine, synthetic
from support.lakes import mark_home

from scalr_prod.config.settings import load_settings
from scalr_prod.core import assets
from scalr_prod.core.delta_log import FilePart, file_names
from scalr_prod.errors import FeatureStoreError, TableNotFound
from scalr_prod.features import (
    ViewWindow,
    apply_feature_repo,
    join_point_in_time,
    materialize,
    open_feature_store,
    repository,
    stream_window,
)
from scalr_prod.features.client import translate_feast_errors
from scalr_prod.features.store_snapshot import StoreSnapshot
from scalr_prod.lake import Lake
from scalr_prod.schemas import PROVENANCE_COLUMNS, Table, table_schema


class TestRepository:
    def test_it_is_applied_once(self, own, monkeypatch):
        def fail(_settings):
            raise AssertionError("applied again, though nothing has changed")

        monkeypatch.setattr(repository, "_apply", fail)
        report = apply_feature_repo(own)
        assert not report.applied
        assert set(report.views) == {view.value for view in VIEWS}
        assert set(report.services) == {"translator_inputs_v1", "target_training_v1", "downstream_training_v1"}

    def test_a_file_changed_by_hand_is_laid_again(self, own):
        definitions = own.feast_repo / "definitions.py"
        definitions.write_text("")
        assert apply_feature_repo(own).applied
        assert definitions.read_text() == (assets.asset_folder("feature_repo") / "definitions.py").read_text()

    def test_a_file_added_by_hand_stays(self, own):
        mine = own.feast_repo / "mine.py"
        mine.write_text("NOTHING = True\n")
        (own.feast_repo / "lake.json").unlink()
        assert apply_feature_repo(own).applied
        assert mine.exists()

    def test_a_registry_that_is_gone_is_filled_again(self, own):
        (own.home / "feast_registry.db").unlink()
        assert apply_feature_repo(own).applied
        assert len(open_feature_store(own).list_feature_views()) == len(VIEWS)

    def test_a_lake_behind_a_url(self, tmp_path):
        settings = make_project(tmp_path, f'[project]\nlake = "file://{tmp_path}/elsewhere"\n')
        assert join_point_in_time(open_feature_store(settings), spine(["a"], hours(9)), COUNTS)[COUNT].to_pylist() == [2]
        assert stream_window(settings, ViewWindow("source_events")).read_all().num_rows == 3
        rows = pa.table(synthetic(["a"], [1], hours(5), "w")).to_pandas()
        open_feature_store(settings).write_to_offline_store("synthetic_target_events", rows)
        assert Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 3

    def test_the_lake_has_to_be_there_first(self, tmp_path):
        domains = '[domains.source]\nname = "s"\nevents = "s"\n[domains.target]\nname = "t"\nevents = "t"\n'
        (tmp_path / "scalr.toml").write_text(domains)
        with pytest.raises(TableNotFound, match="scalr ingest"):
            apply_feature_repo(load_settings(tmp_path / "scalr.toml"))

    def test_opening_says_what_to_run_first(self, tmp_path, feast_project):
        unlaid = feast_project.model_copy(update={"base": tmp_path})
        with pytest.raises(FeatureStoreError, match="no feature repository yet") as caught:
            open_feature_store(unlaid)
        assert caught.value.next_step == "run: scalr histories"

    @pytest.mark.long
    def test_a_registry_that_does_not_answer(self, own):
        feast = own.feast.model_copy(update={"registry": "postgresql+psycopg://127.0.0.1:1/registry"})
        with pytest.raises(FeatureStoreError, match="Feast cannot be opened") as caught:
            open_feature_store(own.model_copy(update={"feast": feast}))
        assert "the registry can be reached" in caught.value.next_step

    @pytest.mark.parametrize(
        "error",
        [
            OSError("server closed the connection"),
            pytest.param(OperationalError("SELECT 1", {}, Exception("server closed the connection")), marks=pytest.mark.long),
            pytest.param(redis.exceptions.ConnectionError("server closed the connection"), marks=pytest.mark.long),
        ],
    )
    def test_a_registry_that_stops_answering(self, own, monkeypatch, error):
        store = open_feature_store(own)
        monkeypatch.setattr(store.registry, "proto", Mock(side_effect=error))
        with pytest.raises(FeatureStoreError, match="server closed the connection") as caught:
            StoreSnapshot.from_store(store)
        assert "can be reached" in caught.value.next_step
        assert "names of views" not in caught.value.next_step

    @pytest.mark.parametrize("store_only", [True, pytest.param(False, marks=pytest.mark.long)])
    def test_errors_of_feast_hold_no_secret(self, own, store_only):
        feast = own.feast.model_copy(update={"registry": "postgresql+psycopg://me:hush-hush-1@db/feast"})
        settings = own.model_copy(update={"feast": feast})
        used = open_feature_store(own) if store_only else settings
        if store_only:
            used.config.registry.path = feast.registry
        with pytest.raises(FeatureStoreError, match="Feast failed: no such view") as caught, translate_feast_errors(used):
            raise ValueError(f"no such view in {feast.registry}")
        assert "hush" not in str(caught.value)
        assert "names of views" in caught.value.next_step

    def test_no_secret_is_laid(self, feast_project, tmp_path):
        settings = load_settings(
            feast_project.base / "scalr.toml",
            project={
                "storage_options": {"AWS_SECRET_ACCESS_KEY": "hush1", "AWS_SESSION_TOKEN": "hush2", "AWS_REGION": "eu-west-1"}
            },
            feast={
                "registry": "postgresql+psycopg://me:hush3@db/feast",
                "online_store": "redis",
                "redis": "redis:6379,password=hush4",
            },
        )
        lake = {"root": str(tmp_path), "user": "string", "source_item": "string", "target_item": "int64"}
        laid = "".join(repository._files(settings, lake).values())
        assert "hush" not in laid
        assert "${SCALR_FEAST__REGISTRY}" in laid
        assert "${SCALR_FEAST__REDIS}" in laid
        assert "eu-west-1" in laid

    def test_no_service_offers_provenance(self, feast_project):
        for service in open_feature_store(feast_project).list_feature_services():
            offered = {feature.name for view in service.feature_view_projections for feature in view.features}
            assert not offered & set(PROVENANCE_COLUMNS)
            assert {view.name for view in service.feature_view_projections}.isdisjoint(
                {"synthetic_target_events", "source_events", "target_events"}
            )

    def test_templates_are_found(self):
        assert (assets.asset_folder("feature_repo") / "feature_store.yaml").is_file()


class TestPointInTime:
    def test_a_service_is_joined_to_every_row_in_its_order(self, feast_project):
        rows = spine(
            ["b", "a", "a", "zz", None, "a"], hours(9, 1.5, 9, 9, 9, 0), item_id=[1, 2, 1, 9, 1, 1], label=[1, 0, 1, 0, 1, 0]
        )
        found = join_point_in_time(open_feature_store(feast_project), rows, "downstream_training_v1")
        assert found.select(rows.column_names).equals(rows)
        assert found[COUNT].to_pylist() == [1, 1, 2, None, None, None]
        assert found["source_user_history__item_ids"].to_pylist() == [["s1"], ["s1"], ["s1", "s2"], None, None, None]
        assert found["target_item_stats__first_seen"].to_pylist() == [*hours(1), None, *hours(1), None, *hours(1), None]
        assert found.schema.field("source_user_history__event_timestamps").type == pa.list_(STAMP)
        assert found.schema.field("target_user_history__item_ids").type == pa.list_(pa.int64())
        assert found.num_columns == rows.num_columns + 9

    def test_knowledge_time(self, feast_project):
        refs = ["synthetic_target_events:event_id"]
        late = AS_OF - timedelta(microseconds=1)
        rows = spine(["a", "a"], [late, AS_OF])
        found = join_point_in_time(open_feature_store(feast_project), rows, refs)
        assert found["synthetic_target_events__event_id"].to_pylist() == [None, "e0"]
        found = join_point_in_time(open_feature_store(feast_project), spine(["a", "a"], hours(1, 5)), refs, known_by=AS_OF)
        assert found["synthetic_target_events__event_id"].to_pylist() == [None, "e0"]
        found = join_point_in_time(open_feature_store(feast_project), spine(["a", "a"], [AS_OF, AS_OF]), refs, known_by=late)
        assert found["synthetic_target_events__event_id"].to_pylist() == [None, None]

    def test_a_table_as_it_was(self, own):
        lake, table = Lake.open(own), Table.SOURCE_USER_HISTORY
        before = lake.version(table)
        lake.delete(table, "user_id = 'a'", key="a")
        rows = spine(["a", "b"], hours(9, 9))
        assert join_point_in_time(open_feature_store(own), rows, COUNTS)[COUNT].to_pylist() == [None, 1]
        assert join_point_in_time(open_feature_store(own), rows, COUNTS, versions={table.value: before})[COUNT].to_pylist() == [
            2,
            1,
        ]
        with pytest.raises(FeatureStoreError, match="at version 99"):
            join_point_in_time(open_feature_store(own), rows, COUNTS, versions={table.value: 99})

    def test_an_empty_spine(self, feast_project):
        found = join_point_in_time(open_feature_store(feast_project), spine(pa.array([], pa.string()), []), COUNTS)
        assert found.num_rows == 0
        assert found.schema.field(COUNT).type == pa.int64()

    def test_finer_times_are_rounded_down(self, feast_project):
        ticks = np.array([T0.replace(tzinfo=None)], "datetime64[ns]") + np.timedelta64(2, "h") - np.timedelta64(1, "ns")
        rows = pd.DataFrame({"user_id": ["a"], "event_timestamp": pd.to_datetime(ticks, utc=True)})
        found = open_feature_store(feast_project).get_historical_features(rows, COUNTS).to_df()
        assert found["event_count"].tolist() == [1], "a row at two o'clock is not visible a nanosecond before"
        assert found["event_timestamp"].tolist() == rows["event_timestamp"].tolist()

    def test_ids_as_pandas_holds_them(self, feast_project):
        """Text as categories, whole numbers with gaps as floats."""
        at = pd.to_datetime([hours(9)[0]] * 3)
        rows = pd.DataFrame({"user_id": pd.Categorical(["a", "b", "a"]), "item_id": [1.0, None, 2.0], "event_timestamp": at})
        refs = [*COUNTS, "target_item_stats:first_seen"]
        found = open_feature_store(feast_project).get_historical_features(rows, refs).to_df()
        assert found["event_count"].tolist() == [2, 1, 2]
        assert found["first_seen"].notna().tolist() == [True, False, True]

    def test_the_only_column_of_times_counts_whatever_its_name(self, feast_project):
        rows = pd.DataFrame({"user_id": ["a"], "bought": hours(9)})
        assert open_feature_store(feast_project).get_historical_features(rows, COUNTS).to_df()["event_count"].tolist() == [2]

    @pytest.mark.parametrize(
        ("rows", "features", "message"),
        [
            (pa.table({"event_timestamp": pa.array(hours(1), STAMP)}), COUNTS, "lacks the join key 'user_id'"),
            (spine([1], hours(1)), COUNTS, "contains int64, but the key of source_user_history contains string"),
            (pa.table({"user_id": ["a"]}), COUNTS, "no column 'event_timestamp'"),
            (pa.table({"user_id": ["a"], "event_timestamp": ["noon"]}), COUNTS, "times are of type string"),
            (spine(["a"], hours(1)), "no_such_service", "no_such_service"),
            (spine(["a"], hours(1)), ["no_such_view:x"], "no_such_view"),
            (spine(["a"], hours(1)), ["source_user_history:no_such"], "no_such"),
            (spine(["a"], hours(1), **{COUNT: [1]}), COUNTS, "columns named like features"),
        ],
    )
    def test_what_cannot_be_joined_is_named(self, feast_project, rows, features, message):
        with pytest.raises(FeatureStoreError, match=message):
            join_point_in_time(open_feature_store(feast_project), rows, features)

    def test_a_spine_by_query(self, feast_project):
        store = open_feature_store(feast_project)
        found = store.get_historical_features("SELECT user_id, event_timestamp FROM source_events ORDER BY ALL", COUNTS).to_df()
        assert found["event_count"].tolist() == [1, 2, 1]
        with pytest.raises(FeatureStoreError, match="query failed"):
            store.get_historical_features("SELECT nothing FROM nowhere", COUNTS)


class TestReadWindow:
    def test_a_window_holds_its_start_and_not_its_end(self, feast_project):
        found = stream_window(feast_project, ViewWindow("source_events", start=hours(1)[0], end=hours(3)[0])).read_all()
        assert found.column_names == Lake.open(feast_project).schema(Table.SOURCE_EVENTS).names
        assert found["item_id"].to_pylist() == ["s1", "s2"]

    def test_all_of_it(self, feast_project):
        reader = stream_window(feast_project, ViewWindow("target_user_history"))
        assert isinstance(reader, pa.RecordBatchReader)
        assert reader.read_all().num_rows == 3

    def test_columns_in_the_order_asked_for(self, feast_project):
        found = stream_window(feast_project, ViewWindow("source_events", columns=["event_timestamp", "user_id"])).read_all()
        assert found.column_names == ["event_timestamp", "user_id"]

    def test_what_was_not_known_is_left_out(self, feast_project):
        assert (
            stream_window(feast_project, ViewWindow("synthetic_target_events", known_by=hours(19)[0])).read_all().num_rows == 0
        )
        assert stream_window(feast_project, ViewWindow("synthetic_target_events", known_by=AS_OF)).read_all().num_rows == 2

    def test_an_empty_table(self, own):
        Lake.open(own).delete(Table.SOURCE_EVENTS, "true", key="all")
        assert stream_window(own, ViewWindow("source_events")).read_all().num_rows == 0
        assert join_point_in_time(open_feature_store(own), spine(["a"], hours(9)), ["source_events:item_id"]).num_rows == 1

    def test_files_of_the_table_are_divided_among_readers_of_a_copied_store(self, feast_project):
        """As tasks on other machines read them."""
        store, table = StoreSnapshot.from_store(open_feature_store(feast_project)), Table.SOURCE_EVENTS
        names = sorted(file_names(Lake.open(feast_project).open_table(table)))
        whole = stream_window(feast_project, ViewWindow(table.value)).read_all()
        found = [
            stream_window(store.open(), ViewWindow(table.value, files={table.value: FilePart(some)})).read_all()
            for some in (tuple(names), (), ("of another table",))
        ]
        assert [len(rows) for rows in found] == [3, 0, 0]
        assert found[0].equals(whole)

    def test_a_stream_that_breaks_off_says_so_in_our_words(self, feast_project, monkeypatch):
        from feast_delta.retrieval_job import DeltaRetrievalJob

        whole = DeltaRetrievalJob.stream

        @contextmanager
        def torn(job):
            def batches(reader):
                yield from reader
                raise OSError("the store went away")

            with whole(job) as reader:
                yield pa.RecordBatchReader.from_batches(reader.schema, batches(reader))

        monkeypatch.setattr(DeltaRetrievalJob, "stream", torn)
        reader = stream_window(feast_project, ViewWindow("source_events"))
        assert reader.read_next_batch().num_rows == 3
        with pytest.raises(FeatureStoreError, match="the store went away"):
            reader.read_next_batch()

    def test_unknown_names(self, feast_project):
        with pytest.raises(FeatureStoreError, match="no column nothing; there are: user_id"):
            stream_window(feast_project, ViewWindow("source_events", columns=["nothing"])).read_all()
        with pytest.raises(FeatureStoreError, match="no_view"):
            stream_window(feast_project, ViewWindow("no_view")).read_all()

    def test_several_views_at_the_times_of_either(self, feast_project):
        store = open_feature_store(feast_project)
        refs = ["source_events:item_id", "source_user_history:event_count"]
        window = {"start_date": hours(2)[0], "end_date": hours(3)[0]}
        found = store.get_historical_features(features=refs, full_feature_names=True, **window).to_arrow()
        assert found["user_id"].to_pylist() == ["a", "b"]
        assert found["source_events__item_id"].to_pylist() == ["s2", "s1"]
        assert found[COUNT].to_pylist() == [2, 1]
        with pytest.raises(FeatureStoreError, match="different keys"):
            store.get_historical_features(features=[*refs, "target_item_stats:first_seen"], **window)

    def test_what_was_not_known_by_the_end_of_the_window(self, feast_project):
        store, refs = open_feature_store(feast_project), ["synthetic_target_events:event_id"]
        window = {"start_date": hours(0)[0], "end_date": hours(19)[0]}
        assert len(store.get_historical_features(features=refs, **window).to_df()) == 2
        assert store.get_historical_features(features=refs, filter_by_created_timestamp=True, **window).to_df().empty


def test_an_open_store_and_connection_give_the_same_and_keep_nothing(feast_project):
    import duckdb

    store, asked = open_feature_store(feast_project), spine(["a", "b", "nobody"], hours(9, 3, 9))
    with duckdb.connect() as connection:
        connection.execute("CREATE TEMP TABLE mine AS SELECT 1 AS x")
        for known_by in (None, T0 + timedelta(hours=2)):
            for refs in (COUNTS, ["source_user_history:item_ids", "source_user_history:event_timestamps"]):
                kept = join_point_in_time(store, asked, refs, known_by=known_by, connection=connection)
                assert kept.equals(join_point_in_time(open_feature_store(feast_project), asked, refs, known_by=known_by))
        with pytest.raises(FeatureStoreError):
            join_point_in_time(store, asked.drop_columns("user_id"), COUNTS, connection=connection)
        names = connection.execute(
            "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
        )
        assert names.fetchall() == [("mine",)]
    # The connection is closed: the store opens one of its own again.
    assert join_point_in_time(store, asked, COUNTS).num_rows == 3


def test_the_registry_is_not_read_anew_for_each_object_that_is_applied(own, tmp_path, monkeypatch):
    """It holds those of all projects, so that a shared one would be read for longer with every project."""
    from feast.infra.registry.sql import SqlRegistry

    reads, read = [], SqlRegistry.proto
    monkeypatch.setattr(SqlRegistry, "proto", lambda self: reads.append(len(self.list_projects())) or read(self))
    settings = own.with_sections(feast={"registry": f"sqlite:///{tmp_path / 'another.db'}"})
    applied = apply_feature_repo(settings)
    assert applied.applied
    assert len(applied.views) + len(applied.services) > 7
    assert 0 < len(reads) < 7
    registry, project = open_feature_store(settings).registry, settings.project_name
    assert {view.name for view in registry.list_feature_views(project, allow_cache=True)} == set(applied.views)
    assert {one.name for one in registry.list_feature_services(project, allow_cache=True)} == set(applied.services)


def test_reports_are_json(feast_project):
    reports = [apply_feature_repo(feast_project), materialize(feast_project)]
    assert [set(json.loads(json.dumps(report.to_json()))) for report in reports] == [
        {"path", "applied", "views", "services"},
        {"views", "emptied", "end", "online_store", "written"},
    ]


def test_integer_ids(tmp_path):
    """All ids may be numbers."""
    (tmp_path / "scalr.toml").write_text(
        '[domains.source]\nname = "s"\nevents = "s"\n[domains.target]\nname = "t"\nevents = "t"\n'
    )
    settings = load_settings(tmp_path / "scalr.toml")
    mark_home(settings)
    lake = Lake.open(settings)
    for table in Table:
        lake.create(table, table_schema(table, user="int64", item="int64"))
    schema = lake.schema(Table.SOURCE_USER_HISTORY)
    columns = [[7], hours(1), [[3, 4]], [hours(0, 1)], [2], hours(1)]
    lake.append(Table.SOURCE_USER_HISTORY, pa.table(columns, schema=schema), key="first")
    apply_feature_repo(settings)
    rows = pa.table({"user_id": [7, 8], "event_timestamp": pa.array(hours(2, 2), STAMP)})
    assert join_point_in_time(open_feature_store(settings), rows, "translator_inputs_v1")[
        "source_user_history__item_ids"
    ].to_pylist() == [
        [3, 4],
        None,
    ]
    materialize(settings, views=["source_user_history"], end=hours(5)[0])
    online = open_feature_store(settings).get_online_features(["source_user_history:item_ids"], [{"user_id": 7}]).to_dict()
    assert online["item_ids"] == [[3, 4]]


def test_a_long_query_draws_no_bar_on_stdout(monkeypatch):
    """Stdout has the one object of --json. DuckDB takes a process whose main module has no file for an interactive one."""
    import __main__
    from scalr_prod.features import DeltaOfflineStoreConfig

    monkeypatch.delattr(__main__, "__file__", raising=False)
    with DeltaOfflineStoreConfig(memory_mb=256, threads=1).open_session() as connection:
        (shown,) = connection.execute("SELECT current_setting('enable_progress_bar')").fetchone()
        assert shown is False
