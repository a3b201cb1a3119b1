"""The other doors of the feature store: tables without a history, writes, the online store, saved datasets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FileSource
from feast.data_format import DeltaFormat
from support.feast_project import COUNT, T0, hours, make_project, spine, synthetic

from scalr_prod.errors import FeatureStoreError
from scalr_prod.features import (
    join_point_in_time,
    materialize,
    open_feature_store,
    save_dataset,
)
from scalr_prod.lake import Lake
from scalr_prod.schemas import Table


class TestOtherTables:
    """A view over a table that is not the lake's: partitioned, with other names, naive times and nanoseconds."""

    @pytest.fixture
    def view(self, tmp_path):
        from feast import Entity, FeatureView, Field
        from feast.data_format import ParquetFormat
        from feast.types import Int64, String
        from feast.value_type import ValueType

        rows = pa.table({"who": ["a", "a", "b"], "value": [1, 2, 3], "at": hours(1, 2, 3), "half": ["x", "y", "x"]})
        write_deltalake(str(tmp_path / "delta"), rows, partition_by=["half"])
        frame = rows.to_pandas()
        frame["at"] = frame["at"].dt.tz_localize(None).astype("datetime64[ns]")
        frame.to_parquet(tmp_path / "rows.parquet")
        user = Entity(name="person", join_keys=["user_id"], value_type=ValueType.STRING)

        def make(kind: str):
            path, form = ("delta", DeltaFormat()) if kind == "delta" else ("rows.parquet", ParquetFormat())
            mapping = {"who": "user_id", "value": "score"}
            source = FileSource(path=str(tmp_path / path), file_format=form, timestamp_field="at", field_mapping=mapping)
            schema = [Field(name="user_id", dtype=String), Field(name="score", dtype=Int64), Field(name="half", dtype=String)]
            return user, FeatureView(
                name=f"other_{kind}", entities=[user], schema=schema, source=source, ttl=timedelta(hours=1)
            )

        return make

    @pytest.mark.parametrize("kind", ["delta", "parquet"])
    def test_it_is_joined_and_materialised(self, feast_project, view, kind):
        store = open_feature_store(feast_project)
        store.apply(list(view(kind)))
        refs = [f"other_{kind}:score", f"other_{kind}:half"]
        rows = pd.DataFrame({"user_id": ["a", "a", "a", "b"], "event_timestamp": hours(1.5, 3, 3.1, 3)})
        found = store.get_historical_features(rows, refs).to_df()
        assert found["score"].fillna(-1).tolist() == [1, 2, -1, 3], "after an hour a row counts as absent"
        assert found["half"].fillna("-").tolist() == ["x", "y", "-", "x"]
        window = store.get_historical_features(features=refs, start_date=hours(2)[0], end_date=hours(3)[0]).to_df()
        assert sorted(window["score"]) == [2, 3]
        store.materialize(T0, T0 + timedelta(days=1), feature_views=[f"other_{kind}"])
        online = store.get_online_features(refs[:1], [{"user_id": "a"}, {"user_id": "b"}]).to_dict()
        assert online["score"] == [2, 3]


class TestWrites:
    def test_rows_that_do_not_fit(self, feast_project):
        store = open_feature_store(feast_project)
        rows = pa.table(synthetic(["a"], [1], hours(5), "w")).to_pandas()
        with pytest.raises(FeatureStoreError, match="must not be null"):
            store.write_to_offline_store("synthetic_target_events", rows.assign(item_id=pd.array([None], "Int64")))
        with pytest.raises(FeatureStoreError, match="do not match the table"):
            store.write_to_offline_store("synthetic_target_events", rows.assign(item_id="seven"))
        with pytest.raises(ValueError, match="missing_expected_columns"):
            store.write_to_offline_store("synthetic_target_events", rows.drop(columns="item_id"))
        assert Lake.open(feast_project).read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 2

    def test_rows_taken_out_can_be_written_again(self, own):
        store, lake = open_feature_store(own), Lake.open(own)
        rows = pa.table(synthetic(["a"], [1], hours(5), "w")).to_pandas()
        for _ in range(2):
            store.write_to_offline_store("synthetic_target_events", rows)
            assert lake.read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 3
            lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id = 'w0'", key=str(datetime.now(UTC)))
            assert lake.read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 2

    def test_four_writers_at_once_lose_and_double_nothing(self, own):
        from concurrent.futures import ThreadPoolExecutor

        from feast_delta.writes import append_new_rows
        from scalr_prod.features.offline_store import DeltaOfflineStoreConfig

        lake = Lake.open(own)
        path = lake.uri(Table.SYNTHETIC_TARGET_EVENTS)
        options = DeltaOfflineStoreConfig(lake=lake.root, memory_mb=64, threads=1)

        def write(writer: int) -> int:
            # Each writer has ten rows of its own and ten that all of them send.
            names = [f"own{writer}-{n}" for n in range(10)] + [f"shared-{n}" for n in range(10)]
            rows = synthetic(["a"] * 20, [1] * 20, hours(*range(20)), "w") | {"event_id": names}
            with options.open_session() as connection:
                access = options.table_writer(path)
                return append_new_rows(connection, path, access, pa.table(rows), event="event_timestamp")

        with ThreadPoolExecutor(4) as pool:
            added = list(pool.map(write, range(4)))
        found = lake.read(Table.SYNTHETIC_TARGET_EVENTS)["event_id"].to_pylist()
        assert sum(added) == 50
        assert len(found) == len(set(found)) == 52


class TestWhatMayBeWritten:
    def written(self, store, view: str, count: int) -> None:
        store.write_to_offline_store(
            view, pa.table(synthetic(["a"] * count, [1] * count, hours(*range(count)), "w")).to_pandas()
        )

    def with_view(self, settings, path: str):
        """The view of synthetic events, over a table elsewhere."""
        store = open_feature_store(settings)
        view = store.get_feature_view("synthetic_target_events")
        view.batch_source = FileSource(
            name="elsewhere", path=path, file_format=DeltaFormat(), timestamp_field="event_timestamp"
        )
        store.apply([view])
        return open_feature_store(settings)

    def elsewhere(self, settings, folder: Path) -> str:
        lake = Lake.open(settings)
        path = str(folder / "backup" / Table.SYNTHETIC_TARGET_EVENTS.value)
        write_deltalake(path, lake.read(Table.SYNTHETIC_TARGET_EVENTS))
        return path

    def test_a_table_elsewhere_with_the_name_of_one_of_ours(self, own, tmp_path):
        path = self.elsewhere(own, tmp_path)
        store = self.with_view(own, path)
        with pytest.raises(FeatureStoreError, match="the table is not writable"):
            self.written(store, "synthetic_target_events", 2)
        assert DeltaTable(path).version() == 0
        assert Lake.open(own).read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 2

    def test_a_table_elsewhere_that_the_settings_name(self, tmp_path):
        settings = make_project(tmp_path, '[feast]\nwritable = ["backup/synthetic_target_events"]\n')
        path = self.elsewhere(settings, tmp_path)
        store = self.with_view(settings, f"file://{path}")
        for _ in range(2):
            self.written(store, "synthetic_target_events", 3)
        assert DeltaTable(path).to_pyarrow_table().num_rows == 5, "a resend adds nothing"
        assert Lake.open(settings).read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 2

    def test_our_own_by_another_spelling(self, own, tmp_path):
        (tmp_path / "link").symlink_to(Lake.open(own).root)
        store = self.with_view(own, f"{tmp_path}/link/synthetic_target_events/")
        self.written(store, "synthetic_target_events", 3)
        assert Lake.open(own).read(Table.SYNTHETIC_TARGET_EVENTS).num_rows == 5

    def test_versions_are_of_our_own_tables(self, own, tmp_path):
        """A version that is pinned by a table's name is not that of a table elsewhere with this name."""
        lake, path = Lake.open(own), self.elsewhere(own, tmp_path)
        self.written(open_feature_store(own), "synthetic_target_events", 3)
        self.with_view(own, path)
        store = open_feature_store(own, versions={"synthetic_target_events": lake.version(Table.SYNTHETIC_TARGET_EVENTS)})
        rows = pd.DataFrame({"user_id": ["a"], "event_timestamp": hours(30)})
        assert store.get_historical_features(rows, ["synthetic_target_events:event_id"]).to_df()["event_id"].tolist() == ["e0"]

    def test_a_fill_reads_a_table_elsewhere(self, own, tmp_path):
        self.with_view(own, self.elsewhere(own, tmp_path))
        assert "synthetic_target_events" in materialize(own).views
        found = open_feature_store(own).get_online_features(["synthetic_target_events:event_id"], [{"user_id": "a"}]).to_dict()
        assert found["event_id"] == ["e0"]


class TestOnline:
    def test_what_a_rollback_took_out_is_no_longer_served(self, own):
        refs, people = ["synthetic_target_events:event_id"], [{"user_id": "a"}, {"user_id": "b"}]

        def served():
            return open_feature_store(own).get_online_features(refs, people).to_dict()["event_id"]

        assert materialize(own).emptied == ()
        assert served() == ["e0", "e1"]
        lake = Lake.open(own)
        schema = lake.schema(Table.SYNTHETIC_TARGET_EVENTS)
        more = pa.table(synthetic(["b"], [5], hours(9), "n")).select(schema.names).cast(schema)
        lake.append(Table.SYNTHETIC_TARGET_EVENTS, more, key="more")
        assert materialize(own).emptied == ()
        assert served() == ["e0", "n0"]
        lake.delete(Table.SYNTHETIC_TARGET_EVENTS, "event_id in ('e0', 'n0')", key="roll back")
        report = materialize(own)
        assert report.emptied == ("synthetic_target_events",)
        assert served() == [None, "e1"]

    def test_unknown_views(self, feast_project):
        with pytest.raises(FeatureStoreError, match="no feature view nothing"):
            materialize(feast_project, views=["nothing"])

    def test_nothing_is_printed(self, feast_project, capfd):
        materialize(feast_project)
        assert capfd.readouterr().out == ""


class TestSavedDatasets:
    def test_a_folder_is_registered_with_its_labels(self, feast_project, tmp_path):
        rows = spine(["a", "b"], hours(9, 9), item_id=[1, 2], label=pa.array([1, 0], pa.int8()))
        joined = join_point_in_time(open_feature_store(feast_project), rows, "downstream_training_v1")
        folder = tmp_path / "rows"
        folder.mkdir()
        pq.write_table(joined, folder / "part-0.parquet")
        for _ in range(2):
            report = save_dataset(feast_project, "mine_v1", path=folder, service="downstream_training_v1")
        assert set(report.columns) == set(joined.column_names)
        with pytest.warns(RuntimeWarning, match="experimental"):
            saved = open_feature_store(feast_project).get_saved_dataset("mine_v1")
        found = saved.to_df()
        assert found["label"].tolist() == [1, 0]
        assert found[COUNT].tolist() == [2, 1]
        assert saved.feature_service_name == "downstream_training_v1"

    def test_what_is_no_dataset(self, feast_project, tmp_path):
        with pytest.raises(FeatureStoreError, match="saved dataset"):
            save_dataset(feast_project, "none", path=tmp_path / "nothing")
        pq.write_table(spine([], []), tmp_path / "empty.parquet")
        with pytest.raises(FeatureStoreError, match="no row"):
            save_dataset(feast_project, "none", path=tmp_path / "empty.parquet")
